// LibTorch versions that diad's releases have engines for.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { addonPath, engines, packageRoot } from '../native.js';
import { compareVersions, minorOf } from './version.js';

/** Versions from package.json, oldest first, for example ["2.11.0", "2.13.0"]. */
export function supportedVersions(): readonly string[] {
  const { diad } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
    diad: { libtorch: readonly string[] };
  };
  return [...diad.libtorch].sort(compareVersions);
}

/** The newest supported version that this diad has an engine for, or the newest supported when it has none at all. */
export function preferredVersion(): string {
  const versions = supportedVersions();
  let present: readonly string[] = [];
  try {
    present = [...engines(addonPath()).keys()];
  } catch {
    // No addon: whichever LibTorch is fetched, `diad doctor` will name the addon.
  }
  return versions.findLast((version) => present.includes(minorOf(version))) ?? versions.at(-1) ?? '2.13.0';
}
