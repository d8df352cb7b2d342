// Results of scoring and reconstruction.
import type { AnomalyMap } from './scoring/anomaly-map.js';
import type { Timings } from './native/addon.js';

/**
 * Separate scores of the two kinds of evidence, in standard deviations of normal images of the class; larger
 * is more anomalous. The total score is not their sum, because each is the maximum of a different map.
 */
export interface EvidenceScores {
  /** Difference between the image and its reconstruction. */
  readonly reconstruction: number;
  /** Distance of the image's features from those of all normal images. */
  readonly memory: number;
}

/** Result of scoring an image. */
export interface ScoreResult {
  /**
   * Anomaly score: the pooled maximum of the map. A cosine distance of at least 0; with `evidence` it can be
   * negative.
   */
  readonly score: number;
  /** Scores above it are anomalous. Only with a calibration for the same tiling. */
  readonly threshold?: number;
  /** Whether score > threshold. Only with a calibration. */
  readonly anomalous?: boolean;
  /** Score on a scale of 0 to 1 with 0.5 at the threshold. Only with a calibration. */
  readonly normalizedScore?: number;
  /** Only for a calibrated bundle with evidence. Map and score are then in standard deviations, too. */
  readonly evidence?: EvidenceScores;
  /** Class whose normal images judged the image: the one named by the caller, otherwise the most similar. Absent without classes. */
  readonly className?: string;
  readonly map: AnomalyMap;
  /** Size of the image, pixels. */
  readonly imageSize: { readonly width: number; readonly height: number };
  /** Seed of the noise: a number, or a bigint above 2^53 - 1. */
  readonly seed: number | bigint;
  /** Milliseconds. For tiles: sums over all tiles, which share batches, so they exceed the elapsed time. */
  readonly timings: Timings & { readonly decodeImageMs: number };
  /** Size of the batch that contained this image; for tiles: the number of tiles. */
  readonly batchSize: number;
  /** Intermediate results by name, float32, row-major. Only with option `stages`. */
  readonly stages?: Readonly<
    Record<string, { readonly shape: readonly number[]; readonly data: Float32Array }>
  >;
}

/** A defect-free reconstruction of an image. */
export interface ReconstructResult {
  /** PNG bytes at the model's image size. */
  readonly image: Buffer;
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** RGB, 8 bits, row-major. */
  readonly data: Uint8Array;
  readonly score: number;
  /** Seed of the noise: a number, or a bigint above 2^53 - 1. */
  readonly seed: number | bigint;
  readonly timings: Timings & { readonly decodeImageMs: number };
  /** Size of the batch that contained this image. */
  readonly batchSize: number;
}

/** A result of `Diad.scoreMany` with `onError: 'yield'`. */
export type SettledScore =
  | { readonly status: 'fulfilled'; readonly index: number; readonly value: ScoreResult }
  | { readonly status: 'rejected'; readonly index: number; readonly reason: unknown };
