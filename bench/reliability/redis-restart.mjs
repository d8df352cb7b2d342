// Kills redis-server during a run and restarts it with its append-only file: all jobs complete.
import { setTimeout as sleep } from 'node:timers/promises';
import { startWorker, submitRun } from '../../lib/queue/index.ts';
import { STUB_MODEL, stubScorer, stubScore } from '../../test/support/queue-support.ts';
import { asFile, collect, withImages } from './runs.mjs';

export async function run({ short }) {
  const [count, restarts] = short ? [60, 1] : [1000, 5];
  return withImages(count, async ({ root, images, broker }) => {
    const options = {
      redis: broker.url,
      root,
      concurrency: 4,
      lockMs: 2000,
      silentMs: 2000,
      maxStalls: 2 * restarts + 1,
    };
    const worker = await startWorker({ ...options, scorer: stubScorer(short ? 100 : 40) });
    try {
      const started = performance.now();
      const id = await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL });
      for (let i = 1; i <= restarts; i++) {
        while (worker.completed < (i * count) / (restarts + 2)) await sleep(10);
        await broker.kill();
        await sleep(500);
        await broker.start();
      }
      const results = await collect(id, broker.url);
      const right = results.filter(
        (one, i) => one.status === 'done' && one.score === stubScore(images[i].bytes),
      ).length;
      return {
        figures: {
          jobs: count,
          'restarts of redis-server': restarts,
          'correct results': right,
          'consumers replaced by the watchdog': worker.restarts,
          seconds: (performance.now() - started) / 1000,
        },
        expectations: [['each image has its correct result', right === count && results.length === count]],
      };
    } finally {
      await worker.close();
    }
  });
}
