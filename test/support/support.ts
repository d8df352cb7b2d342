// Helpers shared by test files.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { DiadError, type DiadErrorCode } from '../../lib/index.js';

export const root = path.resolve(import.meta.dirname, '..', '..');
export const baseBundle = path.join(root, 'models', 'base');
/** A miniature bundle of the published design with random weights, created by the set-up. */
export const publishedBundle = path.join(root, 'build', 'fixtures', 'published');
export const python = path.join(root, '.venv', 'bin', 'python');

/**
 * Time limit below mocha's, so that the message names the hanging part. Generous, because tests must not
 * depend on the speed of the machine.
 */
export const HANG_GUARD_MS = 540_000;

/** Waits until a condition holds. */
export async function until(holds: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const end = Date.now() + HANG_GUARD_MS;
  while (!(await holds())) {
    if (Date.now() > end) assert.fail(`never: ${what}`);
    await sleep(20);
  }
}

/** Reads an image from examples/. */
export const example = (name: string): Promise<Buffer> => readFile(path.join(root, 'examples', name));

/** Asserts that a promise rejects with a DiadError with this code and a matching message. */
export async function rejects(promise: Promise<unknown>, code: DiadErrorCode, message = /./): Promise<void> {
  await assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof DiadError, `not a DiadError: ${String(error)}`);
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

/** Runs `use` with a temporary folder that is removed afterwards. */
export async function inFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'diad-'));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Runs `use` with a private copy of the bundle of the published design. */
export function withBundleCopy<T>(use: (bundle: string) => Promise<T>): Promise<T> {
  return inFolder(async (folder) => {
    const copy = path.join(folder, 'bundle');
    await cp(publishedBundle, copy, { recursive: true });
    return use(copy);
  });
}

/** Edits a bundle's manifest and updates its hashes. */
export async function editManifest(
  bundle: string,
  edit: (manifest: Record<string, never>) => void,
): Promise<void> {
  const file = path.join(bundle, 'manifest.json');
  const manifest = JSON.parse(await readFile(file, 'utf8')) as Record<string, never>;
  edit(manifest);
  const text = JSON.stringify(manifest);
  await writeFile(file, text);
  await writeFile(
    path.join(bundle, 'manifest.sha256'),
    `${createHash('sha256').update(text).digest('hex')}\n`,
  );
}

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; kills it if it hangs. */
export function runProgram(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  cwd = root,
): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: HANG_GUARD_MS,
      killSignal: 'SIGKILL',
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (stdout += chunk));
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
    child.once('error', reject);
    child.once('close', (code, signal) => {
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** Runs the text of an ES module in a new Node process; `diad` resolves to the built package. */
export function runModule(source: string, args: readonly string[] = []): Promise<Finished> {
  const imports = `import { Diad, DiadError } from ${JSON.stringify(path.join(root, 'dist', 'index.js'))};\n`;
  return runProgram(process.execPath, ['--input-type=module', '-e', imports + source, ...args]);
}
