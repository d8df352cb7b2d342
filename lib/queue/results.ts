// Storage of results and runs in Redis, and their expiry.
import type { Redis } from 'ioredis';
import { endedKey, itemsKey, placeOf, runKey } from './broker.js';
import { sha256 } from './reference.js';

/** A stored result. */
export interface StoredScore {
  readonly score: number;
  readonly threshold?: number;
  readonly anomalous?: boolean;
  /** Class whose thresholds were used; absent: the global ones. */
  readonly className?: string;
  readonly seed: number;
  readonly model: string;
  /** Precision of the networks. */
  readonly precision: string;
}

/** All inputs of a score and its verdict except the image. */
export type ResultBasis = Omit<StoredScore, 'score' | 'anomalous'>;

/**
 * Computes the key of a result from image, model, options, precision and threshold, so that equal work is
 * shared.
 */
export function resultKey(
  imageSha256: string,
  { model, seed, precision, threshold, className }: ResultBasis,
): string {
  const basis = { seed, precision, threshold, className };
  return `diad:result:${sha256(JSON.stringify([model, imageSha256, basis]))}`;
}

/**
 * Checks whether a result exists, and extends its lifetime to that of a new one.
 *
 * @param keepSeconds - lifetime of a new result, 0 for ever
 */
export async function isKept(redis: Redis, key: string, keepSeconds: number): Promise<boolean> {
  const left = await redis.ttl(key);
  if (left === -2) return false;
  if (left === -1 || (keepSeconds > 0 && left >= keepSeconds)) return true;
  return (keepSeconds === 0 ? await redis.persist(key) : await redis.expire(key, keepSeconds)) === 1;
}

/** Stores a result unless another worker has already stored it. */
export async function keep(
  redis: Redis,
  key: string,
  stored: StoredScore,
  keepSeconds: number,
): Promise<void> {
  if (keepSeconds > 0) await redis.set(key, JSON.stringify(stored), 'EX', keepSeconds, 'NX');
  else await redis.set(key, JSON.stringify(stored), 'NX');
}

/** Seconds a run is kept after its last result expires, so that results can be reported as expired. */
export const RUN_OUTLIVES = 86_400;

// KEYS: the run, its items, ended images. ARGV: index, result key, lifetime of the result in seconds,
// RUN_OUTLIVES.
// When all images have ended, the run expires after the longest lifetime of its results, where 0 means never.
const END = `
if redis.call('EXISTS', KEYS[2]) == 0 then return end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local keep = tonumber(ARGV[3])
local longest = tonumber(redis.call('HGET', KEYS[1], 'keep') or keep)
if keep == 0 or longest == 0 then longest = 0 else longest = math.max(keep, longest) end
redis.call('HSET', KEYS[1], 'keep', longest)
if longest == 0 or redis.call('HLEN', KEYS[3]) < redis.call('LLEN', KEYS[2]) then return end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, longest + ARGV[4]) end
`;

/**
 * Records that a job of a run has ended.
 *
 * @param key - key of its result; '' for a permanent failure
 */
export async function noteEnd(redis: Redis, job: string, key: string, keepSeconds: number): Promise<void> {
  const place = placeOf(job);
  if (place === undefined) return;
  const { run, index } = place;
  await redis.eval(END, 3, runKey(run), itemsKey(run), endedKey(run), index, key, keepSeconds, RUN_OUTLIVES);
}

/**
 * Reads the stored results for images of a run.
 *
 * @returns per image: the result, null if it has expired, undefined if there is none
 */
export async function readStored(
  redis: Redis,
  run: string,
  places: readonly number[],
): Promise<(string | null | undefined)[]> {
  const keys = await redis.hmget(endedKey(run), ...places.map(String));
  const had = [...new Set(keys.filter((key) => key !== null && key !== ''))] as string[];
  const stored = had.length === 0 ? [] : await redis.mget(...had);
  const byKey = new Map(had.map((key, i) => [key, stored[i] ?? null]));
  return keys.map((key) => (key === null ? undefined : byKey.get(key)));
}
