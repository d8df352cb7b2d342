// Calibration of a bundle with evidence: statistics of normal images, and thresholds from unseen images.
import { NORMALITY_FILE, type Thresholds } from '../calibration/calibration.js';
import { openCalibrator, type Diad } from '../diad.js';
import { DiadError, invalidArgument } from '../errors.js';
import type { NativeUnseenScores } from '../native/addon.js';
import { oneOf } from '../validate.js';
import type { CalibrateOptions, CalibrationImage, Distinct, Outcome } from './calibration-types.js';
import { sha256 } from './content-hash.js';
import {
  CALIBRATION_ROLES,
  chosenImages,
  isJudged,
  learnNormality,
  MOST_IMAGES,
  type NormalImage,
} from './learn-normality.js';
import {
  defaultTarget,
  requireEnough,
  summaryOf,
  thresholdsOf,
  type ClassSummary,
  type NormalScore,
} from './thresholds.js';

/** Fewest normal images for the statistics of a class. */
const FEWEST_IMAGES = 10;

const namesOf = (images: readonly CalibrationImage[]): string[] =>
  [...new Set(images.map(({ className }) => className))].sort();

/** Selects the images for the statistics, and lists the classes with too few images for their own. */
export function imagesToLearnFrom(
  good: readonly CalibrationImage[],
  perClass: boolean,
): {
  readonly images: readonly NormalImage[];
  readonly tooFew: readonly { readonly className: string; readonly images: number }[];
} {
  const roles = good.map(({ role }, i) => oneOf(role, `good[${i}].role`, CALIBRATION_ROLES, 'calibration'));
  if (good.length < FEWEST_IMAGES) {
    throw invalidArgument(
      `Expected at least ${FEWEST_IMAGES} different normal images but received ${good.length}: ` +
        'add images without defects',
    );
  }
  const judged = roles.filter(isJudged).length;
  if (judged < 2) {
    throw invalidArgument(
      'Expected at least 2 normal images that the model was not trained on ' +
        `but received ${judged}: thresholds come from these`,
    );
  }
  const names = namesOf(good);
  const tooFew: { className: string; images: number }[] = [];
  if (perClass && names.length > 1) {
    for (const name of names) {
      const own = roles.filter((_, i) => good[i]!.className === name);
      if (own.length < FEWEST_IMAGES || own.filter(isJudged).length < 2)
        tooFew.push({ className: name, images: own.length });
    }
  }
  const isNamed = (name: string): boolean =>
    perClass && names.length > 1 && tooFew.every(({ className }) => className !== name);
  const images = good.map(({ file, className }, i) => ({
    file,
    className: isNamed(className) ? className : undefined,
    role: roles[i]!,
  }));
  return { images: chosenImages(images), tooFew };
}

/** Computes statistics and thresholds of a bundle with evidence. Each image is scored as an unseen one. */
export async function fromEvidence(
  diad: Diad,
  options: CalibrateOptions,
  { good }: Distinct,
): Promise<Outcome> {
  const { seed = 0, signal, onProgress, targetFpr, perClass = true } = options;
  const { images, tooFew } = imagesToLearnFrom(good, perClass);
  const judged = images.filter(({ role }) => isJudged(role)).length;
  if (targetFpr !== undefined) requireEnough(Math.min(judged, MOST_IMAGES), targetFpr);
  const learned = await learnNormality(openCalibrator(diad), images, { seed, signal, onProgress });
  const { all, classes, summary, tooFew: unbounded } = thresholdsLearned(images, learned.images, targetFpr);
  const { normality } = learned;
  return {
    calibration: {
      ...all,
      ...(Object.keys(classes).length === 0 ? {} : { classes }),
      normality: { file: NORMALITY_FILE, sha256: sha256(normality), size: normality.byteLength },
    },
    normality,
    summary,
    tooFew: [...tooFew, ...unbounded],
  };
}

/** Computes the thresholds of all images and of each class from the scores of a calibrator. */
export function thresholdsLearned(
  images: readonly NormalImage[],
  own: NativeUnseenScores,
  targetFpr: number | undefined,
) {
  const rowsOf = ({ indices, scores, peaks }: NativeUnseenScores, name?: string): NormalScore[] =>
    [...indices].flatMap((index, row) =>
      name === undefined || images[index]?.className === name
        ? [{ score: scores[row]!, peak: peaks[row]! }]
        : [],
    );
  const trainingOf = (name?: string): number =>
    images.filter(({ className, role }) => !isJudged(role) && (name === undefined || className === name))
      .length;
  const summary: ClassSummary[] = [];
  const found = (
    className: string,
    rows: readonly NormalScore[],
    training: number,
  ): Thresholds | undefined => {
    const target = targetFpr ?? defaultTarget(rows.length);
    const limits = thresholdsOf(rows, target);
    if (limits === undefined) return undefined;
    const scores = rows.map(({ score }) => score);
    summary.push(summaryOf(className, limits, scores, target, training));
    return { ...limits, targetFpr: target };
  };
  const everything = rowsOf(own);
  if (targetFpr !== undefined) requireEnough(everything.length, targetFpr);
  const all = found('', everything, trainingOf());
  if (all === undefined) throw new DiadError('ERR_DIAD_INTERNAL', 'Expected thresholds of all images');
  const classes: Record<string, Thresholds> = {};
  const tooFew: { className: string; images: number }[] = [];
  for (const name of [...new Set(images.map(({ className }) => className))].sort()) {
    if (name === undefined) continue;
    const rows = rowsOf(own, name);
    const limits = found(name, rows, trainingOf(name));
    if (limits === undefined) tooFew.push({ className: name, images: rows.length });
    else classes[name] = limits;
  }
  return { all, classes, summary, tooFew };
}
