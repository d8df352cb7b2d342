// calibration.json of a bundle: the threshold, and how it was found.
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, DiadError } from './errors.js';

/** What calibration.json must hold; it may say more. */
export interface Calibration {
  /** Scores above it are anomalous. */
  readonly threshold: number;
}

/**
 * Reads a bundle's calibration.
 *
 * @returns undefined when the bundle has none
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID when it cannot be understood
 */
export async function readCalibration(bundle: string): Promise<Calibration | undefined> {
  let source: string;
  try {
    source = await readFile(path.join(bundle, 'calibration.json'), 'utf8');
  } catch (error) {
    if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return undefined;
    throw new DiadError('ERR_DIAD_BUNDLE_INVALID', `calibration.json of ${bundle} cannot be read`, { cause: error });
  }
  const broken = (cause?: unknown): DiadError =>
    new DiadError('ERR_DIAD_BUNDLE_INVALID', 'calibration.json: Expected an object with a finite number "threshold"', { cause });
  let parsed: unknown;
  try {
    parsed = JSON.parse(source);
  } catch (error) {
    throw broken(error);
  }
  if (typeof parsed !== 'object' || parsed === null || !('threshold' in parsed)) throw broken();
  const { threshold } = parsed;
  if (typeof threshold !== 'number' || !Number.isFinite(threshold)) throw broken();
  return { threshold };
}
