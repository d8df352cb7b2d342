// A `diad serve` process of its own with a miniature of the published design, whose scores the reference gives.
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { root } from './record.mjs';

/** Set-up makes it, see scripts/setup.mjs. */
const bundle = path.join(root, 'build', 'fixtures', 'published');

/** Runs `use` with a server that is ready; ends it with SIGTERM afterwards. Returns what `use` returned and the server's exit code. */
export async function serving(args, use) {
  const main = path.join(root, 'dist', 'cli', 'main.js');
  const child = spawn(
    process.execPath,
    [main, 'serve', '--port', '0', '--log-level', 'error', '--model', bundle, ...args],
    {
      cwd: root,
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  );
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text) => (log += text));
  const exited = new Promise((resolve) => child.once('exit', (code, signal) => resolve(signal ?? code)));
  try {
    while (!log.includes('diad: ready\n')) {
      if (child.exitCode !== null) throw new Error(`diad serve ended:\n${log}`);
      await sleep(50);
    }
    const url = /diad: listening on (\S+)/.exec(log)[1];
    const result = await use({
      url,
      pid: child.pid,
      ended: () => child.exitCode !== null || child.signalCode !== null,
    });
    child.kill('SIGTERM');
    return { result, exit: await exited, log };
  } finally {
    child.kill('SIGKILL');
  }
}

/** MiB that a process holds in memory. */
export async function residentMiB(pid) {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)[1]) / 1024;
}

/** An image of the bundle's golden results, and the reference's score of it. */
export async function golden() {
  const folder = path.join(bundle, 'golden');
  const { cases } = JSON.parse(await readFile(path.join(folder, 'golden.json'), 'utf8'));
  const { image, seed, score } = cases[0];
  return { bytes: await readFile(path.join(folder, image)), seed, score };
}

/** Posts an image for its score. */
export const score = (url, bytes, query = '') =>
  fetch(`${url}/v1/score${query}`, { method: 'POST', body: bytes });
