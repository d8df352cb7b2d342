// Public API of 'diad/evaluation': data sets, metrics, reports and calibration.
export { calibrate, type CalibrationRole, type ClassSummary } from './calibrate.js';
export { type Calibrated, type CalibrateOptions, type CalibrationImage } from './calibration-types.js';
export { copyBundle, writeCalibration } from './calibration-files.js';
export { readGoodImages, type GoodImage } from './datasets/good.js';
export {
  LAYOUT_NAMES,
  readDataSet,
  type DataSet,
  type LayoutName,
  type TestImage,
} from './datasets/index.js';
export {
  evaluateDataSet,
  type ClassReport,
  type EvaluationCall,
  type EvaluateOptions,
  type Evaluation,
  type EvaluationProgress,
  type FailedImage,
  type ImageReport,
} from './evaluate.js';
export {
  evaluateArrays,
  METRIC_NAMES,
  METRICS_MODES,
  type ClassMetrics,
  type CurvePoint,
  type EvaluatedMetrics,
  type EvaluationArrays,
  type Metrics,
  type MetricsMode,
  type MetricsOptions,
} from './metrics.js';
export { readEvaluationNpz } from './npz.js';
export type { ScoredImage, ScoredImages } from './scored-images.js';
export { writeReport } from './report/index.js';
