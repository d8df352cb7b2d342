// Batches, pictures and loads that do not fit: the address space is cut to little more than what the process has.
import { nodeChild } from './harness.mjs';

export const abuse =
  'out of memory: address space (RLIMIT_AS) a little above what is in use; a batch of 32, a picture of 100 megapixels, a load';
export const mustHold =
  'each a result or ERR_DIAD_OUT_OF_MEMORY, a batch tried again in smaller ones; no crash; next score golden once there is memory again';
export const amounts = { short: 2, full: 50 };

/** Megabytes above what is mapped, less than the batch needs. V8 must find its own: it ends the process when it does not. */
const HEADROOMS = [64, 128, 96, 48, 192, 80];

// The process limits itself once everything is loaded and warm: what fails then are the engine's and the decoder's own allocations.
const source = (headroom) => `
  import { execFileSync } from 'node:child_process';
  import sharp from 'sharp';
  const large = await sharp({ create: { width: 10_000, height: 10_000, channels: 3, background: '#445566' } }).png().toBuffer();
  const diad = await Diad.load(undefined, { maxBatch: 32, threads: 1, maxDelayMs: 50 });
  const golden = (await diad.score(image)).score;
  const limit = (bytes) => execFileSync('prlimit', ['--pid', String(process.pid), '--as=' + bytes + ':']);
  const frame = { data: new Uint8Array(128 * 128 * 3).fill(90), width: 128, height: 128, channels: 3 };
  const tally = {};
  const count = (key) => (tally[key] = (tally[key] ?? 0) + 1);
  const refusal = (what, error) => count(what + (error?.code === 'ERR_DIAD_OUT_OF_MEMORY' ? ' refused' : ': ' + error?.code + ' ' + error?.message));
  const size = Number(/VmSize:\\s+(\\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
  limit(size + ${headroom} * 2 ** 20);
  const calls = Array.from({ length: 32 }, (_, seed) => diad.score(frame, { seed }));
  for (const { status, value, reason } of await Promise.allSettled(calls)) {
    if (status === 'rejected') refusal('picture of a batch', reason);
    else count(Number.isFinite(value.score) ? (value.batchSize === 32 ? 'scored in the batch' : 'scored in a smaller batch') : 'no number');
  }
  await diad.score(large).then(() => count('large picture scored'), (error) => refusal('large picture', error));
  await Diad.load(undefined, { maxBatch: 3, threads: 1 }).then(
    async (other) => { count('loaded'); await other.close(); },
    (error) => refusal('load', error),
  );
  limit('unlimited');
  const after = (await diad.score(image)).score;
  console.log(JSON.stringify({ tally, golden: after === golden }));
  await diad.close();`;

const ALLOWED = /^(scored in (the|a smaller) batch|large picture scored|loaded|(picture of a batch|large picture|load) refused)$/;

export async function run(count) {
  const failures = [];
  const tally = {};
  for (let i = 0; i < count; i++) {
    const headroom = HEADROOMS[i % HEADROOMS.length];
    // With a small young space and without its compilers V8 asks for next to nothing.
    const nodeArgs = ['--jitless', '--single-threaded', '--max-semi-space-size=1'];
    const ended = await nodeChild(source(headroom), { nodeArgs, timeout: 180_000 });
    if (ended.code !== 0) {
      failures.push(`${headroom} MB: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-400)}`);
      continue;
    }
    const outcome = JSON.parse(ended.stdout);
    if (!outcome.golden) failures.push(`${headroom} MB: the next score is not golden`);
    for (const [key, times] of Object.entries(outcome.tally)) {
      tally[key] = (tally[key] ?? 0) + times;
      if (!ALLOWED.test(key)) failures.push(`${headroom} MB: ${key}`);
    }
  }
  const refused = Object.entries(tally).filter(([key]) => key.endsWith('refused'));
  if (refused.length === 0) failures.push('nothing was refused: the group shows nothing');
  const seen = Object.entries(tally).map(([key, times]) => `${times} ${key}`);
  return { measured: `${count} processes: ${seen.sort().join(', ')}; ${failures.length} bad`, failures };
}
