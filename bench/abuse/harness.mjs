// What the groups of abuses share: the engine to abuse, golden scores, memory, a seeded random generator, children.
import { spawn } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const baseBundle = path.join(root, 'build', 'fixtures', 'published');
export const libraryUrl = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
export const python = path.join(root, '.venv', 'bin', 'python');

export const imageFile = path.join(root, 'examples', 'gear-good.png');
export const readTestImage = () => readFileSync(imageFile);

/** Codes a caller may meet; anything else that leaves the library is a finding. */
export const isDiadError = (error) =>
  error?.name === 'DiadError' && /^ERR_DIAD_/.test(error.code) && error.code !== 'ERR_DIAD_INTERNAL';

/** mulberry32: the same sequence for the same seed, so that a finding can be met again. */
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const megabytes = (bytes) => bytes / 2 ** 20;
export const rss = () => process.memoryUsage.rss();

/** Rejects when `promise` is not settled after `ms`. */
export async function within(ms, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * How many threads this process has once none has ended for half a second: the one that destroys a closed model ends by itself a moment
 * after close() has resolved, on a busy machine later than the next statement.
 */
export async function settledThreads() {
  const threads = () => readdirSync('/proc/self/task').length;
  let fewest = threads();
  for (let quiet = 0; quiet < 500; quiet += 20) {
    await sleep(20);
    const now = threads();
    if (now < fewest) [fewest, quiet] = [now, 0];
  }
  return fewest;
}

/** Slope of y over x by least squares. */
export function slope(xs, ys) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [mx, my] = [mean(xs), mean(ys)];
  return (
    xs.reduce((sum, x, i) => sum + (x - mx) * (ys[i] - my), 0) / xs.reduce((sum, x) => sum + (x - mx) ** 2, 0)
  );
}

/** Runs an ES module given as text in a Node of its own; `Diad` and `image` are there. */
export function nodeChild(source, { nodeArgs = [], wrapper = [], timeout = 120_000, prelude = true } = {}) {
  const lead = `import { readFileSync } from 'node:fs'; import { Diad, DiadError } from ${JSON.stringify(libraryUrl)};
const image = readFileSync(${JSON.stringify(imageFile)});\n`;
  const command = [
    ...wrapper,
    process.execPath,
    ...nodeArgs,
    '--input-type=module',
    '-e',
    (prelude ? lead : '') + source,
  ];
  return child(command, timeout);
}

/** Runs a program to its end; `closed` is when it was gone, by Date.now(). */
export function child([program, ...args], timeout = 120_000, onStart = () => {}) {
  return new Promise((resolve, reject) => {
    const running = spawn(program, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
    let [stdout, stderr, late] = ['', '', false];
    const timer = setTimeout(() => {
      late = true;
      running.kill('SIGKILL');
    }, timeout);
    running.stdout.setEncoding('utf8').on('data', (chunk) => (stdout += chunk));
    running.stderr.setEncoding('utf8').on('data', (chunk) => (stderr += chunk));
    running.once('error', reject);
    running.once('exit', (code, signal) => {
      const closed = Date.now();
      running.once('close', () => {
        clearTimeout(timer);
        resolve({ code, signal, stdout, stderr, closed, late });
      });
    });
    onStart(running);
  });
}

/** Loads the built library. */
export const library = () => import(libraryUrl);

/** Waits until nothing is queued or running; the queue must come to that by itself. */
export async function untilIdle(diad) {
  await within(
    60_000,
    (async () => {
      for (;;) {
        const { queued, running } = diad.stats();
        if (queued + running === 0) return;
        await sleep(5);
      }
    })(),
    'emptying the queue',
  );
}
