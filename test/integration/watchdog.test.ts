// The queue's watchdog restarts a silent consumer.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Redis } from 'ioredis';
import { Queue } from 'bullmq';
import {
  queueName,
  runResults,
  startWorker,
  submitRun,
  type RunResult,
  type Submission,
} from '../../lib/queue/index.js';
import {
  Broker,
  freePort,
  STUB_MODEL,
  stubScore,
  stubScorer,
  writeImages,
} from '../support/queue-support.js';
import { HANG_GUARD_MS } from '../support/support.js';

describe('queue: watchdog @slow', () => {
  let folder: string;
  let broker: Broker;
  let images: Awaited<ReturnType<typeof writeImages>>;
  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'diad-watchdog-'));
    for (const name of ['redis', 'images']) await mkdir(path.join(folder, name));
    images = await writeImages(path.join(folder, 'images'), 3);
    broker = new Broker(await freePort(), path.join(folder, 'redis'));
    await broker.start();
  });
  after(async () => {
    await broker.kill();
    await rm(folder, { recursive: true, force: true });
  });

  async function collect(submissions: readonly Submission[], seed: number): Promise<RunResult[]> {
    const run = await submitRun(submissions, { redis: broker.url, model: STUB_MODEL, seed, attempts: 2 });
    const all: RunResult[] = [];
    for await (const one of runResults(run, {
      redis: broker.url,
      wait: true,
      signal: AbortSignal.timeout(HANG_GUARD_MS),
    }))
      all.push(one);
    return all;
  }

  it('restarts a consumer that was not woken, and completes the waiting jobs', async () => {
    const lines: string[] = [];
    const worker = await startWorker({
      redis: broker.url,
      root: path.join(folder, 'images'),
      scorer: stubScorer(0),
      silentMs: 900,
      log: (line) => lines.push(line),
    });
    const connection = new Redis(broker.url, { maxRetriesPerRequest: null });
    const queue = new Queue(queueName(STUB_MODEL), { connection });
    try {
      // Add jobs without the wake-up: submit them while the queue is paused, then end the pause by hand.
      await queue.pause();
      const submissions = images.map(({ file, sha256 }): Submission => ({
        file,
        sha256,
        reference: { kind: 'file', path: file },
      }));
      const results = collect(submissions, 3);
      const key = (name: string): string => `bull:${queueName(STUB_MODEL)}:${name}`;
      while ((await connection.llen(key('wait'))) < images.length)
        await new Promise((resolve) => setTimeout(resolve, 20));
      await connection.multi().hdel(key('meta'), 'paused').del(key('marker')).exec();
      const scores = (await results).map((one) => (one.status === 'done' ? one.score : one.status));
      assert.deepEqual(
        scores,
        images.map(({ bytes }) => stubScore(bytes)),
      );
      assert.ok(worker.restarts >= 1, lines.join('\n'));
      assert.match(lines.join('\n'), /no activity for 900 ms with 3 jobs waiting/);
    } finally {
      await worker.close();
      await queue.close();
      connection.disconnect();
    }
  });
});
