// Calibration on normal images: thresholds and, for a bundle with evidence, statistics of normal images.
import type { Thresholds } from '../calibration/calibration.js';
import type { Diad } from '../diad.js';
import { DiadError, invalidArgument } from '../errors.js';
import { validateTiles } from '../scoring/options.js';
import { boolean, callback, invalid, loadedBundle, number, optionsObject } from '../validate.js';
import { contentHashes, refuseOverlap } from './content-hash.js';
import { fromEvidence } from './evidence-thresholds.js';
import type { CalibrationRole } from './learn-normality.js';
import { readImage } from './images.js';
import {
  DEFAULT_FPR,
  f1maxThreshold,
  requireEnough,
  summaryOf,
  thresholdsOf,
  type ClassSummary,
} from './thresholds.js';
import type {
  CalibrationImage,
  CalibrateOptions,
  Calibrated,
  Distinct,
  Origin,
  Outcome,
} from './calibration-types.js';

export type { CalibrationRole, ClassSummary };

interface Scored {
  readonly className: string;
  readonly defective: boolean;
  readonly score: number;
  /** Largest value of the map. */
  readonly peak: number;
}

async function scoreAll(
  diad: Diad,
  images: readonly CalibrationImage[],
  options: CalibrateOptions,
): Promise<Scored[]> {
  const scored: Scored[] = [];
  async function* bytes() {
    for (const { file } of images) yield await readImage(file);
  }
  const { seed = 0, tile, signal, onProgress } = options;
  const call = { seed, ...(tile === undefined ? {} : { tile }), ...(signal === undefined ? {} : { signal }) };
  for await (const settled of diad.scoreMany(bytes(), { ...call, onError: 'yield' })) {
    const { className, defective = false, file } = images[settled.index]!;
    if (settled.status === 'rejected') {
      signal?.throwIfAborted();
      const { reason } = settled;
      const code = reason instanceof DiadError ? reason.code : 'ERR_DIAD_INTERNAL';
      throw new DiadError(code, `${file}: ${reason instanceof Error ? reason.message : String(reason)}`, {
        cause: reason,
      });
    }
    const { score, map } = settled.value;
    scored.push({ className, defective, score, peak: map.data.reduce((a, b) => Math.max(a, b), -Infinity) });
    onProgress?.(scored.length, images.length);
  }
  return scored;
}

/** Removes duplicate normal images and returns the hashes of all images. */
async function distinct({ good, validation = [], test = [] }: CalibrateOptions): Promise<Distinct> {
  const files = [...good, ...validation].map(({ file }) => file);
  const hashes = await contentHashes(files);
  refuseOverlap(files, hashes, new Set(await contentHashes(test)), 'the calibration and the test set');
  refuseOverlap(
    validation.map(({ file }) => file),
    hashes.slice(good.length),
    new Set(hashes.slice(0, good.length)),
    'the validation set and the normal images',
  );
  const unseen = new Set(hashes);
  return { good: good.filter((_, i) => unseen.delete(hashes[i]!)), digests: [...new Set(hashes)].sort() };
}

/** Computes thresholds for a bundle without evidence, whose scores do not depend on the calibration. */
async function fromScores(diad: Diad, options: CalibrateOptions, { good }: Distinct): Promise<Outcome> {
  const { validation, targetFpr = DEFAULT_FPR, perClass = false } = options;
  requireEnough(good.length, targetFpr);
  const scored = await scoreAll(diad, [...good, ...(validation ?? [])], options);
  const [goodScored, validationScored] = [
    scored.slice(0, good.length),
    validation === undefined ? undefined : scored.slice(good.length),
  ];
  /** Returns undefined when a class has too few images, or no defect in the validation set. */
  const thresholds = (isIncluded: (image: Scored) => boolean): Thresholds | undefined => {
    const best =
      validationScored === undefined ? undefined : f1maxThreshold(validationScored.filter(isIncluded));
    if (validationScored !== undefined && best === undefined) return undefined;
    return thresholdsOf(goodScored.filter(isIncluded), targetFpr, best);
  };
  const all = thresholds(() => true);
  if (all === undefined) throw new DiadError('ERR_DIAD_INTERNAL', 'Expected thresholds of all images');
  const scoresOf = (name: string): number[] =>
    goodScored.flatMap(({ className, score }) => (className === name ? [score] : []));
  const classes: Record<string, Thresholds> = {};
  const tooFew: { className: string; images: number }[] = [];
  const summary = [
    summaryOf(
      '',
      all,
      goodScored.map(({ score }) => score),
      targetFpr,
      0,
    ),
  ];
  for (const name of perClass ? [...new Set(good.map(({ className }) => className))].sort() : []) {
    const found = thresholds(({ className }) => className === name);
    if (found === undefined) {
      tooFew.push({ className: name, images: scoresOf(name).length });
    } else {
      classes[name] = found;
      summary.push(summaryOf(name, found, scoresOf(name), targetFpr, 0));
    }
  }
  return {
    calibration: { ...all, targetFpr, ...(Object.keys(classes).length === 0 ? {} : { classes }) },
    summary,
    tooFew,
  };
}

const KEYS = [
  'good',
  'targetFpr',
  'perClass',
  'validation',
  'test',
  'seed',
  'tile',
  'signal',
  'onProgress',
] as const;

function imageList(
  value: readonly CalibrationImage[] | undefined,
  name: string,
): readonly CalibrationImage[] | undefined {
  if (value === undefined) return undefined;
  const given: unknown = value;
  const isImage = (one: Partial<CalibrationImage> | null): boolean => typeof one?.file === 'string';
  if (!Array.isArray(given) || !given.every(isImage))
    throw invalid('an array of images { file, className }', name, given);
  return value;
}

/**
 * Computes thresholds from normal images and, optionally, a validation set. For a bundle with evidence also
 * computes the statistics of normal images, `normality`; save both with {@link writeCalibration}.
 *
 * Image threshold: an upper bound of the quantile of the scores or, with `validation`, the threshold of
 * maximum F1. Pixel threshold: an upper bound of the quantile of the map maxima, so that a normal image shows
 * a region with a probability of at most `targetFpr`.
 *
 * @param diad - a bundle with evidence must be loaded with `{ calibration: false }`
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there are too few images for the target (with evidence:
 *   fewer than 10), when the validation set has no defect, or when sets share images (by content);
 *   ERR_DIAD_IMAGE_DECODE that names the file; the signal's reason
 */
export async function calibrate(diad: Diad, options: CalibrateOptions): Promise<Calibrated> {
  loadedBundle(diad, 'diad');
  optionsObject(options, 'calibrate options', KEYS);
  if (options?.targetFpr !== undefined) number(options.targetFpr, 'targetFpr', 1e-6, 1 - 1e-6, DEFAULT_FPR);
  boolean(options?.perClass, 'perClass', false);
  callback(options?.onProgress, 'onProgress');
  const validation = imageList(options?.validation, 'validation');
  if ((imageList(options?.good, 'good') ?? []).length === 0)
    throw invalidArgument('Expected normal images but received 0');
  if (validation !== undefined && !validation.some(({ defective }) => defective === true)) {
    throw invalidArgument('Expected defective images in the validation set but found none');
  }
  const byEvidence = diad.info.bundle.evidence !== undefined;
  if (byEvidence && validation !== undefined) {
    throw invalidArgument(
      'Expected no validation set for a bundle with evidence: its thresholds use only normal images',
    );
  }
  if (byEvidence && options.tile !== undefined) {
    throw invalidArgument(
      'Expected no tile for a bundle with evidence: its statistics describe whole images',
    );
  }
  const used = await distinct(options);
  options.signal?.throwIfAborted();
  const { calibration, ...outcome } = await (byEvidence ? fromEvidence : fromScores)(diad, options, used);
  const origin: Origin = {
    method: validation === undefined ? 'quantile' : 'f1max',
    createdAt: new Date().toISOString(),
    model: diad.info.bundle.digest,
    precision: diad.info.precision,
    ...(options.tile === undefined ? {} : { tile: validateTiles(options.tile) }),
    imageDigests: used.digests,
  };
  return { calibration: { ...calibration, ...origin }, ...outcome };
}
