// close() during work, twice, from two places, and instances that are dropped without it.
import { library, megabytes, readTestImage, randomNumbers, rss, sleep, within } from './harness.mjs';

export const abuse = 'close() during work, twice, from two places; garbage-collected without close';
export const mustHold =
  'pending calls reject ERR_DIAD_CLOSED or finish; memory returns (RSS growth over the second half < 40 MB)';
export const amounts = { short: 24, full: 2000 };

const MOST_GROWTH_MB = 40;

async function closeDuringWork(Diad, image, golden, random, failures) {
  const diad = await Diad.load(undefined, { warmup: false, maxBatch: 1 + Math.floor(random() * 3) });
  const pending = Array.from({ length: 1 + Math.floor(random() * 5) }, () => diad.score(image));
  const outcomes = Promise.allSettled(pending);
  await sleep(random() * 150);
  const later = sleep(random() * 20).then(() => diad.close());
  await within(20_000, Promise.all([diad.close(), diad.close(), later]), 'close()');
  for (const outcome of await within(20_000, outcomes, 'settling what was pending')) {
    const good =
      outcome.status === 'fulfilled'
        ? Math.abs(outcome.value.score / golden - 1) < 1e-5
        : outcome.reason.code === 'ERR_DIAD_CLOSED';
    if (!good)
      failures.push(outcome.status === 'fulfilled' ? `score ${outcome.value.score}` : String(outcome.reason));
  }
}

export async function run(count) {
  const { Diad } = await library();
  const random = randomNumbers(3);
  const failures = [];
  const image = readTestImage();
  const steady = await Diad.load();
  const golden = (await steady.score(image)).score;
  let half = rss();
  for (let i = 0; i < count; i++) {
    if (i === count >> 1) half = rss();
    if (i % 4 === 3) {
      const dropped = await Diad.load(undefined, { warmup: false });
      const pending = dropped.score(image); // keeps its engine alive until it is done
      globalThis.gc();
      const { score } = await within(20_000, pending, 'a score whose Diad nobody holds');
      if (score !== golden) failures.push(`a forgotten Diad scored ${score}, not ${golden}`);
    } else {
      await closeDuringWork(Diad, image, golden, random, failures);
    }
    if (i % 8 === 7) {
      globalThis.gc();
      await sleep(5); // finalizers
      const { score } = await steady.score(image);
      if (score !== golden) failures.push(`after ${i + 1} closings the score is ${score}, not ${golden}`);
    }
  }
  const growth = megabytes(rss() - half);
  if (count >= 100 && growth > MOST_GROWTH_MB)
    failures.push(`RSS grew by ${growth.toFixed(1)} MB in the second half`);
  await steady.close();
  return {
    measured: `${count} instances, ${failures.length} bad; RSS growth of the second half ${growth.toFixed(1)} MB`,
    failures,
  };
}
