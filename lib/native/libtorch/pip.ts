// Downloads wheels with the user's pip, so that its index, proxy, certificates and constraints apply.
import { execFile, spawn } from 'node:child_process';
import { access, readdir } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { promisify } from 'node:util';
import { DiadError } from '../../errors.js';

const run = promisify(execFile);

/** A Python with a working pip. */
export interface Pip {
  readonly python: string;
  /** Whether pip supports --resume-retries. */
  readonly resumes: boolean;
}

/** Returns the Pythons to try, in order: only `asked` if given, else DIAD_PYTHON, ./.venv, PATH. */
function candidates(asked: string | undefined): readonly string[] {
  if (asked !== undefined) return [asked];
  const variable = process.env['DIAD_PYTHON'] || undefined;
  const windows = process.platform === 'win32';
  const venv = path.join(
    process.cwd(),
    '.venv',
    ...(windows ? ['Scripts', 'python.exe'] : ['bin', 'python']),
  );
  return [
    ...(variable === undefined ? [] : [variable]),
    venv,
    ...(windows ? ['python', 'py'] : ['python3', 'python']),
  ];
}

/**
 * Finds a Python with pip.
 *
 * @param asked - the only Python to try
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND when no Python has pip
 */
export async function findPip(asked?: string): Promise<Pip> {
  const reasons: string[] = [];
  for (const python of candidates(asked)) {
    const isFile = path.isAbsolute(python);
    if (
      isFile &&
      !(await access(python).then(
        () => true,
        () => false,
      ))
    ) {
      reasons.push(`${python}: file not found`);
      continue;
    }
    try {
      const { stdout } = await run(python, ['-m', 'pip', 'download', '--help'], { timeout: 60_000 });
      return { python, resumes: stdout.includes('--resume-retries') };
    } catch (error) {
      const { stderr = '', message } = error as { stderr?: string; message: string };
      const last = stderr.trim().split('\n').at(-1);
      reasons.push(`${python}: ${last === undefined || last === '' ? (message.split('\n')[0] ?? '') : last}`);
    }
  }
  const tried = reasons.map((reason) => `  - ${reason}`).join('\n');
  throw new DiadError(
    'ERR_DIAD_LIBTORCH_NOT_FOUND',
    `No Python with pip was found, which is needed to download LibTorch. Tried:\n${tried}\n` +
      'Install Python with pip, set --python or DIAD_PYTHON, ' +
      'or install the npm package with the libraries instead.',
  );
}

/** Options of {@link pipDownload}. */
export interface Download {
  /** Requirements in pip syntax, for example "torch==2.13.0+cpu". */
  readonly requirements: readonly string[];
  readonly folder: string;
  /** Whether to download their dependencies too. */
  readonly withDependencies: boolean;
  /** Passed to pip. Default: pip's configuration. */
  readonly indexUrl?: string | undefined;
  /** Receives pip's progress output. */
  readonly onOutput: (text: string) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Downloads wheels into a folder. Skips wheels that are already there with the right hash.
 *
 * @returns the wheels in the folder
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND with pip's error message; the signal's reason when it aborts
 */
export async function pipDownload(pip: Pip, download: Download): Promise<readonly string[]> {
  const { requirements, folder, indexUrl, signal } = download;
  const args = [
    ...['-m', 'pip', 'download', '--disable-pip-version-check', '--only-binary', ':all:', '--dest', folder],
    ...(download.withDependencies ? [] : ['--no-deps']),
    ...(pip.resumes ? ['--resume-retries', '10'] : []),
    ...(indexUrl === undefined ? [] : ['--index-url', indexUrl]),
    ...requirements,
  ];
  const { code, stderr } = await new Promise<{ code: number | null; stderr: string }>((resolve, reject) => {
    const child = spawn(pip.python, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const stop = (): void => {
      child.kill();
    };
    signal?.addEventListener('abort', stop, { once: true });
    let errors = '';
    child.stdout.setEncoding('utf8').on('data', download.onOutput);
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      errors += chunk;
    });
    child.once('error', reject);
    child.once('close', (status) => {
      signal?.removeEventListener('abort', stop);
      resolve({ code: status, stderr: errors });
    });
  });
  signal?.throwIfAborted();
  if (code !== 0) {
    const said = stderr
      .split('\n')
      .filter((line) => line.startsWith('ERROR'))
      .slice(-3)
      .join('\n');
    throw new DiadError(
      'ERR_DIAD_LIBTORCH_NOT_FOUND',
      `pip could not download ${requirements.join(' ')}:\n${said === '' ? stderr.trim().slice(-600) : said}`,
    );
  }
  return (await readdir(folder))
    .filter((name) => name.endsWith('.whl'))
    .map((name) => path.join(folder, name));
}
