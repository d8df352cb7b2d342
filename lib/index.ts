// The public API.
export { AnomalyMap, type HeatmapOptions } from './anomaly-map.js';
export type { Calibration, CalibrationOrigin, NormalityFile, Thresholds } from './calibration.js';
export {
  Diad,
  type EvidenceScores,
  type ReconstructResult,
  type ScoreResult,
  type SettledScore,
} from './diad.js';
export { DiadError, type DiadErrorCode } from './errors.js';
export { inspectImage, type ImageFormat, type ImageInput, type RawFrame } from './image.js';
export type { BundleEvidence, DiadInfo } from './info.js';
export { tuneAllocator } from './native.js';
export type { Distribution, QueueStats, Timings } from './native.js';
export type { Point, Region, RegionsOptions } from './regions.js';
export type { CallOptions, LoadOptions, Precision, ScoreManyOptions, ScoreOptions } from './options.js';
export type { TileOptions } from './tiles.js';
export { verifyBundle, type StageComparison, type VerifyReport } from './verify.js';
