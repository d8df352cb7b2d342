// Many connections at once against the demo model: refused in order or answered, memory flat, ready again at once.
import autocannon from 'autocannon';
import { setTimeout as sleep } from 'node:timers/promises';
import { quantile } from './record.mjs';
import { golden, residentMiB, score, serving } from './serving.mjs';

const CONNECTIONS = 200;
const QUEUE_LIMIT = 64;

export async function run({ short }) {
  const seconds = short ? 8 : 60;
  const { bytes } = await golden();
  const args = ['--queue-limit', String(QUEUE_LIMIT), '--rate-limit', '1000000000'];
  const { result, exit } = await serving(args, async ({ url, pid }) => {
    const [queueMs, computeMs, memory] = [[], [], []];
    let stop = false;
    const watch = (async () => {
      for (; !stop; await sleep(250)) memory.push(await residentMiB(pid));
    })();
    const onResponse = (status, body) => {
      if (status !== 200) return;
      const { timings } = JSON.parse(body);
      queueMs.push(timings.queueMs);
      computeMs.push(timings.computeMs);
    };
    const request = { method: 'POST', path: '/v1/score', headers: { 'content-type': 'image/png' }, body: bytes, onResponse };
    const load = await autocannon({ url, connections: CONNECTIONS, duration: seconds, timeout: 60, requests: [request] });
    stop = true;
    await watch;
    const ended = performance.now();
    const ready = (await fetch(`${url}/v2/health/ready`)).status;
    let after = await score(url, bytes);
    while (after.status === 503) {
      // what was queued when the clients left is cancelled between steps
      await sleep(20);
      after = await score(url, bytes);
    }
    return { load, queueMs, computeMs, memory, ready, after: after.status, afterMs: performance.now() - ended };
  });
  const { load, queueMs, computeMs, memory, ready, after, afterMs } = result;
  const codes = Object.fromEntries(Object.entries(load.statusCodeStats).map(([code, { count }]) => [code, count]));
  const half = memory.length >> 1;
  const [early, late] = [Math.max(...memory.slice(0, half)), Math.max(...memory.slice(half))];
  const figures = {
    connections: CONNECTIONS,
    seconds,
    scored: codes['200'] ?? 0,
    'refused with 503': codes['503'] ?? 0,
    'queue p50, ms': quantile(queueMs, 0.5),
    'queue p99, ms': quantile(queueMs, 0.99),
    'compute p50, ms': quantile(computeMs, 0.5),
    'compute p99, ms': quantile(computeMs, 0.99),
    'memory peak of the first half, MiB': early,
    'of the second half, MiB': late,
    'scores again after, ms': afterMs,
  };
  const only = Object.keys(codes).every((code) => code === '200' || code === '503');
  return {
    figures,
    expectations: [
      [`every answer is 200 or 503 (${JSON.stringify(codes)})`, only && (codes['200'] ?? 0) > 0],
      ['no connection failed', load.errors === 0 && load.timeouts === 0],
      // The short form ends while buffers of the 200 connections are still being made.
      [`memory of the second half within ${short ? 25 : 10} % of the first`, late < early * (short ? 1.25 : 1.1)],
      ['ready when the load has ended, and a score within 5 s', ready === 200 && after === 200 && afterMs < 5000],
      ['SIGTERM ends it with code 0', exit === 0],
    ],
  };
}
