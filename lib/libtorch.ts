// Where LibTorch is: the places it is looked for, in order, each miss with its reason.
import { execFile } from 'node:child_process';
import { access, readdir, readFile, realpath } from 'node:fs/promises';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { promisify } from 'node:util';
import { DiadError } from './errors.js';

/** A LibTorch that was found. */
export interface LibTorch {
  /** Folder that holds libtorch.so. */
  readonly libFolder: string;
  /** Its version, for example "2.13.0+cpu". */
  readonly version: string;
  /** Which place it was found in, in words. */
  readonly source: string;
}

/** A place that was looked at without success. */
export interface Miss {
  readonly source: string;
  readonly reason: string;
}

interface Place {
  readonly source: string;
  /** Folders of a LibTorch distribution or torch package (holding lib/), or a reason why there is none. */
  readonly find: () => Promise<readonly string[] | string>;
}

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  );

/** Minor of a version: "2.13" of "2.13.0+cpu". */
export function minorOf(version: string): string {
  return version.split('.').slice(0, 2).join('.');
}

async function readVersion(folder: string): Promise<string | undefined> {
  const sources = [
    [path.join(folder, 'version.py'), /__version__ = '([^']+)'/],
    [path.join(folder, 'build-version'), /^(\S+)/],
  ] as const;
  for (const [file, pattern] of sources) {
    const content = await readFile(file, 'utf8').catch(() => '');
    const version = pattern.exec(content)?.[1];
    if (version !== undefined) return version;
  }
  return undefined;
}

async function torchInVenv(project: string): Promise<readonly string[] | string> {
  const lib = path.join(project, '.venv', 'lib');
  const pythons = await readdir(lib).catch(() => []);
  const folders = pythons.map((python) => path.join(lib, python, 'site-packages', 'torch'));
  return folders.length > 0 ? folders : `there is no ${path.join(project, '.venv')}`;
}

async function torchOfPython(python: string): Promise<readonly string[] | string> {
  const find = 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")';
  try {
    const { stdout } = await promisify(execFile)(python, ['-c', find], { timeout: 20_000 });
    return stdout.trim() === '' ? `${python} has no package torch` : [stdout.trim()];
  } catch (error) {
    return `${python} cannot be run (${error instanceof Error ? error.message.split('\n')[0] : String(error)})`;
  }
}

function torchOfPackage(name: string): readonly string[] | string {
  try {
    return [path.dirname(createRequire(path.join(process.cwd(), 'package.json')).resolve(`${name}/package.json`))];
  } catch {
    return `the package ${name} is not installed`;
  }
}

function cacheFolder(): string {
  return path.join(process.env['XDG_CACHE_HOME'] ?? path.join(os.homedir(), '.cache'), 'diad', 'libtorch');
}

function places(option: string | undefined, packageRoot: string): readonly Place[] {
  const { DIAD_LIBTORCH: variable, DIAD_PYTHON: python } = process.env;
  const packaged = `@diad/libtorch-${process.platform}-${process.arch}`;
  const cached = async (): Promise<readonly string[] | string> => {
    const versions = await readdir(cacheFolder()).catch(() => []);
    return versions.length > 0
      ? versions
          .sort()
          .reverse()
          .map((version) => path.join(cacheFolder(), version))
      : `${cacheFolder()} is empty`;
  };
  const named = async (value: string | undefined, what: string): Promise<readonly string[] | string> =>
    Promise.resolve(value === undefined ? `${what} is not set` : [value]);
  return [
    { source: 'the load option libtorch', find: () => named(option, 'the option') },
    { source: 'the variable DIAD_LIBTORCH', find: () => named(variable, 'the variable') },
    { source: `the package ${packaged}`, find: () => Promise.resolve(torchOfPackage(packaged)) },
    { source: 'the cache', find: cached },
    {
      source: 'the PyTorch of DIAD_PYTHON',
      find: () => (python === undefined ? Promise.resolve('the variable is not set') : torchOfPython(python)),
    },
    { source: "the PyTorch of this folder's .venv", find: () => torchInVenv(process.cwd()) },
    { source: "the PyTorch of diad's own .venv", find: () => torchInVenv(packageRoot) },
    { source: 'the PyTorch of python3', find: () => torchOfPython('python3') },
  ];
}

/**
 * Finds a LibTorch for which there is an engine.
 *
 * The first place that names one decides when it was named explicitly (option or DIAD_LIBTORCH): a named LibTorch that does not fit is an
 * error, one that merely happens to be around is passed over.
 *
 * @param option - the load option `libtorch`: folder of LibTorch or of a torch package
 * @param packageRoot - diad's own folder
 * @param minors - LibTorch minors an engine was built for, for example ["2.13"]
 * @param misses - receives every place tried in vain
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND, ERR_DIAD_LIBTORCH_MISMATCH
 */
export async function findLibTorch(
  option: string | undefined,
  packageRoot: string,
  minors: readonly string[],
  misses: Miss[] = [],
): Promise<LibTorch> {
  const mismatches: string[] = [];
  for (const [index, place] of places(option, packageRoot).entries()) {
    const found = await place.find();
    const folders = typeof found === 'string' ? [] : found;
    if (typeof found === 'string') misses.push({ source: place.source, reason: found });
    for (const folder of folders) {
      const root = path.basename(folder) === 'lib' ? path.dirname(folder) : folder;
      const libFolder = path.join(root, 'lib');
      const version = await readVersion(root);
      if (!(await exists(path.join(libFolder, 'libtorch.so')))) {
        misses.push({ source: place.source, reason: `there is no ${path.join(libFolder, 'libtorch.so')}` });
      } else if (version === undefined) {
        misses.push({ source: place.source, reason: `${root} does not say its version (version.py or build-version)` });
      } else if (!minors.includes(minorOf(version))) {
        mismatches.push(`LibTorch ${version} in ${root}`);
        misses.push({ source: place.source, reason: `it is LibTorch ${version}, engines are built for ${minors.join(', ')}` });
      } else {
        return { libFolder: await realpath(libFolder), version, source: place.source };
      }
    }
    const explicit = index < 2 && folders.length > 0;
    if (explicit) break;
  }
  throw notFound(mismatches, minors, misses);
}

function notFound(mismatches: readonly string[], minors: readonly string[], misses: readonly Miss[]): DiadError {
  const tried = misses.map(({ source, reason }) => `  - ${source}: ${reason}`).join('\n');
  const ways =
    `Ways out: pip install "torch==${minors.at(-1) ?? '2.13'}.*" into ./.venv; set DIAD_LIBTORCH to a folder that holds lib/libtorch.so; ` +
    'or pass the load option libtorch.';
  if (mismatches.length > 0) {
    const text = `${mismatches.join(' and ')} does not fit: this diad has engines for LibTorch ${minors.join(', ') || '(none, run npm run build)'}.`;
    return new DiadError('ERR_DIAD_LIBTORCH_MISMATCH', `${text} Tried:\n${tried}\n${ways}`);
  }
  return new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', `No LibTorch was found. Tried:\n${tried}\n${ways}`);
}
