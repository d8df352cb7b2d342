// Load tests of the base bundle in this process: saturated, and with random arrivals.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { median, percentile } from './statistics.mjs';

/** Measures saturated throughput (images/s), event-loop delay, and memory early and late in the run. */
export async function saturated(diad, image, count) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const rss = {};
  let done = 0;
  const source = function* () {
    for (let i = 0; i < count; i++) yield image;
  };
  const started = performance.now();
  delay.enable();
  for await (const { score } of diad.scoreMany(source())) {
    if (!(score > 0)) throw new Error(`score ${score}`);
    done++;
    if (done === Math.min(100, count >> 1)) rss.early = process.memoryUsage.rss();
  }
  delay.disable();
  rss.late = process.memoryUsage.rss();
  return {
    images: done,
    imagesPerSecond: (1000 * done) / (performance.now() - started),
    eventLoopDelayP99Ms: delay.percentile(99) / 1e6 - 1, // subtract the timer resolution of 1 ms
    rssEarlyMiB: rss.early / 2 ** 20,
    rssLateMiB: rss.late / 2 ** 20,
    rssGrowth: rss.late / rss.early - 1,
  };
}

/** Measures latency from arrival to result for Poisson arrivals with `rate` images/s, for `seconds`. */
export async function poisson(diad, image, rate, seconds, random) {
  const latencies = [];
  const timings = [];
  const pending = [];
  const before = diad.stats();
  const started = performance.now();
  let next = started;
  while (next < started + 1000 * seconds) {
    next += (-Math.log(1 - random()) / rate) * 1000;
    const wait = next - performance.now();
    if (wait > 0) await sleep(wait);
    const arrived = performance.now();
    const record = (result) => {
      latencies.push(performance.now() - arrived);
      timings.push(result.timings);
    };
    pending.push(diad.score(image).then(record));
  }
  await Promise.all(pending);
  const after = diad.stats();
  return {
    offeredPerSecond: rate,
    images: latencies.length,
    latencyP50Ms: median(latencies),
    latencyP99Ms: percentile(latencies, 0.99),
    queueP50Ms: median(timings.map(({ queueMs }) => queueMs)),
    computeP50Ms: median(timings.map(({ computeMs }) => computeMs)),
    meanBatch: (after.completed - before.completed) / (after.batches - before.batches),
  };
}
