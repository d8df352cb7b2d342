// File names of LibTorch and the engine on each platform, and the location of the LibTorch cache.
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';

/** File names of shared libraries on a platform. */
export interface LibraryNames {
  /** Main library, which loads all of LibTorch including CUDA. */
  readonly libtorch: string;
  /** Engine libraries; the first group is the LibTorch minor version. */
  readonly engine: RegExp;
  /** Any shared library, with or without a version suffix. */
  readonly shared: RegExp;
}

const LINUX: LibraryNames = {
  libtorch: 'libtorch.so',
  engine: /^libdiad_engine-torch(\d+\.\d+)\.so$/,
  shared: /\.so(\.\d+)*$/,
};
const MACOS: LibraryNames = {
  libtorch: 'libtorch.dylib',
  engine: /^libdiad_engine-torch(\d+\.\d+)\.dylib$/,
  shared: /\.dylib$/,
};
const WINDOWS: LibraryNames = {
  libtorch: 'torch.dll',
  engine: /^diad_engine-torch(\d+\.\d+)\.dll$/i,
  shared: /\.dll$/i,
};

/** Returns the file names of shared libraries; default: for this platform. */
export function libraryNames(platform: NodeJS.Platform = process.platform): LibraryNames {
  if (platform === 'win32') return WINDOWS;
  return platform === 'darwin' ? MACOS : LINUX;
}

/** Returns the name of the npm package with LibTorch's CPU libraries. */
export function libtorchPackage(platform: string = process.platform, arch: string = process.arch): string {
  return `@diad/libtorch-${platform}-${arch}`;
}

/**
 * Returns the user's cache folder: XDG_CACHE_HOME if absolute (as the standard requires), else the default.
 */
function userCache(): string {
  const { XDG_CACHE_HOME: xdg, LOCALAPPDATA: local } = process.env;
  if (xdg !== undefined && path.isAbsolute(xdg)) return xdg;
  if (process.platform === 'win32' && local !== undefined && path.isAbsolute(local)) return local;
  return process.platform === 'darwin'
    ? path.join(os.homedir(), 'Library', 'Caches')
    : path.join(os.homedir(), '.cache');
}

/** Returns the folder of `diad libtorch install`, with one folder per version. */
export function libtorchCache(): string {
  return path.join(userCache(), 'diad', 'libtorch');
}
