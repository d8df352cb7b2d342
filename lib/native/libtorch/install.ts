// diad libtorch install: downloads a PyTorch wheel with pip and unpacks its libraries into the cache.
import { mkdir, readdir, rename, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import type { Entry } from 'yauzl';
import { DiadError } from '../../errors.js';
import {
  damagedFiles,
  listInstalled,
  MANIFEST,
  removeFolder,
  sha256OfFile,
  WORK,
  type InstalledFile,
  type InstalledLibTorch,
  type LibTorchManifest,
} from './cache.js';
import { withLock } from './lock.js';
import { findPip, pipDownload, type Pip } from './pip.js';
import { libraryNames, libtorchCache } from './platform.js';
import { readVersion } from './version.js';
import { closeWheel, openWheel, requirementsOf, unpackEntry, type Wheel } from './wheel.js';

/** Options of {@link installLibTorch}. */
export interface InstallOptions {
  /** Three numbers, for example "2.13.0". */
  readonly version: string;
  readonly variant: 'cpu' | 'cuda';
  /** Python whose pip downloads. Default: DIAD_PYTHON, ./.venv, python3. */
  readonly python?: string | undefined;
  /** Passed to pip. Default: pip's configuration. */
  readonly indexUrl?: string | undefined;
  /** Default: the user's cache. */
  readonly cache?: string;
  /** Receives pip's output and status messages. */
  readonly onMessage?: (message: string) => void;
  /** Receives the number of unpacked and of total bytes. */
  readonly onProgress?: (bytes: number, total: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** Result of {@link installLibTorch}. */
export interface Installation {
  readonly installed: InstalledLibTorch;
  /** Whether it was already installed and intact. */
  readonly already: boolean;
}

/** Libraries that only Python or PyTorch's tests use. */
const UNUSED =
  /^(lib)?(torch_python|shm|aoti_custom_ops|backend_with_compiler|jitbackend_test|torchbind_test)\b/;

/** Requirements of a CUDA wheel that provide shared libraries; the others are Python packages. */
const CUDA_REQUIREMENT = /^(nvidia-|cuda-toolkit\b)/;

const SPARE_BYTES = 64 * 2 ** 20;

/**
 * Downloads and unpacks a LibTorch. After an interruption, the next call resumes. Other processes see the
 * LibTorch only when it is complete and verified, and wait while another process installs the same one.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT; ERR_DIAD_LIBTORCH_NOT_FOUND when it cannot be downloaded or
 *   unpacked; the signal's reason
 */
export async function installLibTorch(options: InstallOptions): Promise<Installation> {
  const { version, variant, cache = libtorchCache(), onMessage = () => undefined } = options;
  if (!/^\d+\.\d+\.\d+$/.test(version)) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected three numbers like 2.13.0 for version but received ${JSON.stringify(version)}`,
    );
  }
  if (options.indexUrl !== undefined && !/^(https?|file):\/\//.test(options.indexUrl)) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected an http, https or file URL for --index-url but received ${options.indexUrl}`,
    );
  }
  const work = path.join(cache, WORK, `${version}-${variant}`);
  const onWait = (): void => {
    onMessage(`Waiting for another process that is installing LibTorch ${version} (${variant})\n`);
  };
  return withLock(work, { signal: options.signal, onWait }, async (signal) => {
    const present = await intact(cache, version, variant, onMessage);
    if (present !== undefined) return { installed: present, already: true };
    const wheels = await fetchWheels({ ...options, signal }, work, onMessage);
    try {
      const installed = await unpack(wheels, { ...options, signal }, work, cache);
      await rm(work, { recursive: true, force: true });
      return { installed, already: false };
    } finally {
      wheels.forEach(closeWheel);
    }
  });
}

async function intact(
  cache: string,
  version: string,
  variant: string,
  onMessage: (message: string) => void,
): Promise<InstalledLibTorch | undefined> {
  const installed = (await listInstalled(cache)).find(
    ({ manifest }) => manifest.version.split('+')[0] === version && manifest.variant === variant,
  );
  if (installed === undefined) return undefined;
  const damaged = await damagedFiles(installed);
  if (damaged.length === 0) return installed;
  onMessage(`${installed.folder} is damaged (${damaged.join(', ')}): installing again\n`);
  await removeFolder(installed.folder);
  return undefined;
}

async function fetchWheels(
  options: InstallOptions,
  work: string,
  onMessage: (message: string) => void,
): Promise<readonly Wheel[]> {
  const { version, variant, indexUrl, signal } = options;
  const pip = await findPip(options.python);
  const download = (
    name: string,
    requirements: readonly string[],
    withDependencies: boolean,
  ): Promise<readonly Wheel[]> =>
    fetchInto(pip, {
      requirements,
      folder: path.join(work, name),
      withDependencies,
      indexUrl,
      onOutput: onMessage,
      signal,
    });
  // On Linux and Windows, wheels without a label are CUDA builds; macOS has only CPU builds.
  const labeled = variant === 'cpu' && process.platform !== 'darwin';
  let torch: readonly Wheel[];
  try {
    torch = await download('torch', [`torch==${version}${labeled ? '+cpu' : ''}`], false);
  } catch (error) {
    if (!labeled || !/No matching distribution|could not find a version/i.test(String(error))) throw error;
    const hint =
      `The index in pip's configuration has no CPU build of PyTorch ${version}: pass PyTorch's index ` +
      'of CPU builds with --index-url (its address is on pytorch.org under "Get Started"), ' +
      'use --variant cuda, ' +
      'or install the npm package with the libraries instead.';
    throw new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', `${(error as Error).message}\n${hint}`, {
      cause: error,
    });
  }
  const wheel = torch.find(({ entries }) => entries.some(({ fileName }) => fileName === 'torch/version.py'));
  if (wheel === undefined)
    throw new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', 'pip downloaded no torch wheel');
  const brought = wheel.entries.some(({ fileName }) => /^torch\/lib\/(lib)?torch_cuda\./.test(fileName))
    ? 'cuda'
    : 'cpu';
  if (brought !== variant) {
    torch.forEach(closeWheel);
    throw new DiadError(
      'ERR_DIAD_LIBTORCH_NOT_FOUND',
      `pip downloaded ${path.basename(wheel.file)}, ` +
        `a build for ${brought === 'cpu' ? 'the CPU only' : 'CUDA'}, but ${variant} was requested; ` +
        'use another --index-url or --variant',
    );
  }
  const needed =
    variant === 'cuda'
      ? requirementsOf(wheel).filter((requirement) => CUDA_REQUIREMENT.test(requirement))
      : [];
  return needed.length === 0 ? [wheel] : [wheel, ...(await download('cuda', needed, true))];
}

/**
 * Downloads wheels. First removes wheels that an interrupted download left truncated, which pip would reject.
 */
async function fetchInto(pip: Pip, download: Parameters<typeof pipDownload>[1]): Promise<readonly Wheel[]> {
  const { folder } = download;
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(folder)) {
    const left = path.join(folder, name);
    await openWheel(left).then(closeWheel, () => rm(left, { recursive: true }));
  }
  const opened: Wheel[] = [];
  try {
    for (const file of await pipDownload(pip, download)) opened.push(await openWheel(file));
    return opened;
  } catch (error) {
    opened.forEach(closeWheel);
    throw error;
  }
}

interface Wanted {
  readonly wheel: Wheel;
  readonly entry: Entry;
  /** Path inside the installed folder, with forward slashes. */
  readonly to: string;
}

/**
 * Selects the files needed at run time: libraries, version, licenses. Keeps the layout of site-packages,
 * where the CUDA libraries are expected.
 */
function wantedOf(wheel: Wheel): readonly Wanted[] {
  const { shared } = libraryNames();
  const name = path.basename(wheel.file).split('-')[0] ?? 'wheel';
  return wheel.entries.flatMap((entry): Wanted[] => {
    const { fileName } = entry;
    const base = path.posix.basename(fileName);
    if (fileName === 'torch/version.py') return [{ wheel, entry, to: fileName }];
    if (/^torch\/lib\/[^/]+$/.test(fileName) && shared.test(base) && !UNUSED.test(base))
      return [{ wheel, entry, to: fileName }];
    if (/^nvidia\/.*\/?(lib|bin)\/[^/]+$/.test(fileName) && shared.test(base))
      return [{ wheel, entry, to: fileName }];
    const license =
      /^[^/]+\.dist-info\/(?:licenses\/)?((?:.*\/)?(?:LICEN[CS]E|License|NOTICE|COPYING)[^/]*)$/.exec(
        fileName,
      )?.[1];
    return license === undefined || fileName.endsWith('/')
      ? []
      : [{ wheel, entry, to: `licenses/${name}/${license}` }];
  });
}

async function unpack(
  wheels: readonly Wheel[],
  options: InstallOptions,
  work: string,
  cache: string,
): Promise<InstalledLibTorch> {
  const { variant, onProgress = () => undefined, signal } = options;
  const tree = path.join(work, 'tree');
  const wanted = wheels.flatMap(wantedOf);
  const total = wanted.reduce((sum, { entry }) => sum + entry.uncompressedSize, 0);
  await mkdir(tree, { recursive: true });
  const { bavail, bsize } = await statfs(tree);
  if (bavail * bsize < total + SPARE_BYTES) {
    const [need, have] = [total, bavail * bsize].map((bytes) => `${Math.ceil(bytes / 2 ** 20)} MiB`);
    throw new DiadError(
      'ERR_DIAD_LIBTORCH_NOT_FOUND',
      `Not enough disk space in ${cache}: ${need ?? ''} needed, ${have ?? ''} free`,
    );
  }
  let done = 0;
  const files: Record<string, InstalledFile> = {};
  for (const { wheel, entry, to } of wanted) {
    signal?.throwIfAborted();
    const count = (bytes: number): void => {
      done += bytes;
      onProgress(done, total);
    };
    files[to] = await unpackEntry(wheel, entry, path.join(tree, ...to.split('/')), count, signal);
  }
  const version = await readVersion(path.join(tree, 'torch'));
  if (version === undefined || files[`torch/lib/${libraryNames().libtorch}`] === undefined) {
    throw new DiadError(
      'ERR_DIAD_LIBTORCH_NOT_FOUND',
      `The wheel contains no LibTorch for ${process.platform}-${process.arch}`,
    );
  }
  const hashes = await Promise.all(
    wheels.map(async ({ file }) => [path.basename(file), await sha256OfFile(file)] as const),
  );
  const manifest: LibTorchManifest = {
    format: 'diad-libtorch',
    formatVersion: 1,
    version,
    variant,
    wheels: Object.fromEntries(hashes),
    files,
  };
  await writeFile(path.join(tree, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
  const folder = path.join(cache, version);
  await removeFolder(folder); // without a manifest, or another variant with the same name
  await rename(tree, folder);
  return { folder, manifest, sizeBytes: total };
}
