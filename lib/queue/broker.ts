// Redis behind the queue: names of what is kept there, and the check that it keeps what it is given.
import type { Redis } from 'ioredis';

/** Name of a model's queue: workers of another model never see its jobs. */
export const queueName = (modelDigest: string): string => `diad-${modelDigest.slice(0, 16)}`;

/** Where jobs go that failed for good. */
export const deadLetterName = (modelDigest: string): string => `${queueName(modelDigest)}-dead`;

/** What a run is of. */
export const runKey = (run: string): string => `diad:run:${run}`;
/** Its images, in the order of submission. */
export const itemsKey = (run: string): string => `diad:run:${run}:items`;
/** Where the results of its images are: their keys by the images' places; '' for one that failed for good. */
export const endedKey = (run: string): string => `diad:run:${run}:ended`;

/** Name of the job of a run's image. */
export const jobName = (run: string, index: number): string => `${run}-${index}`;

/** Run and place of a job's image; undefined for a job that no run has handed in. */
export function placeOf(job: string): { readonly run: string; readonly index: string } | undefined {
  const [, run, index] = /^(.+)-(\d+)$/.exec(job) ?? [];
  return run === undefined || index === undefined ? undefined : { run, index };
}

const FORBIDDEN = /^NOPERM|unknown command|not (allowed|available|supported|permitted)|disabled/i;

async function setting(redis: Redis, name: string): Promise<string | undefined> {
  try {
    const answer = await redis.config('GET', name);
    return answer[1];
  } catch (error) {
    if (error instanceof Error && FORBIDDEN.test(error.message)) return undefined; // hosted brokers often forbid CONFIG
    throw error;
  }
}

/**
 * What about the broker would lose jobs or results: eviction, no append-only file.
 *
 * @returns one sentence per problem; empty when all is well or the broker does not tell
 * @throws what Redis answers when it is not CONFIG that it refuses
 */
export async function brokerProblems(redis: Redis): Promise<string[]> {
  const [policy, appendOnly] = [await setting(redis, 'maxmemory-policy'), await setting(redis, 'appendonly')];
  return [
    ...(policy === undefined || policy === 'noeviction'
      ? []
      : [`maxmemory-policy is ${policy}: set it to noeviction, or jobs vanish`]),
    ...(appendOnly === undefined || appendOnly === 'yes'
      ? []
      : ['appendonly is no: set it to yes, or a restart loses jobs']),
  ];
}
