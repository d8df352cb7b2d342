// The public API.
export { AnomalyMap, type HeatmapOptions } from './scoring/anomaly-map.js';
export type { Calibration, CalibrationOrigin, NormalityFile, Thresholds } from './calibration/calibration.js';
export {
  Diad,
  type EvidenceScores,
  type ReconstructResult,
  type ScoreResult,
  type SettledScore,
} from './diad.js';
export { DiadError, type DiadErrorCode } from './errors.js';
export { inspectImage } from './image/decode.js';
export { type ImageFormat, type ImageInput, type RawFrame } from './image/types.js';
export type { BundleEvidence, DiadInfo } from './scoring/info.js';
export { tuneAllocator, type Distribution, type QueueStats, type Timings } from './native/addon.js';
export type { Point, Region, RegionsOptions } from './scoring/regions.js';
export type {
  CallOptions,
  LoadOptions,
  Precision,
  ScoreManyOptions,
  ScoreOptions,
} from './scoring/options.js';
export type { TileOptions } from './scoring/tiles.js';
export { verifyBundle, type StageComparison, type VerifyReport } from './verify/verify.js';
