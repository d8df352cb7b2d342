// Stored results: what each is kept under, and for how long it and the runs that point to it are.
import type { Redis } from 'ioredis';
import { endedKey, itemsKey, placeOf, runKey } from './broker.js';
import { sha256 } from './reference.js';

/** A stored result. */
export interface StoredScore {
  readonly score: number;
  readonly threshold?: number;
  readonly anomalous?: boolean;
  /** The class whose own thresholds were used; absent: the global ones were. */
  readonly className?: string;
  readonly seed: number;
  readonly model: string;
  /** What the networks computed in. */
  readonly precision: string;
}

/** All that a score and its verdict follow from, the image aside. */
export type ResultBasis = Omit<StoredScore, 'score' | 'anomalous'>;

/** Key of a result: what the same image, model, options, precision and threshold give is kept once, whoever computed it and however often. */
export function resultKey(
  imageSha256: string,
  { model, seed, precision, threshold, className }: ResultBasis,
): string {
  return `diad:result:${sha256(JSON.stringify([model, imageSha256, { seed, precision, threshold, className }]))}`;
}

/**
 * Whether a result is there. One that would expire sooner than a new one is kept longer.
 *
 * @param keepSeconds - how long a new one would be kept, 0 for ever
 */
export async function isKept(redis: Redis, key: string, keepSeconds: number): Promise<boolean> {
  const left = await redis.ttl(key);
  if (left === -2) return false;
  if (left === -1 || (keepSeconds > 0 && left >= keepSeconds)) return true;
  return (keepSeconds === 0 ? await redis.persist(key) : await redis.expire(key, keepSeconds)) === 1;
}

/** Keeps a result. Of two workers that computed the same the first one's stands. */
export async function keep(
  redis: Redis,
  key: string,
  stored: StoredScore,
  keepSeconds: number,
): Promise<void> {
  if (keepSeconds > 0) await redis.set(key, JSON.stringify(stored), 'EX', keepSeconds, 'NX');
  else await redis.set(key, JSON.stringify(stored), 'NX');
}

/** How much longer than its last result a run is known, seconds: time to hear that results have expired. */
export const RUN_OUTLIVES = 86_400;

// KEYS: the run, its items, what has ended. ARGV: place, key of the result, seconds that it is kept, RUN_OUTLIVES.
// The run expires when all its images have ended, by the longest time that one of its results is kept, 0 being for ever.
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
 * Notes that a job of a run has ended.
 *
 * @param key - of its result; '' when it failed for good
 */
export async function noteEnd(redis: Redis, job: string, key: string, keepSeconds: number): Promise<void> {
  const place = placeOf(job);
  if (place === undefined) return;
  const { run, index } = place;
  await redis.eval(END, 3, runKey(run), itemsKey(run), endedKey(run), index, key, keepSeconds, RUN_OUTLIVES);
}

/**
 * The stored results of places of a run, as they are kept.
 *
 * @returns for each place: null when it had a result that has expired, undefined when it has had none
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
