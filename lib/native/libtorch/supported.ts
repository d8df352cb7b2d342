// LibTorch versions supported by diad's releases.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { addonPath, engines, packageRoot } from '../addon.js';
import { compareVersions, minorOf } from './version.js';

/** Returns the versions in package.json, oldest first, for example ["2.11.0", "2.13.0"]. */
export function supportedVersions(): readonly string[] {
  const { diad } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
    diad: { libtorch: readonly string[] };
  };
  return [...diad.libtorch].sort(compareVersions);
}

/** Returns the newest supported version with an engine, or the newest supported one if there is no engine. */
export function preferredVersion(): string {
  const versions = supportedVersions();
  let present: readonly string[] = [];
  try {
    present = [...engines(addonPath()).keys()];
  } catch {
    // No addon: `diad doctor` reports that, whichever LibTorch is installed.
  }
  return versions.findLast((version) => present.includes(minorOf(version))) ?? versions.at(-1) ?? '2.13.0';
}
