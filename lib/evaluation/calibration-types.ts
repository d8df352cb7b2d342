// Types of a calibration: what it receives and what it returns.
import type { Calibration } from '../calibration/calibration.js';
import type { TileOptions } from '../scoring/tiles.js';
import type { CalibrationRole } from './learn-normality.js';
import type { ClassSummary } from './thresholds.js';

/** A normal image, or an image of a validation set. */
export interface CalibrationImage {
  readonly file: string;
  readonly className: string;
  /** Default false. */
  readonly defective?: boolean;
  /**
   * Role of a normal image for a bundle with evidence: images from training contribute to the statistics but
   * not to the thresholds. Default 'calibration'.
   */
  readonly role?: CalibrationRole;
}

/** Options of {@link calibrate}. */
export interface CalibrateOptions {
  /** Normal images. */
  readonly good: readonly CalibrationImage[];
  /**
   * Target false positive rate: share of normal images that can be classified as anomalous, between 0 and 1,
   * exclusive. Default 0.01; for a bundle with evidence at least 1 / (images + 1), the lowest rate the images
   * support.
   */
  readonly targetFpr?: number;
  /** Compute thresholds per class in addition to the global ones. Default: true with evidence, else false. */
  readonly perClass?: boolean;
  /** Images with and without defects; sets the image threshold at the maximum F1. Not with evidence. */
  readonly validation?: readonly CalibrationImage[];
  /** Test images for later evaluation. Rejected if one of them is also used for calibration. */
  readonly test?: readonly string[];
  /** Seed of the noise. Default 0. */
  readonly seed?: number | bigint;
  /** Tiling, if images will be scored in tiles with the same options. Not with evidence. */
  readonly tile?: TileOptions;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
}

/** Result of {@link calibrate}. */
export interface Calibrated {
  readonly calibration: Calibration;
  /** Content of normality.safetensors. Only with evidence. */
  readonly normality?: Uint8Array;
  /** Summary of all images, followed by each class with its own thresholds. */
  readonly summary: readonly ClassSummary[];
  /** Classes with too few images for their own thresholds. */
  readonly tooFew: readonly { readonly className: string; readonly images: number }[];
}

/** Deduplicated images of a calibration. */
export interface Distinct {
  /** Normal images without duplicates. */
  readonly good: readonly CalibrationImage[];
  /** Digests of all images. */
  readonly digests: readonly string[];
}

/** Calibration without its origin. */
export type Outcome = Omit<Calibrated, 'calibration'> & {
  readonly calibration: Omit<Calibration, keyof Origin>;
};

/** Metadata about how the thresholds were computed. */
export type Origin = Pick<
  Calibration,
  'method' | 'createdAt' | 'model' | 'precision' | 'tile' | 'imageDigests'
>;
