// Thresholds from scores: quantiles of normal images with a finite-sample bound, or the best F1 on a validation set with defects.
import type { Thresholds } from '../calibration.js';
import { invalidArgument } from '../errors.js';

/** Where the median normal image lies on the normalized score. */
const MEDIAN_NORMALIZED = 0.05;

/** Default share of normal images that may be called anomalous. */
export const DEFAULT_FPR = 0.01;

/** Score of a normal image, and the largest value of its map. */
export interface NormalScore {
  readonly score: number;
  readonly peak: number;
}

/** Images that a target needs at least: with fewer, no score of theirs bounds it. */
export const imagesNeeded = (targetFpr: number): number => Math.ceil(1 / targetFpr - 1e-9) - 1;

/** The smallest target that n images bound: their largest score is exceeded with a probability of at most 1 / (n + 1). */
export const smallestTarget = (images: number): number => 1 / (images + 1);

/** The default target where few images must do: 0.01, or the smallest that n images bound. */
export const defaultTarget = (images: number): number => Math.max(DEFAULT_FPR, smallestTarget(images));

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

/** The median; NaN of no values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Slope of the normalized score: the median normal image comes to 0.05. */
function scaleOf(threshold: number, scores: readonly number[]): number {
  return Math.max(0, (threshold - median(scores)) / Math.log((1 - MEDIAN_NORMALIZED) / MEDIAN_NORMALIZED));
}

/**
 * The threshold whose F1 is largest when scores above it are called defective: half way between the score that is still called so and the next
 * below. Of equal F1 the highest.
 *
 * @returns undefined without defective images
 */
export function f1maxThreshold(
  images: readonly { readonly score: number; readonly defective: boolean }[],
): number | undefined {
  const sorted = [...images].sort((a, b) => b.score - a.score);
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

/**
 * Thresholds from normal images: bounded quantiles of their scores and of their maps' largest values.
 *
 * @param threshold - of the image score, where it was found in another way
 * @returns undefined where there are too few images for the target
 */
export function thresholdsOf(
  good: readonly NormalScore[],
  targetFpr: number,
  threshold?: number,
): Thresholds | undefined {
  const scores = good.map(({ score }) => score);
  const found = threshold ?? boundedQuantile(scores, targetFpr);
  const pixelThreshold = boundedQuantile(
    good.map(({ peak }) => peak),
    targetFpr,
  );
  if (found === undefined || pixelThreshold === undefined) return undefined;
  return { threshold: found, pixelThreshold, scale: scaleOf(found, scores), images: good.length };
}

/** What calibration found for one class, or for all images. */
export interface ClassSummary {
  /** '': all images. */
  readonly className: string;
  /** Images the thresholds come from. */
  readonly images: number;
  /** Further images that only tell what is normal. */
  readonly training: number;
  readonly threshold: number;
  /** Share of normal images that may be called anomalous. */
  readonly targetFpr: number;
  /** Images above the threshold, each scored as if calibration had not seen it where the bundle has evidence. */
  readonly falseAlarms: number;
  readonly medianScore: number;
}

/** Sums up what was found from normal images. */
export function summaryOf(
  className: string,
  found: Thresholds,
  scores: readonly number[],
  targetFpr: number,
  training: number,
): ClassSummary {
  const falseAlarms = scores.filter((score) => score > found.threshold).length;
  return {
    className,
    images: scores.length,
    training,
    threshold: found.threshold,
    targetFpr,
    falseAlarms,
    medianScore: median(scores),
  };
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT when so many images bound no such target */
export function requireEnough(images: number, targetFpr: number): void {
  const needed = imagesNeeded(targetFpr);
  if (images >= needed) return;
  throw invalidArgument(
    `Expected at least ${needed} different normal images for a false positive rate of ${targetFpr} but received ${images}: ` +
      `add images, or accept a rate of at least ${smallestTarget(images).toPrecision(3)} (--target-fpr)`,
  );
}
