// calibration.json of a bundle: thresholds, and how they were found.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { codeOf, DiadError } from './errors.js';

/** Thresholds of one kind of part, or of all. */
export interface Thresholds {
  /** Scores above it are anomalous. */
  readonly threshold: number;
  /** Map values above it belong to a defect; absent in calibrations that did not look at maps. */
  readonly pixelThreshold?: number;
  /** How far below the threshold normal images lie; decides the slope of the normalized score. */
  readonly scale?: number;
  /** Images they were found from. */
  readonly images?: number;
  /** Share of normal images that may be called anomalous, where it is not the calibration's own: few images bound a larger share only. */
  readonly targetFpr?: number;
}

/** The file that holds what normal images look like (docs/evidence.md). */
export interface NormalityFile {
  /** Name within the bundle. */
  readonly file: typeof NORMALITY_FILE;
  /** Of its content, hex. */
  readonly sha256: string;
  /** Bytes. */
  readonly size: number;
}

/** Where thresholds come from. */
export interface CalibrationOrigin {
  /** 'quantile' of normal images, or 'f1max' on a validation set with defects. */
  readonly method: 'quantile' | 'f1max';
  /** Share of normal images that may be called anomalous. */
  readonly targetFpr?: number;
  /** ISO 8601. */
  readonly createdAt: string;
  /** Digest of the model that scored the images. */
  readonly model: string;
  /** What its networks computed in. */
  readonly precision: string;
  /** Of images that were scored in tiles, pixels. */
  readonly tile?: { readonly size: number; readonly overlap: number } | undefined;
  /** sha256 of every image used, so that nobody tests on them. */
  readonly imageDigests: readonly string[];
  /** Of a bundle with evidence: what normal images look like. */
  readonly normality?: NormalityFile | undefined;
}

/** What calibration.json must hold is `threshold` alone; `diad calibrate` writes the rest. */
export interface Calibration extends Thresholds, Partial<CalibrationOrigin> {
  /** Thresholds of single classes; others use the global ones. */
  readonly classes?: Readonly<Record<string, Thresholds>>;
}

/** Name of the file within a bundle. */
export const CALIBRATION_FILE = 'calibration.json';
/** Name of the file that a calibration of a bundle with evidence has beside it. */
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
  value['file'] === NORMALITY_FILE && // a plain name: nothing outside the bundle is read
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
 * Checks the content of a calibration.json.
 *
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID that says what does not fit
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
      `Expected "normality" to name ${NORMALITY_FILE} with its sha256 and size but received ${JSON.stringify(normality)}`,
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
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID when it cannot be understood
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
 * The path of a calibration's normality file, whose content is checked.
 *
 * @param verify - check the hash, too; false: the size alone
 * @returns undefined when the calibration has none
 * @throws DiadError ERR_DIAD_BUNDLE_CORRUPT that names the file when it is missing or is not the one that the calibration was written with;
 *   ERR_DIAD_OUT_OF_MEMORY
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
 * Checks that a calibration is of the model that it lies beside. One that does not say what it is of is taken as it is. Scores in another precision
 * differ a little: a warning says so.
 *
 * @throws DiadError ERR_DIAD_BUNDLE_INVALID when its images were scored by another model: its thresholds say nothing of this one's scores
 */
export function checkOrigin(calibration: Calibration, model: string, precision: string): void {
  if (calibration.model !== undefined && calibration.model !== model) {
    throw broken(
      `Expected thresholds of this model (${model.slice(0, 12)}) but received those of another (${calibration.model.slice(0, 12)}): ` +
        'run `diad calibrate` again, or load with { calibration: false }',
    );
  }
  if (calibration.precision !== undefined && calibration.precision !== precision) {
    process.emitWarning(
      `The thresholds were found with precision ${calibration.precision} and are used with ${precision}: scores near them may be judged otherwise`,
      {
        code: 'DIAD_CALIBRATED_IN_ANOTHER_PRECISION',
        detail: 'Run `diad calibrate` in the precision that is used',
      },
    );
  }
}

type Tiles = { readonly size: number; readonly overlap: number } | undefined;

/** Whether thresholds were found on images that were cut like this. A calibration that does not say what it is of is taken as it is. */
export function isOfTiles(calibration: Calibration, tile: Tiles): boolean {
  return (
    calibration.model === undefined ||
    (calibration.tile?.size === tile?.size && calibration.tile?.overlap === tile?.overlap)
  );
}

/** Says why a calibrated bundle gives no verdict. */
export function warnOfTiles(calibration: Calibration, tile: Tiles): void {
  const words = (tiles: Tiles): string =>
    tiles === undefined ? 'whole images' : `tiles of ${tiles.size} pixels that share ${tiles.overlap}`;
  process.emitWarning(
    `The thresholds were found on ${words(calibration.tile)}: results on ${words(tile)} carry no verdict`,
    {
      code: 'DIAD_CALIBRATED_ON_OTHER_TILES',
      detail: 'Run `diad calibrate`, with --tile where images are scored in tiles',
    },
  );
}

/** The thresholds that hold for a class: its own, else the global ones. */
export function thresholdsFor(calibration: Calibration, className: string | undefined): Thresholds {
  const own =
    className === undefined || calibration.classes === undefined
      ? undefined
      : Object.entries(calibration.classes);
  return own?.find(([name]) => name === className)?.[1] ?? calibration;
}

/**
 * The score on a scale of 0 to 1 with 0.5 at the threshold: a logistic curve whose slope puts the median normal image at 0.05. Without a known
 * scale, or with one of 0, score / (score + threshold).
 *
 * @param score - 0 and up
 */
export function normalizedScore(score: number, { threshold, scale }: Thresholds): number {
  if (scale !== undefined && scale > 0) return 1 / (1 + Math.exp((threshold - score) / scale));
  if (score === threshold) return 0.5;
  return Math.min(1, Math.max(0, score / (score + threshold)));
}
