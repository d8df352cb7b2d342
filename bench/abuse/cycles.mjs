// Loading and closing the base bundle over and over.
import { library, readTestImage, rss, settledThreads, slope } from './harness.mjs';

export const abuse = 'load/score/close cycles of models/base';
export const mustHold =
  'scores golden; no thread stays; RSS slope < 20 KiB a cycle after warm-up (judged from 100 cycles on)';
export const amounts = { short: 5, full: 300 };

const MOST_SLOPE_KIB = 20;

export async function run(count) {
  const { Diad } = await library();
  const failures = [];
  const image = readTestImage();
  let [golden, threadsBefore] = [undefined, 0];
  const [xs, ys] = [[], []];
  const warmup = Math.floor(count / 3);
  for (let i = 0; i < count; i++) {
    const diad = await Diad.load(undefined, { warmup: false, threads: 2 });
    const { score } = await diad.score(image);
    golden ??= score;
    if (score !== golden) failures.push(`cycle ${i}: score ${score}, not ${golden}`);
    await diad.close();
    globalThis.gc();
    if (i === 0) threadsBefore = await settledThreads();
    if (i >= warmup) {
      xs.push(i);
      ys.push(rss() / 1024);
    }
  }
  const kib = slope(xs, ys);
  const more = (await settledThreads()) - threadsBefore;
  if (more > 0) failures.push(`${more} threads more than after the first cycle`);
  if (count >= 100 && kib >= MOST_SLOPE_KIB) failures.push(`RSS grows by ${kib.toFixed(1)} KiB a cycle`);
  if (count < 100)
    return {
      measured: `${count} cycles, ${more} threads more, ${failures.length} bad; the slope is judged from 100 cycles on`,
      failures,
    };
  return {
    measured: `${kib.toFixed(1)} KiB a cycle over the last ${xs.length} of ${count}, ${more} threads more`,
    failures,
  };
}
