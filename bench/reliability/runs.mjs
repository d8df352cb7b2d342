// Images, broker and runs for queue measurements.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { runResults } from '../../lib/queue/index.ts';
import { Broker, freePort, writeImages } from '../../test/support/queue-support.ts';

/** Runs `use` with `count` small images in a folder and a redis-server with an append-only file. */
export async function withImages(count, use) {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'diad-queue-'));
  const root = path.join(folder, 'images');
  const store = path.join(folder, 'redis');
  await Promise.all([mkdir(root), mkdir(store)]);
  const broker = new Broker(await freePort(), store);
  try {
    await broker.start();
    return await use({ root, broker, images: await writeImages(root, count) });
  } finally {
    await broker.kill();
    await rm(folder, { recursive: true, force: true });
  }
}

export const asFile = ({ file, sha256 }) => ({ file, sha256, reference: { kind: 'file', path: file } });

/** Waits for a run to end and returns all results. */
export async function collect(run, redis) {
  const all = [];
  for await (const result of runResults(run, { redis, wait: true, signal: AbortSignal.timeout(540_000) }))
    all.push(result);
  return all;
}
