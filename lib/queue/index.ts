// Public API of diad/queue: runs of images over many machines, on BullMQ and Redis.
export { bundleDigest } from '../calibration/bundle-digest.js';
export { deadLetterName, queueName } from './broker.js';
export { INLINE_LIMIT, type ReadPolicy, type Reference } from './reference.js';
export { resultKey, type ResultBasis, type StoredScore } from './results.js';
export {
  runProgress,
  runResults,
  submitRun,
  type ReadRunOptions,
  type RunResult,
  type ScoreSettings,
  type Submission,
  type SubmitOptions,
} from './run.js';
export { startWorker, type QueueWorker, type WorkerOptions, type WorkerScorer } from './worker.js';
