// Runs: handing pictures in, and reading what became of them.
import { createHash, randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue } from 'bullmq';
import type { Redis } from 'ioredis';
import { DiadError } from '../errors.js';
import { connect, itemsKey, queueName, resultKey, runKey, type ScoreSettings } from './broker.js';
import { INLINE_LIMIT, type Reference } from './reference.js';

/** A picture to be scored. */
export interface Submission {
  /** What results call it. */
  readonly file: string;
  readonly reference: Reference;
  /** SHA-256 of the picture in hex. */
  readonly sha256: string;
}

/** What a job carries. */
export interface JobBody extends Submission {
  readonly model: string;
  readonly settings: ScoreSettings;
}

/** A stored result. */
export interface StoredScore {
  readonly score: number;
  readonly threshold?: number;
  readonly anomalous?: boolean;
  readonly seed: number;
  readonly model: string;
}

/** What became of a picture of a run. */
export type RunResult = { readonly file: string; readonly sha256: string } & (
  ({ readonly status: 'done' } & StoredScore) | { readonly status: 'failed'; readonly error: string } | { readonly status: 'waiting' }
);

interface Item {
  readonly file: string;
  readonly sha256: string;
  readonly key: string;
}

/** Options of {@link submitRun}. */
export interface SubmitOptions {
  readonly redis: string;
  /** Digest of the model, see {@link bundleDigest}. */
  readonly model: string;
  readonly seed?: number;
  /** 1 is the most urgent; default 0: before all that have one. */
  readonly priority?: number;
  /** How often a job is tried when it fails for a reason that may pass. Default 5. */
  readonly attempts?: number;
}

const CHUNK = 500;

/** The digest of a bundle, from its manifest alone: what `diad.info.bundle.digest` says once it is loaded. */
export async function bundleDigest(folder: string): Promise<string> {
  try {
    return createHash('sha256')
      .update(await readFile(path.join(folder, 'manifest.json')))
      .digest('hex');
  } catch (error) {
    throw new DiadError('ERR_DIAD_BUNDLE_NOT_FOUND', `${folder} holds no manifest.json`, { cause: error });
  }
}

function checkSubmission({ file, reference, sha256 }: Submission): void {
  if (!/^[0-9a-f]{64}$/.test(sha256))
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `${file}: Expected a SHA-256 in hex but received "${sha256}"`);
  if (reference.kind === 'inline' && reference.base64.length > Math.ceil(INLINE_LIMIT / 3) * 4) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${file}: Expected at most ${INLINE_LIMIT} bytes in a job; hand in a reference instead`,
    );
  }
}

function openQueue(model: string, connection: Redis): Queue<JobBody> {
  const queue = new Queue<JobBody>(queueName(model), { connection });
  queue.on('error', () => undefined); // a lost broker is waited for
  return queue;
}

/**
 * Hands a run of pictures in. Nothing is taken back when the process dies on the way: the run then has the pictures handed in so far.
 *
 * @returns the run's id, for {@link runResults}
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT
 */
export async function submitRun(pictures: Iterable<Submission> | AsyncIterable<Submission>, options: SubmitOptions): Promise<string> {
  const { model, seed = 0, priority = 0, attempts = 5 } = options;
  const connection = connect(options.redis);
  const queue = openQueue(model, connection);
  const run = randomUUID();
  let count = 0;
  let chunk: Submission[] = [];
  const send = async (): Promise<void> => {
    const items = chunk.map(({ file, sha256 }) => JSON.stringify({ file, sha256, key: resultKey(model, sha256, { seed }) } satisfies Item));
    // Items first: a job without its item could be computed and never be asked for.
    await connection.rpush(itemsKey(run), ...items);
    const jobs = chunk.map((picture, i) => ({
      name: 'score',
      data: { ...picture, model, settings: { seed } },
      opts: {
        jobId: `${run}-${count + i}`,
        attempts,
        priority,
        backoff: { type: 'exponential', delay: 500, jitter: 0.5 },
        removeOnComplete: true, // the result is kept under its own key
        removeOnFail: false,
      },
    }));
    await queue.addBulk(jobs);
    count += chunk.length;
    chunk = [];
  };
  try {
    await connection.hset(runKey(run), { model, seed, submitted: new Date().toISOString() });
    for await (const picture of pictures) {
      checkSubmission(picture);
      chunk.push(picture);
      if (chunk.length === CHUNK) await send();
    }
    if (chunk.length > 0) await send();
    return run;
  } finally {
    await queue.close();
    connection.disconnect();
  }
}

async function resolveItem(item: Item, stored: string | null, jobId: string, queue: Queue<JobBody>): Promise<RunResult> {
  const { file, sha256 } = item;
  if (stored !== null) return { file, sha256, status: 'done', ...(JSON.parse(stored) as StoredScore) };
  // The state first: a job that was read before it failed has no reason yet.
  if ((await queue.getJobState(jobId)) === 'failed') {
    const job = await queue.getJob(jobId);
    if (job !== undefined) return { file, sha256, status: 'failed', error: job.failedReason };
  }
  return { file, sha256, status: 'waiting' };
}

async function* readItems(
  redis: Redis,
  run: string,
): AsyncGenerator<{ item: Item; index: number; stored: string | null }, void, undefined> {
  for (let start = 0; ; start += CHUNK) {
    const texts = await redis.lrange(itemsKey(run), start, start + CHUNK - 1);
    if (texts.length === 0) return;
    const items = texts.map((text) => JSON.parse(text) as Item);
    const stored = await redis.mget(...items.map(({ key }) => key));
    for (const [i, item] of items.entries()) yield { item, index: start + i, stored: stored[i] ?? null };
  }
}

/**
 * The results of a run in the order of submission.
 *
 * @param options - `wait`: each picture is waited for; otherwise what is not there yet is handed out as 'waiting'
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an unknown run; the signal's reason
 */
export async function* runResults(
  run: string,
  options: { readonly redis: string; readonly wait?: boolean; readonly signal?: AbortSignal },
): AsyncGenerator<RunResult, void, undefined> {
  const connection = connect(options.redis);
  try {
    const model = await connection.hget(runKey(run), 'model');
    if (model === null) throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `There is no run ${run} in this broker`);
    const queue = openQueue(model, connection);
    for await (const { item, index, stored } of readItems(connection, run)) {
      let result = await resolveItem(item, stored, `${run}-${index}`, queue);
      while (result.status === 'waiting' && options.wait === true) {
        await sleep(250, undefined, options.signal === undefined ? {} : { signal: options.signal });
        result = await resolveItem(item, await connection.get(item.key), `${run}-${index}`, queue);
      }
      yield result;
    }
    await queue.close();
  } finally {
    connection.disconnect();
  }
}

/** How far a run is. */
export async function runProgress(run: string, redis: string): Promise<{ done: number; failed: number; waiting: number }> {
  const progress = { done: 0, failed: 0, waiting: 0 };
  for await (const { status } of runResults(run, { redis })) progress[status]++;
  return progress;
}
