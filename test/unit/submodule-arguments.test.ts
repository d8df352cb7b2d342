// Invalid arguments from untyped callers of diad/queue, diad/evaluation and diad/watch: the error names the
// argument and is never a TypeError.
import {
  calibrate,
  evaluateArrays,
  evaluateDataSet,
  readDataSet,
  readEvaluationNpz,
  readGoodImages,
  writeCalibration,
} from '../../lib/evaluation/index.js';
import { runProgress, runResults, startWorker, submitRun } from '../../lib/queue/index.js';
import { jsonlSink, mqttSink, webhookSink } from '../../lib/watch/index.js';
import { STUB_MODEL, stubScorer } from '../support/queue-support.js';
import { rejects } from '../support/support.js';

type Untyped = (...args: unknown[]) => unknown;
const call = (value: unknown, ...args: unknown[]): Promise<unknown> =>
  Promise.resolve().then(() => (value as Untyped)(...args));

const redis = 'redis://127.0.0.1:9';
const scorer = stubScorer(0);
const first = (run: unknown, options?: unknown): Promise<unknown> =>
  (runResults as (...args: unknown[]) => AsyncGenerator)(run, options).next();

const CASES: readonly [what: string, attempt: () => Promise<unknown>, message: RegExp][] = [
  ['submitRun()', () => call(submitRun), /an iterable of submissions for images but received undefined/],
  ['submitRun([])', () => call(submitRun, []), /for model but received undefined/],
  [
    'submitRun: no address',
    () => call(submitRun, [], { model: STUB_MODEL }),
    /for redis but received undefined/,
  ],
  [
    'submitRun: a number as address',
    () => call(submitRun, [], { model: STUB_MODEL, redis: 6379 }),
    /for redis but received 6379/,
  ],
  [
    'submitRun: the name of a model',
    () => call(submitRun, [], { redis, model: 'demo' }),
    /digest of a bundle \(bundleDigest\) for model but received "demo"/,
  ],
  [
    'submitRun: an unknown option',
    () => call(submitRun, [], { redis, model: STUB_MODEL, prio: 1 }),
    /unknown key prio/,
  ],
  ['runResults()', () => first(undefined), /for run but received undefined/],
  ['runResults without options', () => first('run'), /for redis but received undefined/],
  ['runResults: wait', () => first('run', { redis, wait: 'yes' }), /a boolean for wait but received "yes"/],
  ['runResults: signal', () => first('run', { redis, signal: 1 }), /an AbortSignal for signal/],
  ['runProgress()', () => call(runProgress), /for run/],
  ['startWorker()', () => call(startWorker), /for redis/],
  [
    'startWorker without a scorer',
    () => call(startWorker, { redis }),
    /a loaded bundle for scorer but received undefined/,
  ],
  [
    'startWorker: hosts',
    () => call(startWorker, { redis, scorer, hosts: 'a.example' }),
    /an array of names for hosts but received "a.example"/,
  ],
  ['startWorker: log', () => call(startWorker, { redis, scorer, log: true }), /a function for log/],
  [
    'startWorker: keepSeconds',
    () => call(startWorker, { redis, scorer, keepSeconds: -1 }),
    /for keepSeconds but received -1/,
  ],
  [
    'startWorker: jobsPerSecond',
    () => call(startWorker, { redis, scorer, jobsPerSecond: 0 }),
    /for jobsPerSecond but received 0/,
  ],
  [
    'startWorker: silentMs',
    () => call(startWorker, { redis, scorer, silentMs: 0 }),
    /for silentMs but received 0/,
  ],
  [
    'startWorker: an unknown option',
    () => call(startWorker, { redis, scorer, roots: '.' }),
    /unknown key roots/,
  ],
  ['calibrate()', () => call(calibrate), /a loaded bundle for diad but received undefined/],
  ['calibrate without images', () => call(calibrate, scorer), /Expected normal images but received 0/],
  [
    'calibrate: names of files',
    () => call(calibrate, scorer, { good: ['a.png'] }),
    /an array of images \{ file, className \} for good/,
  ],
  [
    'calibrate: validation',
    () => call(calibrate, scorer, { good: [{ file: 'a.png' }], validation: {} }),
    /for validation/,
  ],
  ['calibrate: an unknown option', () => call(calibrate, scorer, { good: [], fpr: 0.1 }), /unknown key fpr/],
  ['evaluateDataSet()', () => call(evaluateDataSet), /a loaded bundle for diad/],
  [
    'evaluateDataSet without a set',
    () => call(evaluateDataSet, scorer),
    /a data set \(readDataSet\) for data/,
  ],
  [
    'evaluateDataSet without a folder',
    () => call(evaluateDataSet, scorer, { images: [] }),
    /for out but received undefined/,
  ],
  ['evaluateArrays()', () => call(evaluateArrays), /an object of arrays for arrays/],
  ['readDataSet()', () => call(readDataSet), /for folderOfSet/],
  ['readGoodImages()', () => call(readGoodImages), /for folder/],
  ['readEvaluationNpz()', () => call(readEvaluationNpz), /for file/],
  ['writeCalibration()', () => call(writeCalibration), /for bundle/],
  ['jsonlSink()', () => call(jsonlSink), /for file/],
  ['webhookSink()', () => call(webhookSink), /http:\/\/ or https:\/\//],
  ['mqttSink()', () => call(mqttSink), /a topic without \+ and # for topic but received undefined/],
  ['mqttSink: no broker URL', () => call(mqttSink, undefined, 'a'), /Expected an mqtt:\/\//],
];

describe('arguments of diad/queue, diad/evaluation and diad/watch', () => {
  for (const [what, attempt, message] of CASES) {
    it(what, () => rejects(attempt(), 'ERR_DIAD_INVALID_ARGUMENT', message));
  }
});
