// diad libtorch install: the libraries of a PyTorch wheel, fetched by the user's pip, into the cache.
import { mkdir, readdir, rename, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import type { Entry } from 'yauzl';
import { DiadError } from '../errors.js';
import {
  damagedFiles,
  listInstalled,
  MANIFEST,
  removeFolder,
  sha256OfFile,
  WORK,
  type InstalledFile,
} from './cache.js';
import type { InstalledLibTorch, LibTorchManifest } from './cache.js';
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
  /** The Python whose pip fetches. Default: DIAD_PYTHON, the .venv of this folder, python3. */
  readonly python?: string | undefined;
  /** Handed to pip. Default: pip's configuration. */
  readonly indexUrl?: string | undefined;
  /** Default: the user's cache. */
  readonly cache?: string;
  /** Receives pip's output and what is being done, in words. */
  readonly onMessage?: (message: string) => void;
  /** Bytes unpacked so far, of how many. */
  readonly onProgress?: (bytes: number, total: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link installLibTorch} did. */
export interface Installation {
  readonly installed: InstalledLibTorch;
  /** It was there already, and intact. */
  readonly already: boolean;
}

/** Libraries that only Python or PyTorch's own tests use. */
const UNUSED =
  /^(lib)?(torch_python|shm|aoti_custom_ops|backend_with_compiler|jitbackend_test|torchbind_test)\b/;

/** Requirements of a CUDA wheel that bring libraries it opens; the others are Python's. */
const CUDA_REQUIREMENT = /^(nvidia-|cuda-toolkit\b)/;

const SPARE_BYTES = 64 * 2 ** 20;

/**
 * Fetches and unpacks a LibTorch. Interrupted at any point, the next call goes on from what is there; other processes see the LibTorch only
 * once it is complete and every hash was right, and wait while another one installs the same.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_LIBTORCH_NOT_FOUND when it cannot be fetched or unpacked; the signal's reason
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
      `Expected an http, https or file address for --index-url but received ${options.indexUrl}`,
    );
  }
  const work = path.join(cache, WORK, `${version}-${variant}`);
  const onWait = (): void => {
    onMessage(`Another process is installing LibTorch ${version} (${variant}): waiting for it\n`);
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
  // On Linux and Windows wheels without a label are CUDA builds; macOS knows no other than CPU.
  const labelled = variant === 'cpu' && process.platform !== 'darwin';
  let torch: readonly Wheel[];
  try {
    torch = await download('torch', [`torch==${version}${labelled ? '+cpu' : ''}`], false);
  } catch (error) {
    if (!labelled || !/No matching distribution|could not find a version/i.test(String(error))) throw error;
    const hint =
      `The index that pip is configured with has no CPU build of PyTorch ${version}: name PyTorch's index of CPU builds with --index-url ` +
      '(its address is on pytorch.org under "Get Started"), take --variant cuda, or install the npm package with the libraries instead.';
    throw new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', `${(error as Error).message}\n${hint}`, {
      cause: error,
    });
  }
  const wheel = torch.find(({ entries }) => entries.some(({ fileName }) => fileName === 'torch/version.py'));
  if (wheel === undefined)
    throw new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', 'pip brought no wheel of torch');
  const brought = wheel.entries.some(({ fileName }) => /^torch\/lib\/(lib)?torch_cuda\./.test(fileName))
    ? 'cuda'
    : 'cpu';
  if (brought !== variant) {
    torch.forEach(closeWheel);
    throw new DiadError(
      'ERR_DIAD_LIBTORCH_NOT_FOUND',
      `pip brought ${path.basename(wheel.file)}, a build for ${brought === 'cpu' ? 'the CPU only' : 'CUDA'}, but ${variant} was asked for; ` +
        'name another index with --index-url, or another --variant',
    );
  }
  const needed =
    variant === 'cuda'
      ? requirementsOf(wheel).filter((requirement) => CUDA_REQUIREMENT.test(requirement))
      : [];
  return needed.length === 0 ? [wheel] : [wheel, ...(await download('cuda', needed, true))];
}

/** Downloads wheels. A wheel that an earlier try left cut short is removed first: pip would refuse it. */
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

/** The part of a wheel that running needs: libraries, version, licenses; laid out as in site-packages, where CUDA's libraries are looked for. */
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
      `${cache} has no room: ${need ?? ''} are needed, ${have ?? ''} are free`,
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
      `The wheel holds no LibTorch for ${process.platform}-${process.arch}`,
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
  await removeFolder(folder); // one without a manifest, or another variant of the same name
  await rename(tree, folder);
  return { folder, manifest, sizeBytes: total };
}
