// Redis behind the queue: connections, names of what is kept there, and the check that it keeps what it is given.
import { Redis } from 'ioredis';
import { DiadError } from '../errors.js';
import { sha256 } from './reference.js';

/** Options of a job that change its result. */
export interface ScoreSettings {
  readonly seed: number;
}

/** Opens a connection that waits for the broker rather than fail. */
export function connect(url: string): Redis {
  if (!URL.canParse(url) || !/^rediss?:$/.test(new URL(url).protocol)) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected redis://… or rediss://… for redis but received "${url.replace(/\/\/.*@/, '//…@')}"`,
    );
  }
  const connection = new Redis(url, { maxRetriesPerRequest: null, retryStrategy: (times) => Math.min(2000, 100 * times) });
  connection.on('error', () => undefined); // told by the commands that wait, and by the worker's log
  return connection;
}

/** Name of a model's queue: workers of another model never see its jobs. */
export const queueName = (modelDigest: string): string => `diad-${modelDigest.slice(0, 16)}`;

/** Where jobs go that failed for good. */
export const deadLetterName = (modelDigest: string): string => `${queueName(modelDigest)}-dead`;

/** Key of a result: the same picture, model and options have one result, whoever computed it and however often. */
export function resultKey(modelDigest: string, imageSha256: string, { seed }: ScoreSettings): string {
  return `diad:result:${sha256(JSON.stringify([modelDigest, imageSha256, { seed }]))}`;
}

export const runKey = (run: string): string => `diad:run:${run}`;
export const itemsKey = (run: string): string => `diad:run:${run}:items`;

async function setting(redis: Redis, name: string): Promise<string | undefined> {
  try {
    const answer = await redis.config('GET', name);
    return answer[1];
  } catch {
    return undefined; // hosted brokers often forbid CONFIG
  }
}

/**
 * What about the broker would lose jobs or results: eviction, no append-only file.
 *
 * @returns one sentence per problem; empty when all is well or the broker does not tell
 */
export async function brokerProblems(redis: Redis): Promise<string[]> {
  const [policy, appendOnly] = [await setting(redis, 'maxmemory-policy'), await setting(redis, 'appendonly')];
  return [
    ...(policy === undefined || policy === 'noeviction' ? [] : [`maxmemory-policy is ${policy}: set it to noeviction, or jobs vanish`]),
    ...(appendOnly === undefined || appendOnly === 'yes' ? [] : ['appendonly is no: set it to yes, or a restart loses jobs']),
  ];
}
