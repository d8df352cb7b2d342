// Writes the calibration files of a bundle, and copies bundles for calibration.
import { randomUUID } from 'node:crypto';
import { copyFile, link, mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { bundleDigest } from '../calibration/bundle-digest.js';
import { CALIBRATION_FILE, NORMALITY_FILE, type Calibration } from '../calibration/calibration.js';
import { writeTogether } from '../io/atomic-file.js';
import { codeOf, DiadError } from '../errors.js';
import { requiredText } from '../validate.js';
import { sha256 } from './content-hash.js';

/**
 * Writes calibration.json into a bundle, and normality.safetensors if the calibration has one. If one of them
 * cannot be written, the bundle stays unchanged. Bundles that are already loaded keep their old calibration.
 *
 * @param normality - as returned by {@link calibrate}
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when `normality` does not belong to the calibration;
 *   ERR_DIAD_INTERNAL when the files cannot be written, for example because the disk is full
 */
export async function writeCalibration(
  bundle: string,
  calibration: Calibration,
  normality?: Uint8Array,
): Promise<void> {
  const folder = requiredText(bundle, 'bundle');
  const expected = calibration.normality?.sha256;
  if (expected !== (normality === undefined ? undefined : sha256(normality))) {
    const received = normality === undefined ? 'none' : `${normality.byteLength} bytes that are not`;
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected the normality that calibrate() returned with the calibration but received ${received}`,
    );
  }
  // The order matters: readers look for the normality file only if calibration.json names it.
  const files = [
    ...(normality === undefined ? [] : [[path.join(folder, NORMALITY_FILE), normality] as const]),
    [path.join(folder, CALIBRATION_FILE), `${JSON.stringify(calibration, null, 2)}\n`] as const,
  ];
  try {
    await writeTogether(files);
  } catch (error) {
    const reason =
      codeOf(error) === 'ENOSPC'
        ? 'the disk is full'
        : error instanceof Error
          ? error.message
          : String(error);
    throw new DiadError(
      'ERR_DIAD_INTERNAL',
      `The calibration could not be written into ${folder}, which is unchanged: ${reason}`,
      {
        cause: error,
      },
    );
  }
  if (normality === undefined) await rm(path.join(folder, NORMALITY_FILE), { force: true });
}

/** Files of the calibration, which are not part of the model. */
const OF_CALIBRATION: readonly string[] = [CALIBRATION_FILE, NORMALITY_FILE];

async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch {
    await copyFile(from, to); // another file system, or a file of another user
  }
}

async function fill(from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (entry.name.startsWith('.') || OF_CALIBRATION.includes(entry.name)) continue;
    if ((await stat(source)).isDirectory()) await fill(source, target);
    else await linkOrCopy(source, target);
  }
}

/**
 * Copies a bundle without its calibration. The target folder appears atomically. Uses hard links where
 * possible, because files of a bundle are never changed in place. Keeps a folder that already contains the
 * same model.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when `to` contains anything else; ERR_DIAD_BUNDLE_NOT_FOUND
 */
export async function copyBundle(from: string, to: string): Promise<void> {
  if (!(await isCopyNeeded(from, to))) return;
  const parent = path.dirname(path.resolve(to));
  await mkdir(parent, { recursive: true });
  const staging = path.join(parent, `.${path.basename(path.resolve(to))}.${randomUUID()}`);
  try {
    await fill(from, staging);
    await rename(staging, to); // replaces an empty folder
  } catch (error) {
    await rm(staging, { recursive: true, force: true });
    throw error;
  }
}

/**
 * Checks whether {@link copyBundle} has to copy: false if `to` already is a copy.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when `to` is a file, contains another model or other files
 */
export async function isCopyNeeded(from: string, to: string): Promise<boolean> {
  const digest = await bundleDigest(from);
  const existing = await readdir(to).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return [];
    if (codeOf(error) === 'ENOTDIR')
      throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a folder for the copy but ${to} is a file`);
    throw error;
  });
  if (existing.length > 0) {
    const other = await bundleDigest(to).catch(() => undefined);
    if (other === digest) return false;
    const holds = other === undefined ? 'is not empty' : 'contains another model';
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected a new folder for the copy but ${to} ${holds}: choose another, or remove it`,
    );
  }
  return true;
}
