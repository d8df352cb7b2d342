// Shared by all groups: test bundle and image, memory, seeded random numbers, child processes.
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

/** Whether an error is a documented DiadError. Any other error from the library is a finding. */
export const isDiadError = (error) =>
  error?.name === 'DiadError' && /^ERR_DIAD_/.test(error.code) && error.code !== 'ERR_DIAD_INTERNAL';

/** Creates a seeded random generator (mulberry32), so that findings are reproducible. */
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

/** Rejects if `promise` does not settle within `ms`. */
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
 * Counts the threads of this process once none has ended for half a second. The thread that destroys a closed
 * model ends slightly after close() has resolved.
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

/** Computes the least-squares slope of y over x. */
export function slope(xs, ys) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [mx, my] = [mean(xs), mean(ys)];
  return (
    xs.reduce((sum, x, i) => sum + (x - mx) * (ys[i] - my), 0) / xs.reduce((sum, x) => sum + (x - mx) ** 2, 0)
  );
}

/** Runs the source of an ES module in a new Node process, with `Diad` and `image` defined. */
export function nodeChild(source, { nodeArgs = [], wrapper = [], timeout = 120_000, prelude = true } = {}) {
  const lead = `import { readFileSync } from 'node:fs';
import { Diad, DiadError } from ${JSON.stringify(libraryUrl)};
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

/** Runs a program until it exits. `closed` is the time of its exit, from Date.now(). */
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

/** Waits until nothing is queued or running. */
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
