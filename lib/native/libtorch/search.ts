// Searches for LibTorch in a fixed order and records why each location was rejected.
import { execFile } from 'node:child_process';
import { access, readdir, realpath } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import process from 'node:process';
import { promisify } from 'node:util';
import { DiadError } from '../../errors.js';
import { hasNvidiaDriver, listInstalled } from './cache.js';
import { libraryNames, libtorchCache, libtorchPackage } from './platform.js';
import { compareVersions, minorOf, readVersion } from './version.js';

/** A LibTorch installation. */
export interface LibTorch {
  /** Folder with libtorch.so (libtorch.dylib, torch.dll). */
  readonly libFolder: string;
  /** Its version, for example "2.13.0+cpu". */
  readonly version: string;
  /** Description of the location where it was found. */
  readonly source: string;
}

/** A location without a usable LibTorch. */
export interface Miss {
  readonly source: string;
  readonly reason: string;
}

interface Place {
  readonly source: string;
  /** Folders of LibTorch distributions or torch packages (with lib/), or the reason why there are none. */
  readonly find: () => Promise<readonly string[] | string>;
}

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  );

async function torchInVenv(project: string): Promise<readonly string[] | string> {
  const venv = path.join(project, '.venv');
  if (process.platform === 'win32') return [path.join(venv, 'Lib', 'site-packages', 'torch')];
  const pythons = await readdir(path.join(venv, 'lib')).catch(() => []);
  const folders = pythons.map((python) => path.join(venv, 'lib', python, 'site-packages', 'torch'));
  return folders.length > 0 ? folders : `${venv} not found`;
}

async function torchOfPython(python: string): Promise<readonly string[] | string> {
  const find =
    'import importlib.util as u; s = u.find_spec("torch"); ' +
    'print(s.submodule_search_locations[0] if s else "")';
  try {
    const { stdout } = await promisify(execFile)(python, ['-c', find], { timeout: 20_000 });
    return stdout.trim() === '' ? `${python} has no package torch` : [stdout.trim()];
  } catch (error) {
    const reason = error instanceof Error ? error.message.split('\n')[0] : String(error);
    return `${python} cannot be run (${reason})`;
  }
}

/** Resolves the package from the running program, the current folder, and diad itself. */
function torchOfPackage(name: string, packageRoot: string): readonly string[] | string {
  const from = [
    process.argv[1],
    path.join(process.cwd(), 'package.json'),
    path.join(packageRoot, 'package.json'),
  ];
  for (const file of from) {
    if (file === undefined || !path.isAbsolute(file)) continue;
    try {
      return [path.dirname(createRequire(file).resolve(`${name}/package.json`))];
    } catch {
      continue; // not resolvable from there
    }
  }
  return `the package ${name} is not installed`;
}

async function torchInCache(): Promise<readonly string[] | string> {
  const installed = await listInstalled();
  return installed.length > 0
    ? installed.map(({ folder }) => path.join(folder, 'torch'))
    : `${libtorchCache()} is empty`;
}

/** Finds CUDA builds, which take precedence over the CPU package on machines with an NVIDIA driver. */
async function cudaInCache(hasDriver: boolean): Promise<readonly string[] | string> {
  if (!hasDriver) return 'no NVIDIA driver found';
  const builds = (await listInstalled()).filter(({ manifest }) => manifest.variant === 'cuda');
  return builds.length > 0
    ? builds.map(({ folder }) => path.join(folder, 'torch'))
    : `${libtorchCache()} contains no CUDA build`;
}

function places(option: string | undefined, packageRoot: string, hasDriver: boolean): readonly Place[] {
  // Treat empty variables as unset.
  const [variable, python] = [
    process.env['DIAD_LIBTORCH'] || undefined,
    process.env['DIAD_PYTHON'] || undefined,
  ];
  const packaged = libtorchPackage();
  const named = async (value: string | undefined, what: string): Promise<readonly string[] | string> =>
    Promise.resolve(value === undefined ? `${what} is not set` : [value]);
  return [
    { source: 'the load option libtorch', find: () => named(option, 'the option') },
    { source: 'the variable DIAD_LIBTORCH', find: () => named(variable, 'the variable') },
    { source: 'the CUDA builds of the cache', find: () => cudaInCache(hasDriver) },
    { source: `the package ${packaged}`, find: () => Promise.resolve(torchOfPackage(packaged, packageRoot)) },
    { source: 'the cache', find: torchInCache },
    {
      source: 'the PyTorch of DIAD_PYTHON',
      find: () => (python === undefined ? Promise.resolve('the variable is not set') : torchOfPython(python)),
    },
    { source: "the PyTorch of this folder's .venv", find: () => torchInVenv(process.cwd()) },
    { source: "the PyTorch of diad's own .venv", find: () => torchInVenv(packageRoot) },
    {
      source: 'the PyTorch of python3',
      find: () => torchOfPython(process.platform === 'win32' ? 'python' : 'python3'),
    },
  ];
}

/**
 * Finds a LibTorch with a matching engine.
 *
 * A LibTorch named explicitly (option or DIAD_LIBTORCH) must match; otherwise the search fails. Elsewhere, a
 * LibTorch that does not match is skipped.
 *
 * @param option - load option `libtorch`: folder of LibTorch or of a torch package
 * @param packageRoot - root folder of diad
 * @param minors - LibTorch minor versions with an engine, for example ["2.13"]
 * @param misses - receives every rejected location
 * @param hasDriver - whether there is an NVIDIA driver, so that CUDA builds in the cache precede the package
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND, ERR_DIAD_LIBTORCH_MISMATCH
 */
export async function findLibTorch(
  option: string | undefined,
  packageRoot: string,
  minors: readonly string[],
  misses: Miss[] = [],
  hasDriver?: boolean,
): Promise<LibTorch> {
  const mismatches: string[] = [];
  for (const [index, place] of places(
    option,
    packageRoot,
    hasDriver ?? (await hasNvidiaDriver()),
  ).entries()) {
    const found = await place.find();
    const folders = typeof found === 'string' ? [] : found;
    if (typeof found === 'string') misses.push({ source: place.source, reason: found });
    for (const folder of folders) {
      const root = path.basename(folder) === 'lib' ? path.dirname(folder) : folder;
      const libFolder = path.join(root, 'lib');
      const version = await readVersion(root);
      if (!(await exists(path.join(libFolder, libraryNames().libtorch)))) {
        misses.push({
          source: place.source,
          reason: `${path.join(libFolder, libraryNames().libtorch)} not found`,
        });
      } else if (version === undefined) {
        misses.push({
          source: place.source,
          reason: `${root} has no version (version.py or build-version)`,
        });
      } else if (!minors.includes(minorOf(version))) {
        mismatches.push(`LibTorch ${version} in ${root}`);
        misses.push({
          source: place.source,
          reason: `it is LibTorch ${version}, engines are built for ${minors.join(', ')}`,
        });
      } else {
        return { libFolder: await realpath(libFolder), version, source: place.source };
      }
    }
    const explicit = index < 2 && folders.length > 0;
    if (explicit) break;
  }
  throw notFound(mismatches, minors, misses);
}

function notFound(
  mismatches: readonly string[],
  minors: readonly string[],
  misses: readonly Miss[],
): DiadError {
  const tried = misses.map(({ source, reason }) => `  - ${source}: ${reason}`).join('\n');
  const newest = [...minors].sort(compareVersions).at(-1) ?? '2.13';
  const ways =
    `Solutions: npx diad libtorch install; npm install ${libtorchPackage()}; ` +
    `pip install "torch==${newest}.*" into ./.venv; ` +
    `or set DIAD_LIBTORCH to a folder that contains lib/${libraryNames().libtorch}. ` +
    'See npx diad doctor for details.';
  if (mismatches.length > 0) {
    const available =
      minors.join(', ') || '(none; build one with npm run build:native in the package folder)';
    const text = `${mismatches.join(' and ')} is not supported: engines exist for LibTorch ${available}.`;
    return new DiadError('ERR_DIAD_LIBTORCH_MISMATCH', `${text} Tried:\n${tried}\n${ways}`);
  }
  return new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', `No LibTorch was found. Tried:\n${tried}\n${ways}`);
}
