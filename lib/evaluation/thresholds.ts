// Thresholds from scores: quantiles of normal images with a finite-sample bound, or maximum F1 on a
// validation set.
import type { Thresholds } from '../calibration/calibration.js';
import { invalidArgument } from '../errors.js';

/** Normalized score of the median normal image. */
const MEDIAN_NORMALIZED = 0.05;

/** Default target false positive rate. */
export const DEFAULT_FPR = 0.01;

/** Score of a normal image and the maximum of its map. */
export interface NormalScore {
  readonly score: number;
  readonly peak: number;
}

/** Computes the fewest images for which one of their scores bounds the target rate. */
export const imagesNeeded = (targetFpr: number): number => Math.ceil(1 / targetFpr - 1e-9) - 1;

/**
 * Computes the lowest rate that n images bound: a new score exceeds their maximum with probability 1 / (n +
 * 1).
 */
export const smallestTarget = (images: number): number => 1 / (images + 1);

/** Computes the default target for n images: 0.01, or the lowest rate that they bound if that is higher. */
export const defaultTarget = (images: number): number => Math.max(DEFAULT_FPR, smallestTarget(images));

/**
 * Computes the k-th smallest of n values, k = ceil((n + 1)(1 - target)). A further value from the same
 * distribution exceeds it with a probability of at most `target` (split conformal prediction; Vovk et al.,
 * Algorithmic Learning in a Random World, 2005).
 *
 * @returns undefined if n is too small for the target
 */
export function boundedQuantile(values: readonly number[], target: number): number | undefined {
  // The tolerance absorbs rounding where the product should be an integer: (99 + 1) * (1 - 0.01).
  const rank = Math.ceil((values.length + 1) * (1 - target) - 1e-9);
  return rank > values.length ? undefined : [...values].sort((a, b) => a - b)[rank - 1];
}

/** Computes the median; NaN for no values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Computes the slope of the normalized score that puts the median normal image at 0.05. */
function scaleOf(threshold: number, scores: readonly number[]): number {
  return Math.max(0, (threshold - median(scores)) / Math.log((1 - MEDIAN_NORMALIZED) / MEDIAN_NORMALIZED));
}

/**
 * Computes the threshold of maximum F1, where scores above it are classified as defective: the midpoint
 * between the lowest score above it and the next lower score. Of equal F1 values, takes the highest
 * threshold.
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
 * Computes thresholds from normal images: bounded quantiles of their scores and of their map maxima.
 *
 * @param threshold - image threshold, if computed in another way
 * @returns undefined if there are too few images for the target
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

/** Summary of a calibration for one class, or for all images. */
export interface ClassSummary {
  /** '' for all images. */
  readonly className: string;
  /** Number of images used for the thresholds. */
  readonly images: number;
  /** Number of training images, which contribute only to the statistics. */
  readonly training: number;
  readonly threshold: number;
  /** Target false positive rate. */
  readonly targetFpr: number;
  /** Number of images above the threshold. With evidence, each is scored as an unseen image. */
  readonly falseAlarms: number;
  readonly medianScore: number;
}

/** Summarizes the thresholds and scores of normal images. */
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

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there are too few images for the target rate */
export function requireEnough(images: number, targetFpr: number): void {
  const needed = imagesNeeded(targetFpr);
  if (images >= needed) return;
  throw invalidArgument(
    `Expected at least ${needed} different normal images for a false positive rate of ${targetFpr} ` +
      `but received ${images}: add images, or accept a rate of at least ` +
      `${smallestTarget(images).toPrecision(3)} (--target-fpr)`,
  );
}
