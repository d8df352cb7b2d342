// Public API of diad/queue: runs of images over many machines, on BullMQ and Redis.
export { bundleDigest } from '../calibration/bundle-digest.js';
export { deadLetterName, queueName } from './broker.js';
export { INLINE_LIMIT, type Reference } from './reference.js';
export type { ReadPolicy, ReadRunOptions, SubmitOptions, WorkerOptions, WorkerScorer } from './types.js';
export { resultKey, type ResultBasis, type StoredScore } from './results.js';
export {
  runProgress,
  runResults,
  submitRun,
  type RunResult,
  type ScoreSettings,
  type Submission,
} from './run.js';
export { startWorker, type QueueWorker } from './worker.js';
