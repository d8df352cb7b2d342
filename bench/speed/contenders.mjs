// The processes that a bench compares: each loads its model once and then answers a line with a measurement.
import { spawn } from 'node:child_process';
import path from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const python = path.join(
  root,
  '.venv',
  process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python',
);

async function start(command, args, env) {
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${command} ${args.join(' ')} ended without an answer`);
    return JSON.parse(value);
  };
  const ask = (line) => {
    child.stdin.write(`${line}\n`);
    return answer();
  };
  return { ready: await answer(), ask, stop: () => child.stdin.end() };
}

/** diad in a Node process of its own; `time(n)` gives { ms, timings } of n images together. */
export async function diadContender(bundle, { device = 'cpu', precision = 'float32', maxBatch = 8 } = {}) {
  const script = path.join(root, 'bench', 'speed', 'node_timing.mjs');
  const args = [
    script,
    '--bundle',
    bundle,
    '--device',
    device,
    '--precision',
    precision,
    '--max-batch',
    String(maxBatch),
  ];
  const { ready, ask, stop } = await start(process.execPath, args, {});
  return { ready, time: (n) => ask(n), peakMiB: () => ask('memory'), stop };
}

/** The Python reference; mode 'as-published', 'lossless' or 'compiled'; `time(n)` gives { ms } of n images together. */
export async function referenceContender(config, mode, device = 'cpu') {
  const args = [
    path.join(root, 'bench', 'speed', 'reference_timing.py'),
    '--config',
    config,
    '--mode',
    mode,
    '--device',
    device,
  ];
  const { ready, ask, stop } = await start(python, args, {
    PYTHONPATH: path.join(root, 'python'),
    PYTHONWARNINGS: 'ignore',
  });
  return {
    ready,
    time: async (n) => ({ ms: await ask(n) }),
    gemm: () => ask('gemm'),
    peakMiB: () => ask('memory'),
    stop,
  };
}
