// The cache of LibTorch versions installed by `diad libtorch install`: lists, verifies and removes them.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { pipeline } from 'node:stream/promises';
import { codeOf, DiadError } from '../../errors.js';
import { libtorchCache } from './platform.js';
import { compareVersions } from './version.js';

/** Manifest file of an installed LibTorch. Written last, so a folder with a manifest is complete. */
export const MANIFEST = 'diad-libtorch.json';

/** Folder inside the cache for unfinished installations. */
export const WORK = '.partial';

/** A file of an installed LibTorch. */
export interface InstalledFile {
  /** Hex. */
  readonly sha256: string;
  /** Bytes. */
  readonly size: number;
}

/** Content of {@link MANIFEST}. */
export interface LibTorchManifest {
  readonly format: 'diad-libtorch';
  readonly formatVersion: 1;
  /** For example "2.13.0+cpu". */
  readonly version: string;
  readonly variant: 'cpu' | 'cuda';
  /** Wheels it was unpacked from, with their SHA-256. */
  readonly wheels: Readonly<Record<string, string>>;
  /** Files by path inside the folder, with forward slashes. */
  readonly files: Readonly<Record<string, InstalledFile>>;
}

/** A LibTorch in the cache. */
export interface InstalledLibTorch {
  readonly folder: string;
  readonly manifest: LibTorchManifest;
  /** Total size of all files, bytes. */
  readonly sizeBytes: number;
}

/** Computes the SHA-256 of a file, hex. */
export async function sha256OfFile(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}

function isManifest(value: unknown): value is LibTorchManifest {
  if (typeof value !== 'object' || value === null) return false;
  const { format, formatVersion, version, variant, files } = value as Partial<LibTorchManifest>;
  const known = format === 'diad-libtorch' && formatVersion === 1 && typeof version === 'string';
  return known && (variant === 'cpu' || variant === 'cuda') && typeof files === 'object' && files !== null;
}

/** Reads the manifest of a folder. Returns undefined if it is missing or invalid. */
export async function readManifest(folder: string): Promise<LibTorchManifest | undefined> {
  try {
    const parsed: unknown = JSON.parse(await readFile(path.join(folder, MANIFEST), 'utf8'));
    return isManifest(parsed) ? parsed : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Lists installed versions, newest first. With an NVIDIA driver, a CUDA build precedes the same CPU version.
 */
export async function listInstalled(cache = libtorchCache()): Promise<readonly InstalledLibTorch[]> {
  const found: InstalledLibTorch[] = [];
  for (const name of await readdir(cache).catch(() => [])) {
    if (name.startsWith('.')) continue;
    const folder = path.join(cache, name);
    const manifest = await readManifest(folder);
    if (manifest === undefined) continue;
    const sizeBytes = Object.values(manifest.files).reduce((sum, { size }) => sum + size, 0);
    found.push({ folder, manifest, sizeBytes });
  }
  const cudaFirst = await hasNvidiaDriver();
  const rank = ({ manifest }: InstalledLibTorch): number =>
    (manifest.variant === 'cuda') === cudaFirst ? 0 : 1;
  return found.sort((a, b) => compareVersions(b.manifest.version, a.manifest.version) || rank(a) - rank(b));
}

/** Checks whether the kernel has an NVIDIA driver (Linux). */
export function hasNvidiaDriver(): Promise<boolean> {
  return stat('/proc/driver/nvidia/version').then(
    () => true,
    () => false,
  );
}

/** Lists files that are missing or differ in size or hash. */
export async function damagedFiles({ folder, manifest }: InstalledLibTorch): Promise<readonly string[]> {
  const damaged: string[] = [];
  for (const [name, { sha256, size }] of Object.entries(manifest.files)) {
    const file = path.join(folder, ...name.split('/'));
    const status = await stat(file).catch(() => undefined);
    if (status?.size !== size || (await sha256OfFile(file)) !== sha256) damaged.push(name);
  }
  return damaged;
}

/** Lists unfinished installations. */
export async function listPartial(cache = libtorchCache()): Promise<readonly string[]> {
  const names = await readdir(path.join(cache, WORK)).catch(() => []);
  return names.filter((name) => !name.endsWith('.lock')).map((name) => path.join(cache, WORK, name));
}

/**
 * Removes a folder of the cache. Renames it first, so that other processes never see a partial folder.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when it cannot be removed
 */
export async function removeFolder(folder: string): Promise<void> {
  const aside = path.join(path.dirname(folder), `.removing-${path.basename(folder)}-${process.pid}`);
  try {
    await rename(folder, aside);
    await rm(aside, { recursive: true, force: true });
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return;
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `${folder} cannot be removed`, { cause: error });
  }
}
