// Commands that the Python reference carries out: its output is the command's own.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { once } from 'node:events';
import path from 'node:path';
import process from 'node:process';
import type { Readable } from 'node:stream';
import { packageRoot } from '../native.js';

/** The Python that has the reference's dependencies: DIAD_PYTHON, that of ./.venv, of the package's .venv, python3. */
function findPython(): string {
  const ofVenv = ['', packageRoot]
    .map((folder) => path.resolve(folder, '.venv', 'bin', 'python'))
    .find((python) => existsSync(python));
  return process.env['DIAD_PYTHON'] ?? ofVenv ?? 'python3';
}

const source = path.join(packageRoot, 'python');
const NEEDED = `it needs Python 3.11 or newer with PyTorch 2.11 to 2.13 and diad-reference (pip install ${source}); name it with DIAD_PYTHON`;

/**
 * Runs `python -m diad_reference COMMAND ARGS`; its exit code becomes this process's. SIGINT and SIGTERM go on to it.
 *
 * @param show - reads what it writes to standard output; by default that is this process's
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
