// Batches, images and loads that do not fit: allocations above a limit are refused (short_memory.c), first for large blocks only.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { nodeChild, root } from './harness.mjs';

export const abuse =
  'out of memory: blocks above a limit refused to a batch of 24, an image of 100 megapixels and a load';
export const mustHold =
  'each a result or ERR_DIAD_OUT_OF_MEMORY, a batch tried again in smaller ones; no crash; next score golden once there is memory again';
export const amounts = { short: 1, full: 50 };

/** The largest block a process gets, kilobytes; several in turn, from what a whole batch nearly fits into to less than one image needs. */
const LIMITS = [16_000, 6000, 2000, 600, 200];

const source = (file, limits) => `
  import { openSync, writeSync } from 'node:fs';
  import sharp from 'sharp';
  const large = await sharp({ create: { width: 10_000, height: 10_000, channels: 3, background: '#445566' } }).png().toBuffer();
  const diad = await Diad.load(undefined, { maxBatch: 24, threads: 1, maxDelayMs: 50 });
  const golden = (await diad.score(image)).score;
  const limitFile = openSync(${JSON.stringify(file)}, 'r+');
  const limit = (kilobytes) => writeSync(limitFile, new BigUint64Array([BigInt(kilobytes) * 1000n]), 0, 8, 0);
  const frame = { data: new Uint8Array(128 * 128 * 3).fill(90), width: 128, height: 128, channels: 3 };
  const tally = {};
  const count = (key) => (tally[key] = (tally[key] ?? 0) + 1);
  const refusal = (what, error) => count(what + (error?.code === 'ERR_DIAD_OUT_OF_MEMORY' ? ' refused' : ': ' + error?.code + ' ' + error?.message));
  let drifted = 0;
  for (const kilobytes of ${JSON.stringify(limits)}) {
    const calls = Array.from({ length: 24 }, (_, seed) => diad.score(frame, { seed }));
    limit(kilobytes);
    for (const { status, value, reason } of await Promise.allSettled(calls)) {
      if (status === 'rejected') refusal('image of a batch', reason);
      else count(Number.isFinite(value.score) ? (value.batchSize === 24 ? 'scored in the batch' : 'scored in a smaller batch') : 'no number');
    }
    await diad.score(large).then(() => count('large image scored'), (error) => refusal('large image', error));
    await Diad.load(undefined, { maxBatch: 3, threads: 1 }).then(
      async (other) => { count('loaded'); await other.close(); },
      (error) => refusal('load', error),
    );
    limit(0);
    if ((await diad.score(image)).score !== golden) drifted++;
  }
  console.log(JSON.stringify({ tally, drifted }));
  await diad.close();`;

const ALLOWED =
  /^(scored in (the|a smaller) batch|large image scored|loaded|(image of a batch|large image|load) refused)$/;

export async function run(count) {
  const failures = [];
  const tally = {};
  const folder = mkdtempSync(path.join(os.tmpdir(), 'diad-memory-'));
  try {
    const library = path.join(folder, 'short_memory.so');
    execFileSync(
      'gcc',
      ['-shared', '-fPIC', '-O1', '-o', library, path.join(root, 'bench', 'abuse', 'short_memory.c')],
      {
        stdio: 'inherit',
      },
    );
    const file = path.join(folder, 'limit');
    for (let i = 0; i < count; i++) {
      writeFileSync(file, new Uint8Array(8));
      const limits = LIMITS.map((kilobytes) => Math.round(kilobytes * (1 - i / (2 * count))));
      const wrapper = ['env', `LD_PRELOAD=${library}`, `SHORT_MEMORY=${file}`];
      const ended = await nodeChild(source(file, limits), { wrapper, timeout: 300_000 });
      if (ended.code !== 0) {
        failures.push(
          `process ${i}: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-400)}`,
        );
        continue;
      }
      const outcome = JSON.parse(ended.stdout);
      if (outcome.drifted > 0)
        failures.push(`process ${i}: ${outcome.drifted} next scores that are not golden`);
      for (const [key, times] of Object.entries(outcome.tally)) {
        tally[key] = (tally[key] ?? 0) + times;
        if (!ALLOWED.test(key)) failures.push(`process ${i}: ${key}`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  for (const seen of ['image of a batch refused', 'scored in a smaller batch', 'load refused']) {
    if (tally[seen] === undefined) failures.push(`nothing was ${seen}: the group shows too little`);
  }
  const seen = Object.entries(tally).map(([key, times]) => `${times} ${key}`);
  return {
    measured: `${count} processes, ${LIMITS.length} limits each: ${seen.sort().join(', ')}; ${failures.length} bad`,
    failures,
  };
}
