// What LibTorch and the engine are called on this platform, and where diad keeps LibTorch.
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';

/** File names of one platform's shared libraries. */
export interface LibraryNames {
  /** The library that brings all of LibTorch with it, CUDA included. */
  readonly libtorch: string;
  /** Engine libraries; the first group is the LibTorch minor. */
  readonly engine: RegExp;
  /** Any shared library, with or without a version behind its name. */
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

/** File names of shared libraries; for this platform when none is given. */
export function libraryNames(platform: NodeJS.Platform = process.platform): LibraryNames {
  if (platform === 'win32') return WINDOWS;
  return platform === 'darwin' ? MACOS : LINUX;
}

/** Name of the npm package that carries LibTorch's CPU libraries for a platform. */
export function libtorchPackage(platform: string = process.platform, arch: string = process.arch): string {
  return `@diad/libtorch-${platform}-${arch}`;
}

/** The user's cache folder: XDG_CACHE_HOME when absolute (the standard ignores relative ones), else the platform's own. */
function userCache(): string {
  const { XDG_CACHE_HOME: xdg, LOCALAPPDATA: local } = process.env;
  if (xdg !== undefined && path.isAbsolute(xdg)) return xdg;
  if (process.platform === 'win32' && local !== undefined && path.isAbsolute(local)) return local;
  return process.platform === 'darwin'
    ? path.join(os.homedir(), 'Library', 'Caches')
    : path.join(os.homedir(), '.cache');
}

/** Folder that `diad libtorch install` fills: one folder a version. */
export function libtorchCache(): string {
  return path.join(userCache(), 'diad', 'libtorch');
}
