// Calibration: thresholds from normal images; of a bundle with evidence also what normal images look like.
import type { Calibration, Thresholds } from '../calibration.js';
import type { Diad } from '../diad.js';
import { DiadError, invalidArgument } from '../errors.js';
import { validateTiles } from '../options.js';
import type { TileOptions } from '../tiles.js';
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

export type { CalibrationRole, ClassSummary };

/** A normal image, or one of a validation set. */
export interface CalibrationImage {
  readonly file: string;
  readonly className: string;
  /** Default false. */
  readonly defective?: boolean;
  /** What a normal image is used for by a bundle with evidence: images it was trained on only tell what is normal. Default 'calibration'. */
  readonly role?: CalibrationRole;
}

/** Options of {@link calibrate}. */
export interface CalibrateOptions {
  /** Normal images. */
  readonly good: readonly CalibrationImage[];
  /**
   * Share of normal images that may be called anomalous, 0 to 1, both excluded. Default 0.01; of a bundle with evidence the smallest
   * share that the images bound where that is larger, 1 / (images + 1).
   */
  readonly targetFpr?: number;
  /** Thresholds of each class beside the global ones. Default: true for a bundle with evidence, else false. */
  readonly perClass?: boolean;
  /** Images with and without defects: the image threshold is the one of the largest F1 on them. Not for a bundle with evidence. */
  readonly validation?: readonly CalibrationImage[];
  /** Images on which results will be reported: refused where one of them is among the others. */
  readonly test?: readonly string[];
  /** Of the noise. Default 0. */
  readonly seed?: number | bigint;
  /** For images that will be scored in tiles: these must be scored in the same way. Not for a bundle with evidence. */
  readonly tile?: TileOptions;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
}

/** A calibration and what there is to say about it. */
export interface Calibrated {
  readonly calibration: Calibration;
  /** Content of normality.safetensors; only of a bundle with evidence. */
  readonly normality?: Uint8Array;
  /** All images first, then the classes that have thresholds of their own. */
  readonly summary: readonly ClassSummary[];
  /** Classes that have too few images for thresholds of their own, with how many they have. */
  readonly tooFew: readonly { readonly className: string; readonly images: number }[];
}

interface Scored {
  readonly className: string;
  readonly defective: boolean;
  readonly score: number;
  /** Largest value of its map. */
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

/** The normal images that differ from one another, and the hashes of all; a copy of an image says nothing new. */
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

/** The images of a calibration. */
export interface Distinct {
  /** Normal images that differ from one another. */
  readonly good: readonly CalibrationImage[];
  /** Digests of all images. */
  readonly digests: readonly string[];
}

/** How thresholds were found, whatever they are. */
type Origin = Pick<Calibration, 'method' | 'createdAt' | 'model' | 'precision' | 'tile' | 'imageDigests'>;
/** What calibration finds, before its origin is noted. */
export type Outcome = Omit<Calibrated, 'calibration'> & {
  readonly calibration: Omit<Calibration, keyof Origin>;
};

/** Thresholds of a bundle whose scores do not depend on the calibration. */
async function fromScores(diad: Diad, options: CalibrateOptions, { good }: Distinct): Promise<Outcome> {
  const { validation, targetFpr = DEFAULT_FPR, perClass = false } = options;
  requireEnough(good.length, targetFpr);
  const scored = await scoreAll(diad, [...good, ...(validation ?? [])], options);
  const [goodScored, validationScored] = [
    scored.slice(0, good.length),
    validation === undefined ? undefined : scored.slice(good.length),
  ];
  /** undefined where a class has too few images, or no defect in the validation set. */
  const thresholds = (its: (image: Scored) => boolean): Thresholds | undefined => {
    const best = validationScored === undefined ? undefined : f1maxThreshold(validationScored.filter(its));
    if (validationScored !== undefined && best === undefined) return undefined;
    return thresholdsOf(goodScored.filter(its), targetFpr, best);
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
 * Finds thresholds from normal images, and from a validation set where one is given. A bundle with evidence learns what normal images look like,
 * too: `normality`, which {@link writeCalibration} writes beside the thresholds.
 *
 * Image threshold: the bounded quantile of the images' scores, or with `validation` the one of its largest F1. Pixel threshold: the bounded
 * quantile of the maps' largest values, so that a normal image shows any region with a probability of at most `targetFpr`.
 *
 * @param diad - a bundle with evidence must be loaded with `{ calibration: false }`
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there are too few images for the target (of a bundle with evidence: fewer than 10), when the
 *   validation set has no defect, or when images are shared between sets (by content); ERR_DIAD_IMAGE_DECODE that names the file; the signal's
 *   reason
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
      'Expected no validation set for a bundle with evidence: its thresholds come from normal images alone',
    );
  }
  if (byEvidence && options.tile !== undefined) {
    throw invalidArgument(
      'Expected no tile for a bundle with evidence: it learns what whole images look like, which says nothing of tiles',
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
