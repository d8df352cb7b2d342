// Thresholds from normal pictures: quantiles with a finite-sample bound; or the best F1 on a validation set with defects.
import path from 'node:path';
import { CALIBRATION_FILE, type Calibration, type Thresholds } from '../calibration.js';
import type { Diad } from '../diad.js';
import { writeAtomic } from '../durable.js';
import { DiadError } from '../errors.js';
import { validateTiles } from '../options.js';
import type { TileOptions } from '../tiles.js';
import { boolean, invalid, loadedBundle, number, optionsObject, requiredText } from '../validate.js';
import { contentHashes, refuseOverlap } from './content-hash.js';
import { readPicture } from './pictures.js';

/** A normal picture, or one of a validation set. */
export interface CalibrationPicture {
  readonly file: string;
  readonly className: string;
  /** Default false. */
  readonly defective?: boolean;
}

/** Options of {@link calibrate}. */
export interface CalibrateOptions {
  /** Normal pictures. */
  readonly good: readonly CalibrationPicture[];
  /** Share of normal pictures that may be called anomalous, 0 to 1, both excluded. Default 0.01. */
  readonly targetFpr?: number;
  /** Thresholds of each class beside the global ones. Default false. */
  readonly perClass?: boolean;
  /** Pictures with and without defects: the image threshold is the one of the largest F1 on them. */
  readonly validation?: readonly CalibrationPicture[];
  /** Pictures on which results will be reported: refused where one of them is among the others. */
  readonly test?: readonly string[];
  /** Of the noise. Default 0. */
  readonly seed?: number | bigint;
  /** For pictures that will be scored in tiles: these must be scored in the same way. */
  readonly tile?: TileOptions;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
}

/** A calibration and what there is to say about it. */
export interface Calibrated {
  readonly calibration: Calibration;
  /** Classes that have too few pictures for thresholds of their own, with how many they have. */
  readonly tooFew: readonly { readonly className: string; readonly images: number }[];
}

interface Scored {
  readonly className: string;
  readonly defective: boolean;
  readonly score: number;
  /** Largest value of its map. */
  readonly peak: number;
}

const MEDIAN_NORMALISED = 0.05;

/** Pictures that a target needs at least: with fewer, no score of theirs bounds it. */
export const picturesNeeded = (targetFpr: number): number => Math.ceil(1 / targetFpr - 1e-9) - 1;

/**
 * The k-th smallest of n values, k = ceil((n + 1)(1 - target)): a further value from the same source lies above it with a probability of at most
 * `target`, whatever the distribution (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World, 2005).
 *
 * @returns undefined where n is too small for the target
 */
export function boundedQuantile(values: readonly number[], target: number): number | undefined {
  // The product is a hair off where it should be whole: (99 + 1) * (1 - 0.01).
  const rank = Math.ceil((values.length + 1) * (1 - target) - 1e-9);
  return rank > values.length ? undefined : [...values].sort((a, b) => a - b)[rank - 1];
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Slope of the normalised score: the median normal picture comes to 0.05. */
function scaleOf(threshold: number, scores: readonly number[]): number {
  return Math.max(0, (threshold - median(scores)) / Math.log((1 - MEDIAN_NORMALISED) / MEDIAN_NORMALISED));
}

/**
 * The threshold whose F1 is largest when scores above it are called defective: half way between the score that is still called so and the next
 * below. Of equal F1 the highest.
 *
 * @returns undefined without defective pictures
 */
export function f1maxThreshold(pictures: readonly { readonly score: number; readonly defective: boolean }[]): number | undefined {
  const sorted = [...pictures].sort((a, b) => b.score - a.score);
  const positives = sorted.filter(({ defective }) => defective).length;
  if (positives === 0) return undefined;
  let [best, found, place] = [-1, 0, 0];
  for (const [i, { score, defective }] of sorted.entries()) {
    if (defective) found += 1;
    if (sorted[i + 1]?.score === score) continue;
    const f1 = (2 * found) / (i + 1 + positives);
    if (f1 > best) [best, place] = [f1, i];
  }
  const lowest = sorted[place]!.score;
  const next = sorted[place + 1]?.score ?? lowest - Math.max(1e-9, Math.abs(lowest) * 1e-6);
  return (lowest + next) / 2;
}

async function scoreAll(diad: Diad, pictures: readonly CalibrationPicture[], options: CalibrateOptions): Promise<Scored[]> {
  const scored: Scored[] = [];
  async function* images() {
    for (const { file } of pictures) yield await readPicture(file);
  }
  const { seed = 0, tile, signal, onProgress } = options;
  const call = { seed, ...(tile === undefined ? {} : { tile }), ...(signal === undefined ? {} : { signal }) };
  for await (const settled of diad.scoreMany(images(), { ...call, onError: 'yield' })) {
    const { className, defective = false, file } = pictures[settled.index]!;
    if (settled.status === 'rejected') {
      signal?.throwIfAborted();
      const { reason } = settled;
      const code = reason instanceof DiadError ? reason.code : 'ERR_DIAD_INTERNAL';
      throw new DiadError(code, `${file}: ${reason instanceof Error ? reason.message : String(reason)}`, { cause: reason });
    }
    const { score, map } = settled.value;
    scored.push({ className, defective, score, peak: map.data.reduce((a, b) => Math.max(a, b), -Infinity) });
    onProgress?.(scored.length, pictures.length);
  }
  return scored;
}

/** Thresholds from scores; undefined where there are too few pictures. */
function thresholdsOf(good: readonly Scored[], validation: readonly Scored[] | undefined, targetFpr: number): Thresholds | undefined {
  const scores = good.map(({ score }) => score);
  const pixelThreshold = boundedQuantile(
    good.map(({ peak }) => peak),
    targetFpr,
  );
  const quantile = boundedQuantile(scores, targetFpr);
  const threshold = validation === undefined ? quantile : f1maxThreshold(validation);
  if (threshold === undefined || pixelThreshold === undefined) return undefined;
  return { threshold, pixelThreshold, scale: scaleOf(threshold, scores), images: good.length };
}

/** The normal pictures that differ from one another, and the hashes of all; a copy of a picture says nothing new. */
async function distinct({ good, validation = [], test = [] }: CalibrateOptions): Promise<{ good: CalibrationPicture[]; hashes: string[] }> {
  const files = [...good, ...validation].map(({ file }) => file);
  const hashes = await contentHashes(files);
  refuseOverlap(files, hashes, new Set(await contentHashes(test)), 'the calibration and the test set');
  refuseOverlap(
    validation.map(({ file }) => file),
    hashes.slice(good.length),
    new Set(hashes.slice(0, good.length)),
    'the validation set and the normal pictures',
  );
  const unseen = new Set(hashes);
  return { good: good.filter((_, i) => unseen.delete(hashes[i]!)), hashes: [...new Set(hashes)].sort() };
}

const KEYS = ['good', 'targetFpr', 'perClass', 'validation', 'test', 'seed', 'tile', 'signal', 'onProgress'] as const;

function pictureList(value: readonly CalibrationPicture[] | undefined, name: string): readonly CalibrationPicture[] | undefined {
  if (value === undefined) return undefined;
  const given: unknown = value;
  const isPicture = (one: Partial<CalibrationPicture> | null): boolean => typeof one?.file === 'string';
  if (!Array.isArray(given) || !given.every(isPicture)) throw invalid('an array of pictures { file, className }', name, given);
  return value;
}

/**
 * Finds thresholds from normal pictures, and from a validation set where one is given.
 *
 * Image threshold: the bounded quantile of the pictures' scores, or with `validation` the one of its largest F1. Pixel threshold: the bounded
 * quantile of the maps' largest values, so that a normal picture shows any region with a probability of at most `targetFpr`.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there are too few pictures for the target, when the validation set has no defect, or when
 *   pictures are shared between sets (by content); ERR_DIAD_IMAGE_DECODE that names the file; the signal's reason
 */
export async function calibrate(diad: Diad, options: CalibrateOptions): Promise<Calibrated> {
  loadedBundle(diad, 'diad');
  optionsObject(options, 'calibrate options', KEYS);
  const targetFpr = number(options?.targetFpr, 'targetFpr', 1e-6, 1 - 1e-6, 0.01);
  const [perClass, validation] = [boolean(options?.perClass, 'perClass', false), pictureList(options?.validation, 'validation')];
  if ((pictureList(options?.good, 'good') ?? []).length === 0)
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', 'Expected normal pictures but received 0');
  if (validation !== undefined && !validation.some(({ defective }) => defective === true)) {
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', 'Expected defective pictures in the validation set but found none');
  }
  const { good, hashes: pictures } = await distinct(options);
  const needed = picturesNeeded(targetFpr);
  if (good.length < needed) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected at least ${needed} different normal pictures for a false positive rate of ${targetFpr} but received ${good.length}: ` +
        `add pictures, or accept a rate of at least ${(1 / (good.length + 1)).toPrecision(3)} (--target-fpr)`,
    );
  }
  const scored = await scoreAll(diad, [...good, ...(validation ?? [])], options);
  const [goodScored, validationScored] = [scored.slice(0, good.length), validation === undefined ? undefined : scored.slice(good.length)];
  const all = thresholdsOf(goodScored, validationScored, targetFpr);
  if (all === undefined) throw new DiadError('ERR_DIAD_INTERNAL', 'Expected thresholds of all pictures');
  const classes: Record<string, Thresholds> = {};
  const tooFew: { className: string; images: number }[] = [];
  for (const name of perClass ? [...new Set(good.map(({ className }) => className))].sort() : []) {
    const of = <T extends { readonly className: string }>(list: readonly T[]): T[] => list.filter(({ className }) => className === name);
    const found = thresholdsOf(of(goodScored), validationScored === undefined ? undefined : of(validationScored), targetFpr);
    if (found === undefined) tooFew.push({ className: name, images: of(goodScored).length });
    else classes[name] = found;
  }
  const calibration: Calibration = {
    ...all,
    ...(Object.keys(classes).length === 0 ? {} : { classes }),
    method: validation === undefined ? 'quantile' : 'f1max',
    targetFpr,
    createdAt: new Date().toISOString(),
    model: diad.info.bundle.digest,
    precision: diad.info.precision,
    ...(options.tile === undefined ? {} : { tile: validateTiles(options.tile) }),
    pictures,
  };
  return { calibration, tooFew };
}

/** Writes calibration.json into a bundle, as a whole or not at all. Bundles loaded before keep what they had. */
export async function writeCalibration(bundle: string, calibration: Calibration): Promise<void> {
  await writeAtomic(path.join(requiredText(bundle, 'bundle'), CALIBRATION_FILE), `${JSON.stringify(calibration, null, 2)}\n`);
}
