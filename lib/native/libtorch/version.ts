// LibTorch versions: reads them from files without opening a library, and compares them.
import { readFile } from 'node:fs/promises';
import path from 'node:path';

/** Returns the minor version: "2.13" for "2.13.0+cpu". */
export function minorOf(version: string): string {
  return version.split('.').slice(0, 2).join('.');
}

/** Returns the variant of a version, its local label ("cpu", "cu130", ...), if any. */
export function variantOf(version: string): string | undefined {
  return version.split('+')[1];
}

/** Compares two versions numerically ("2.9" before "2.13"). Ignores the label after "+". */
export function compareVersions(a: string, b: string): number {
  const numbers = (version: string): number[] =>
    (version.split('+')[0] ?? '').split('.').map((part) => Number.parseInt(part, 10) || 0);
  const [left, right] = [numbers(a), numbers(b)];
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/**
 * Reads the version of a LibTorch distribution (build-version) or torch package (version.py).
 *
 * @param folder - folder that contains lib/
 * @returns undefined if there is no version
 */
export async function readVersion(folder: string): Promise<string | undefined> {
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
