// Runs commands that are implemented in the Python reference.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { once } from 'node:events';
import path from 'node:path';
import process from 'node:process';
import type { Readable } from 'node:stream';
import { packageRoot } from '../native/addon.js';

/** Finds a Python with the reference's dependencies: DIAD_PYTHON, ./.venv, the package's .venv, python3. */
function findPython(): string {
  const ofVenv = ['', packageRoot]
    .map((folder) => path.resolve(folder, '.venv', 'bin', 'python'))
    .find((python) => existsSync(python));
  return process.env['DIAD_PYTHON'] ?? ofVenv ?? 'python3';
}

const source = path.join(packageRoot, 'python');
const NEEDED =
  'it needs Python 3.11 or newer with PyTorch 2.11 to 2.13 and diad-reference ' +
  `(pip install ${source}); set DIAD_PYTHON to that Python`;

/**
 * Runs `python -m diad_reference COMMAND ARGS`. Adopts its exit code and forwards SIGINT and SIGTERM.
 *
 * @param show - reads its standard output; by default it inherits that of this process
 * @returns the exit code
 */
export async function runReference(
  command: string,
  args: readonly string[],
  show?: (output: Readable) => Promise<void>,
): Promise<number> {
  const python = findPython();
  const paths = [
    ...(existsSync(source) ? [source] : []),
    ...(process.env['PYTHONPATH'] ?? '').split(path.delimiter).filter(Boolean),
  ];
  const child = spawn(python, ['-m', 'diad_reference', command, ...args], {
    stdio: ['inherit', show === undefined ? 'inherit' : 'pipe', 'inherit'],
    env: { ...process.env, PYTHONPATH: paths.join(path.delimiter) },
  });
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on('SIGINT', forward).on('SIGTERM', forward);
  try {
    const [[code, signal]] = (await Promise.all([
      once(child, 'close'),
      child.stdout === null ? undefined : show?.(child.stdout),
    ])) as [[number | null, NodeJS.Signals | null], undefined];
    const status = code ?? (signal === 'SIGINT' ? 130 : 1);
    if (status !== 0) process.exitCode = status;
    return status;
  } catch (error) {
    throw new Error(`diad ${command} cannot start ${python}: ${NEEDED}`, { cause: error });
  } finally {
    process.off('SIGINT', forward).off('SIGTERM', forward);
  }
}
