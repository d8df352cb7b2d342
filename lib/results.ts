// What scoring and reconstructing an image give.
import type { AnomalyMap } from './anomaly-map.js';
import type { Timings } from './native.js';

/**
 * The two parts of a score, in standard deviations of what normal images of the class show; larger is more anomalous. The score is not their sum:
 * each is the maximum of its own map.
 */
export interface EvidenceScores {
  /** How far the image differs from its defect-free reconstruction. */
  readonly reconstruction: number;
  /** How far its features are from those of all normal images. */
  readonly memory: number;
}

/** What one image scored. */
export interface ScoreResult {
  /** How anomalous the image is: the pooled maximum of its map. Of a cosine distance, 0 and up; with `evidence` also below 0. */
  readonly score: number;
  /** Scores above it are anomalous; only of a calibrated bundle, and not with other tiles than it was calibrated on. */
  readonly threshold?: number;
  /** score > threshold; only of a calibrated bundle. */
  readonly anomalous?: boolean;
  /** The score on a scale of 0 to 1 with 0.5 at the threshold; only of a calibrated bundle. */
  readonly normalizedScore?: number;
  /** Only of a bundle with evidence that was calibrated on normal images; the map and the score are then in standard deviations, too. */
  readonly evidence?: EvidenceScores;
  /** Class whose normal images judged the image: the one named by the caller, otherwise the most similar. Absent without classes. */
  readonly className?: string;
  readonly map: AnomalyMap;
  /** Of the image, pixels. */
  readonly imageSize: { readonly width: number; readonly height: number };
  /** Of the noise: a number, or beyond 2^53 - 1 a bigint. */
  readonly seed: number | bigint;
  /** Milliseconds; of an image that was cut into tiles the sums of its tiles', which share batches: more than the time that passed. */
  readonly timings: Timings & { readonly decodeImageMs: number };
  /** Images that were computed together with this one, itself included; of one that was cut into tiles, how many they are. */
  readonly batchSize: number;
  /** Intermediate results by name, float32, row-major; only when asked for with `stages`. */
  readonly stages?: Readonly<
    Record<string, { readonly shape: readonly number[]; readonly data: Float32Array }>
  >;
}

/** An image as the model thinks it would look if it were normal. */
export interface ReconstructResult {
  /** PNG bytes, at the model's size. */
  readonly image: Buffer;
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** RGB, 8 bits, row-major. */
  readonly data: Uint8Array;
  readonly score: number;
  /** Of the noise: a number, or beyond 2^53 - 1 a bigint. */
  readonly seed: number | bigint;
  readonly timings: Timings & { readonly decodeImageMs: number };
  /** Images that were computed together with this one, itself included. */
  readonly batchSize: number;
}

/** One item of `Diad.scoreMany` with `onError: 'yield'`. */
export type SettledScore =
  | { readonly status: 'fulfilled'; readonly index: number; readonly value: ScoreResult }
  | { readonly status: 'rejected'; readonly index: number; readonly reason: unknown };
