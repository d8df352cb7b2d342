// Redis keys of the queue, and a check that the broker does not lose data.
import type { Redis } from 'ioredis';

/** Returns the name of a model's queue. Workers of other models never see its jobs. */
export const queueName = (modelDigest: string): string => `diad-${modelDigest.slice(0, 16)}`;

/** Returns the name of the queue of permanently failed jobs. */
export const deadLetterName = (modelDigest: string): string => `${queueName(modelDigest)}-dead`;

/** Key of the description of a run. */
export const runKey = (run: string): string => `diad:run:${run}`;
/** Key of the images of a run, in the order of submission. */
export const itemsKey = (run: string): string => `diad:run:${run}:items`;
/** Key of the ended images of a run: result keys by image index; '' for a permanent failure. */
export const endedKey = (run: string): string => `diad:run:${run}:ended`;

/** Returns the job name of an image of a run. */
export const jobName = (run: string, index: number): string => `${run}-${index}`;

/** Parses run and image index from a job name; undefined for a job that does not belong to a run. */
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
    // Hosted brokers often disable CONFIG.
    if (error instanceof Error && FORBIDDEN.test(error.message)) return undefined;
    throw error;
  }
}

/**
 * Checks for broker settings that can lose jobs or results: eviction, or no append-only file.
 *
 * @returns one sentence per problem; empty if there are none or the settings are unavailable
 * @throws the Redis error for failures other than a forbidden CONFIG
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
