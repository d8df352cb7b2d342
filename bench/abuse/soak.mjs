// Scores without end: memory and the golden score.
import { library, megabytes, picture, rss } from './harness.mjs';

export const abuse = 'demo scores in a row (or 2 hours, whichever is shorter)';
export const mustHold = 'RSS growth < 30 MB after the first twentieth, no drift in the golden score';
export const amounts = { short: 60, full: 100_000 };

const MOST_GROWTH_MB = 30;
const LONGEST_MS = 2 * 3600 * 1000;

export async function run(count) {
  const { Diad } = await library();
  const failures = [];
  const image = picture();
  const diad = await Diad.load(undefined, { maxBatch: 1 });
  const golden = (await diad.score(image)).score;
  const started = performance.now();
  let [before, done, highest] = [0, 0, 0];
  while (done < count && performance.now() - started < LONGEST_MS) {
    const results = await Promise.all(Array.from({ length: 4 }, () => diad.score(image)));
    for (const { score } of results) if (score !== golden) failures.push(`score ${score}, not ${golden}`);
    done += results.length;
    if (before === 0 && done >= count / 20) {
      globalThis.gc();
      before = rss();
    }
    if (done % 400 === 0) highest = Math.max(highest, rss());
  }
  globalThis.gc();
  const growth = megabytes(rss() - before);
  if (count >= 1000 && growth >= MOST_GROWTH_MB) failures.push(`RSS grew by ${growth.toFixed(1)} MB`);
  await diad.close();
  const seconds = (performance.now() - started) / 1000;
  return {
    measured: `${done} scores in ${seconds.toFixed(0)} s, RSS growth ${growth.toFixed(1)} MB, ${failures.length} that drifted`,
    failures,
  };
}
