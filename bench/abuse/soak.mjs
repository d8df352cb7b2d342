// Scores without end: memory and the golden score.
import os from 'node:os';
import { library, megabytes, readTestImage, rss, slope } from './harness.mjs';

export const abuse = 'demo scores in a row (100,000 or 2 hours, whichever is shorter)';
export const mustHold = 'RSS growth < 30 MB after the first twentieth, no drift in the golden score';
export const amounts = { short: 60, full: 100_000 };

const MOST_GROWTH_MB = 30;
const LONGEST_MINUTES = 120;
const SAMPLE_MS = 60_000;

export async function run(count, _full, minutes) {
  const { Diad } = await library();
  const failures = [];
  const image = readTestImage();
  const diad = await Diad.load(undefined, { maxBatch: 1 });
  const golden = (await diad.score(image)).score;
  const longest = Math.min(minutes, LONGEST_MINUTES) * 60_000;
  const started = performance.now();
  const passed = () => performance.now() - started;
  const series = []; // of {minute, scores, rssMb, load}: load is that of the whole machine over the last minute
  let [before, done, drifted] = [0, 0, 0];
  while (done < count && passed() < longest) {
    const results = await Promise.all(Array.from({ length: 4 }, () => diad.score(image)));
    drifted += results.filter(({ score }) => score !== golden).length;
    done += results.length;
    if (before === 0 && (done >= count / 20 || passed() >= longest / 20)) {
      globalThis.gc();
      before = rss();
    }
    if (passed() >= series.length * SAMPLE_MS) {
      series.push({
        minute: Math.floor(passed() / 60_000),
        scores: done,
        rssMb: Math.round(megabytes(rss())),
        load: os.loadavg()[0],
      });
    }
  }
  globalThis.gc();
  const last = rss();
  const growth = megabytes(last - before);
  if (drifted > 0) failures.push(`${drifted} scores other than ${golden}`);
  if (done >= 1000 && growth >= MOST_GROWTH_MB) failures.push(`RSS grew by ${growth.toFixed(1)} MB`);
  await diad.close();
  const settled = series.slice(Math.ceil(series.length / 20));
  const kib = slope(
    settled.map(({ scores }) => scores / 1000),
    settled.map(({ rssMb }) => rssMb * 1024),
  );
  const loads = series.map(({ load }) => load);
  const memory = `RSS ${megabytes(before).toFixed(0)} MB after warm-up, ${megabytes(last).toFixed(0)} MB at the end (${growth.toFixed(1)} MB more)`;
  const trend = settled.length > 2 ? `, ${kib.toFixed(0)} KiB a thousand scores` : '';
  const load = `load of the machine ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)}`;
  return {
    amount: done,
    measured: `${done} scores in ${(passed() / 60_000).toFixed(1)} minutes, ${memory}${trend}, ${drifted} that drifted; ${load}`,
    failures,
    series,
  };
}
