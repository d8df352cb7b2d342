// Options of runs and of workers, with their defaults and bounds.
import { stat } from 'node:fs/promises';
import { PRIORITY_LIMIT } from 'bullmq';
import { RECHECK_MS } from '../health/engine-health.js';
import { DiadError } from '../errors.js';
import {
  abortSignal,
  boolean,
  callback,
  integer,
  invalid,
  loadedBundle,
  optionsObject,
  requiredText,
  text,
} from '../validate.js';
import type { ReadPolicy, ReadRunOptions, SubmitOptions, WorkerOptions } from './types.js';

/** Longest timer delay, milliseconds. */
const MOST_MS = 2 ** 31 - 1;

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateSubmitOptions(options: SubmitOptions): Required<SubmitOptions> {
  const given = optionsObject(options, 'submit options', ['redis', 'model', 'seed', 'priority', 'attempts']);
  if (!/^[0-9a-f]{64}$/.test(String(given.model)))
    throw invalid('the digest of a bundle (bundleDigest)', 'model', given.model);
  return {
    redis: requiredText(given.redis, 'redis'),
    model: given.model!,
    seed: integer(given.seed, 'seed', 0, Number.MAX_SAFE_INTEGER, 0),
    priority: integer(given.priority, 'priority', 0, PRIORITY_LIMIT, 0),
    attempts: integer(given.attempts, 'attempts', 1, 1000, 5),
  };
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateReadRunOptions(options: ReadRunOptions): {
  redis: string;
  wait: boolean;
  signal: AbortSignal | undefined;
} {
  const given = optionsObject(options, 'options of a run', ['redis', 'wait', 'signal']);
  return {
    redis: requiredText(given.redis, 'redis'),
    wait: boolean(given.wait, 'wait', false),
    signal: abortSignal(given.signal),
  };
}

type ValidatedWorker = Required<Omit<WorkerOptions, keyof ReadPolicy | 'jobsPerSecond'>> & {
  readonly jobsPerSecond: number | undefined;
  readonly policy: ReadPolicy;
};

const WORKER_KEYS = [
  'redis',
  'scorer',
  'concurrency',
  'jobsPerSecond',
  'keepSeconds',
  'lockMs',
  'maxStalls',
  'silentMs',
  'recheckMs',
  'allowUnsafeBroker',
  'log',
  'root',
  'hosts',
  'privateHosts',
  'buckets',
  's3Endpoint',
  'maxBytes',
] as const;

function names(value: unknown, name: string): readonly string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value) || !value.every((one) => typeof one === 'string'))
    throw invalid('an array of names', name, value);
  return value;
}

async function readPolicy(given: Partial<WorkerOptions>): Promise<ReadPolicy> {
  const [root, s3Endpoint] = [text(given.root, 'root'), text(given.s3Endpoint, 's3Endpoint')];
  if (root !== undefined && (await stat(root).catch(() => undefined))?.isDirectory() !== true) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected a folder for root but ${root} is not a folder`,
    );
  }
  return {
    ...(root === undefined ? {} : { root }),
    hosts: names(given.hosts, 'hosts'),
    privateHosts: names(given.privateHosts, 'privateHosts'),
    buckets: names(given.buckets, 'buckets'),
    ...(s3Endpoint === undefined ? {} : { s3Endpoint }),
    ...(given.maxBytes === undefined
      ? {}
      : { maxBytes: integer(given.maxBytes, 'maxBytes', 1, Number.MAX_SAFE_INTEGER, 1) }),
  };
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export async function validateWorkerOptions(options: WorkerOptions): Promise<ValidatedWorker> {
  const given = optionsObject(options, 'worker options', WORKER_KEYS);
  return {
    redis: requiredText(given.redis, 'redis'),
    scorer: loadedBundle(given.scorer, 'scorer'),
    concurrency: integer(given.concurrency, 'concurrency', 1, 65_536, 16),
    jobsPerSecond:
      given.jobsPerSecond === undefined
        ? undefined
        : integer(given.jobsPerSecond, 'jobsPerSecond', 1, 1_000_000, 1),
    keepSeconds: integer(given.keepSeconds, 'keepSeconds', 0, MOST_MS, 0),
    lockMs: integer(given.lockMs, 'lockMs', 1, MOST_MS, 30_000),
    maxStalls: integer(given.maxStalls, 'maxStalls', 0, 1_000_000, 1),
    silentMs: integer(given.silentMs, 'silentMs', 1, MOST_MS, 15_000),
    recheckMs: integer(given.recheckMs, 'recheckMs', 1, MOST_MS, RECHECK_MS),
    allowUnsafeBroker: boolean(given.allowUnsafeBroker, 'allowUnsafeBroker', false),
    log: callback(given.log, 'log') ?? (() => undefined),
    policy: await readPolicy(given),
  };
}
