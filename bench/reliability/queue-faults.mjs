// Kills worker processes with SIGKILL at random times: each image has exactly one result, as without kills.
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { resultKey, startWorker, submitRun } from '../../lib/queue/index.ts';
import { startWorkerProcess, STUB_MODEL, stubScorer } from '../../test/support/queue-support.ts';
import { quantile } from './record.mjs';
import { asFile, collect, withImages } from './runs.mjs';

/**
 * Measures the overhead per job: milliseconds between consecutive jobs of one worker with an instant engine.
 */
async function overheads({ root, images, broker }) {
  const starts = [];
  const scorer = stubScorer(0, () => starts.push(performance.now()));
  const run = await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 1 });
  const worker = await startWorker({ redis: broker.url, root, scorer, concurrency: 1 });
  const results = await collect(run, broker.url);
  await worker.close();
  return { results, gaps: starts.slice(1).map((at, i) => at - starts[i]) };
}

async function disturbed({ root, images, broker }, kills, delayMs) {
  const options = { delayMs, lockMs: 1000, maxStalls: kills };
  const start = () => startWorkerProcess(broker.url, root, options);
  const workers = [await start(), await start()];
  const connection = new Redis(broker.url, { maxRetriesPerRequest: null });
  try {
    const run = await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 2 });
    const stored = async () => {
      const keys = images.map(({ sha256 }) =>
        resultKey(sha256, { model: STUB_MODEL, seed: 2, precision: 'float32' }),
      );
      return connection.exists(...keys);
    };
    let inTime = 0;
    for (let i = 0; i < kills; i++) {
      await sleep(100 + 400 * Math.random());
      if ((await stored()) < images.length) inTime++;
      workers.splice(Math.floor(Math.random() * workers.length), 1)[0].kill('SIGKILL');
      workers.push(await start());
    }
    return { results: await collect(run, broker.url), inTime, stored: await stored() };
  } finally {
    for (const worker of workers) worker.kill('SIGKILL');
    connection.disconnect();
  }
}

export async function run({ short }) {
  const [count, kills, delayMs] = short ? [120, 3, 400] : [1000, 20, 1000];
  return withImages(count, async (given) => {
    const { results: undisturbed, gaps } = await overheads(given);
    const started = performance.now();
    const { results, inTime, stored } = await disturbed(given, kills, delayMs);
    const score = (one) => (one.status === 'done' ? one.score : one.status);
    const equal = results.filter(
      (one, i) => one.status === 'done' && score(one) === score(undisturbed[i]),
    ).length;
    return {
      figures: {
        jobs: count,
        'workers killed': kills,
        'workers killed before the run had ended': inTime,
        'results equal to the run without kills': equal,
        'duration of the run with kills, s': (performance.now() - started) / 1000,
        'overhead per job, median ms': quantile(gaps, 0.5),
        'overhead per job, p99 ms': quantile(gaps, 0.99),
      },
      expectations: [
        ['each image has exactly one result', results.length === count && stored === count],
        ['all results equal those of the run without kills', equal === count],
        ['all workers were killed before the run had ended', inTime === kills],
      ],
    };
  });
}
