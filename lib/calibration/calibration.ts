// Reads calibration.json of a bundle: thresholds and how they were computed.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { codeOf, DiadError } from '../errors.js';

/** Thresholds of one class, or of all images. */
export interface Thresholds {
  /** Scores above it are anomalous. */
  readonly threshold: number;
  /** Map values above it belong to a defect. Absent when the calibration did not evaluate maps. */
  readonly pixelThreshold?: number;
  /** Distance of normal scores below the threshold; sets the slope of the normalized score. */
  readonly scale?: number;
  /** Number of images used. */
  readonly images?: number;
  /**
   * False positive rate of this class, where it differs from the calibration's: few images support only a
   * higher rate.
   */
  readonly targetFpr?: number;
}

/** File with statistics of normal images (docs/design/evidence.md). */
export interface NormalityFile {
  /** File name within the bundle. */
  readonly file: typeof NORMALITY_FILE;
  /** SHA-256 of the content, hex. */
  readonly sha256: string;
  /** Bytes. */
  readonly size: number;
}

/** How the thresholds were computed. */
export interface CalibrationOrigin {
  /** 'quantile' over normal images, or 'f1max' on a validation set with defects. */
  readonly method: 'quantile' | 'f1max';
  /** Target false positive rate: share of normal images that can be classified as anomalous. */
  readonly targetFpr?: number;
  /** ISO 8601. */
  readonly createdAt: string;
  /** Digest of the model that scored the images. */
  readonly model: string;
  /** Precision of the networks. */
  readonly precision: string;
  /** Tiling of the calibration images, pixels. */
  readonly tile?: { readonly size: number; readonly overlap: number } | undefined;
  /** SHA-256 of every image used, to detect overlap with a test set. */
  readonly imageDigests: readonly string[];
  /** Statistics of normal images, for a bundle with evidence. */
  readonly normality?: NormalityFile | undefined;
}

/** Content of calibration.json. Only `threshold` is required; `diad calibrate` writes the rest. */
export interface Calibration extends Thresholds, Partial<CalibrationOrigin> {
  /** Thresholds per class; other classes use the global ones. */
  readonly classes?: Readonly<Record<string, Thresholds>>;
}

/** File name within a bundle. */
export const CALIBRATION_FILE = 'calibration.json';
/** File name of the normal-image statistics in a bundle with evidence. */
export const NORMALITY_FILE = 'normality.safetensors';

const broken = (problem: string, cause?: unknown): DiadError =>
  new DiadError(
    'ERR_DIAD_BUNDLE_INVALID',
    `${CALIBRATION_FILE}: ${problem}`,
    cause === undefined ? {} : { cause },
  );

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const isTile = (value: unknown): value is { readonly size: number; readonly overlap: number } =>
  isObject(value) && typeof value['size'] === 'number' && typeof value['overlap'] === 'number';

const isNormality = (value: unknown): value is NormalityFile =>
  isObject(value) &&
  value['file'] === NORMALITY_FILE && // a fixed name, so no file outside the bundle is read
  typeof value['sha256'] === 'string' &&
  /^[0-9a-f]{64}$/.test(value['sha256']) &&
  typeof value['size'] === 'number' &&
  Number.isSafeInteger(value['size']) &&
  value['size'] > 0;

function finite(object: Readonly<Record<string, unknown>>, key: string, where: string): number | undefined {
  const value = object[key];
  if (value !== undefined && (typeof value !== 'number' || !Number.isFinite(value))) {
    throw broken(`Expected a finite number "${key}"${where} but received ${JSON.stringify(value)}`);
  }
  return value;
}

function thresholds(value: unknown, where: string): Thresholds {
  if (!isObject(value) || value['threshold'] === undefined)
    throw broken(`Expected an object with a finite number "threshold"${where}`);
  const [threshold, pixelThreshold, scale, images, targetFpr] = [
    'threshold',
    'pixelThreshold',
    'scale',
    'images',
    'targetFpr',
  ].map((key) => finite(value, key, where));
  return {
    threshold: threshold!,
    ...(pixelThreshold === undefined ? {} : { pixelThreshold }),
    ...(scale === undefined ? {} : { scale }),
    ...(images === undefined ? {} : { images }),
    ...(targetFpr === undefined ? {} : { targetFpr }),
  };
}

/**
 * Parses and validates the content of a calibration.json.
 *
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID that names the invalid field
 */
export function parseCalibration(source: string): Calibration {
  let parsed: unknown;
  try {
    parsed = JSON.parse(source);
  } catch (error) {
    throw broken('Expected an object with a finite number "threshold"', error);
  }
  const found = thresholds(parsed, '');
  const { classes, method, createdAt, model, precision, tile, imageDigests, normality } = parsed as Readonly<
    Record<string, unknown>
  >;
  if (classes !== undefined && !isObject(classes)) throw broken('Expected an object "classes"');
  if (model !== undefined && typeof model !== 'string') throw broken('Expected a string "model"');
  if (
    imageDigests !== undefined &&
    !(Array.isArray(imageDigests) && imageDigests.every((hash) => typeof hash === 'string'))
  ) {
    throw broken('Expected an array of strings "imageDigests"');
  }
  if (normality !== undefined && !isNormality(normality)) {
    throw broken(
      `Expected "normality" to name ${NORMALITY_FILE} with its sha256 and size ` +
        `but received ${JSON.stringify(normality)}`,
    );
  }
  const byClass = Object.entries(classes ?? {}).map(
    ([name, value]) => [name, thresholds(value, ` for class ${name}`)] as const,
  );
  return {
    ...found,
    ...(byClass.length === 0 ? {} : { classes: Object.fromEntries(byClass) }),
    ...(method === 'quantile' || method === 'f1max' ? { method } : {}),
    ...(typeof createdAt === 'string' ? { createdAt } : {}),
    ...(typeof model === 'string' ? { model } : {}),
    ...(typeof precision === 'string' ? { precision } : {}),
    ...(isTile(tile) ? { tile } : {}),
    ...(imageDigests === undefined ? {} : { imageDigests }),
    ...(normality === undefined ? {} : { normality }),
  };
}

/**
 * Reads a bundle's calibration.
 *
 * @returns undefined when the bundle has none
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID when it cannot be read or parsed
 */
export async function readCalibration(bundle: string): Promise<Calibration | undefined> {
  let source: string;
  try {
    source = await readFile(path.join(bundle, CALIBRATION_FILE), 'utf8');
  } catch (error) {
    if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return undefined;
    throw new DiadError('ERR_DIAD_BUNDLE_INVALID', `calibration.json of ${bundle} cannot be read`, {
      cause: error,
    });
  }
  return parseCalibration(source);
}

async function sha256Of(file: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const part of createReadStream(file)) hash.update(part as Buffer);
  return hash.digest('hex');
}

/**
 * Checks the normality file of a calibration and returns its path.
 *
 * @param verify - true: check size and hash; false: check only the size
 * @returns undefined when the calibration has none
 * @throws DiadError ERR_DIAD_BUNDLE_CORRUPT that names the file when it is missing or does not match
 *   calibration.json; ERR_DIAD_OUT_OF_MEMORY
 */
export async function normalityOf(
  bundle: string,
  calibration: Calibration | undefined,
  verify: boolean,
): Promise<string | undefined> {
  if (calibration?.normality === undefined) return undefined;
  const { file, sha256, size } = calibration.normality;
  const found = path.join(bundle, file);
  const advice = 'run `diad calibrate` again, or load with { calibration: false }';
  const corrupt = (problem: string, cause?: unknown): DiadError =>
    new DiadError(
      'ERR_DIAD_BUNDLE_CORRUPT',
      `${found} ${problem}: ${advice}`,
      cause === undefined ? {} : { cause },
    );
  try {
    const bytes = (await stat(found)).size;
    if (bytes !== size) throw corrupt(`has ${bytes} bytes but ${CALIBRATION_FILE} says ${size}`);
    if (verify && (await sha256Of(found)) !== sha256) {
      throw corrupt(`is damaged: its sha256 is not the one in ${CALIBRATION_FILE}`);
    }
  } catch (error) {
    if (error instanceof DiadError) throw error;
    if (codeOf(error) === 'ENOMEM')
      throw new DiadError('ERR_DIAD_OUT_OF_MEMORY', `Not enough memory to read ${found}`, { cause: error });
    throw corrupt(codeOf(error) === 'ENOENT' ? 'is missing' : 'cannot be read', error);
  }
  return found;
}

/**
 * Checks that a calibration belongs to the model. A calibration without a model digest is accepted. Emits a
 * warning when the precision differs, because scores then differ slightly.
 *
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID when the thresholds were computed with another model
 */
export function checkOrigin(calibration: Calibration, model: string, precision: string): void {
  if (calibration.model !== undefined && calibration.model !== model) {
    throw broken(
      `Expected thresholds of this model (${model.slice(0, 12)}) but received those of another ` +
        `(${calibration.model.slice(0, 12)}): ` +
        'run `diad calibrate` again, or load with { calibration: false }',
    );
  }
  if (calibration.precision !== undefined && calibration.precision !== precision) {
    process.emitWarning(
      `The thresholds were computed with precision ${calibration.precision} ` +
        `and are used with ${precision}: verdicts near the threshold can differ`,
      {
        code: 'DIAD_CALIBRATED_IN_ANOTHER_PRECISION',
        detail: 'Run `diad calibrate` with the precision in use',
      },
    );
  }
}

type Tiles = { readonly size: number; readonly overlap: number } | undefined;

/**
 * Checks whether the thresholds apply to this tiling. A calibration without a model digest always applies.
 */
export function isOfTiles(calibration: Calibration, tile: Tiles): boolean {
  return (
    calibration.model === undefined ||
    (calibration.tile?.size === tile?.size && calibration.tile?.overlap === tile?.overlap)
  );
}

/** Warns that a calibrated bundle gives no verdict for this tiling. */
export function warnOfTiles(calibration: Calibration, tile: Tiles): void {
  const words = (tiles: Tiles): string =>
    tiles === undefined
      ? 'whole images'
      : `tiles of ${tiles.size} pixels with an overlap of ${tiles.overlap}`;
  process.emitWarning(
    `The thresholds were computed on ${words(calibration.tile)}: results on ${words(tile)} have no verdict`,
    {
      code: 'DIAD_CALIBRATED_ON_OTHER_TILES',
      detail: 'Run `diad calibrate`, with --tile when images are scored in tiles',
    },
  );
}

/** Returns the thresholds of a class, or the global ones when it has none. */
export function thresholdsFor(calibration: Calibration, className: string | undefined): Thresholds {
  const own =
    className === undefined || calibration.classes === undefined
      ? undefined
      : Object.entries(calibration.classes);
  return own?.find(([name]) => name === className)?.[1] ?? calibration;
}

/**
 * Maps a score to 0..1 with 0.5 at the threshold: a logistic curve whose slope puts the median normal image
 * at 0.05. Without a positive scale, returns score / (score + threshold).
 *
 * @param score - at least 0
 */
export function normalizedScore(score: number, { threshold, scale }: Thresholds): number {
  if (scale !== undefined && scale > 0) return 1 / (1 + Math.exp((threshold - score) / scale));
  if (score === threshold) return 0.5;
  return Math.min(1, Math.max(0, score / (score + threshold)));
}
