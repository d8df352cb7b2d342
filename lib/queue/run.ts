// Submits runs and reads their results.
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue } from 'bullmq';
import type { Redis } from 'ioredis';
import { DiadError } from '../errors.js';
import { invalid, iterable, requiredText } from '../validate.js';
import { endedKey, itemsKey, jobName, queueName, runKey } from './broker.js';
import { BrokerConnection } from './connection.js';
import { validateReadRunOptions, validateSubmitOptions } from './options.js';
import { INLINE_LIMIT, type Reference } from './reference.js';
import { readStored, type StoredScore } from './results.js';
import type { SubmitOptions, ReadRunOptions } from './types.js';

/** An image to score. */
export interface Submission {
  /** Name of the image in results. */
  readonly file: string;
  readonly reference: Reference;
  /** SHA-256 of the image, hex. */
  readonly sha256: string;
}

/** Options of a job that affect its result. */
export interface ScoreSettings {
  readonly seed: number;
}

/** Content of a job. */
export interface JobBody extends Submission {
  readonly model: string;
  readonly settings: ScoreSettings;
}

/** Result for an image of a run. 'expired': the result is no longer stored. */
export type RunResult = { readonly file: string; readonly sha256: string } & (
  | ({ readonly status: 'done' } & StoredScore)
  | { readonly status: 'failed'; readonly error: string }
  | { readonly status: 'waiting' }
  | { readonly status: 'expired' }
);

type Item = Pick<Submission, 'file' | 'sha256'>;

const CHUNK = 500;

// KEYS: the run, its items, ended images. ARGV: the current number of items, then those to append. A command
// whose
// answer was lost with the connection is sent again and must not append twice. If all images have ended, the
// run
// has an expiry, which is removed.
const APPEND = `
local there = redis.call('LLEN', KEYS[2])
if there < tonumber(ARGV[1]) then return redis.error_reply('ERR items of the run are gone') end
if there == tonumber(ARGV[1]) then redis.call('RPUSH', KEYS[2], unpack(ARGV, 2)) end
for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
`;

function checkSubmission(submission: Submission): void {
  if (typeof submission !== 'object' || submission === null)
    throw invalid('an object', 'a submission', submission);
  const { file, reference, sha256 } = submission;
  requiredText(file, 'file');
  if (!['file', 'url', 's3', 'inline'].includes(reference?.kind))
    throw invalid('a reference of the kind file, url, s3 or inline', `${file}: reference`, reference);
  if (!/^[0-9a-f]{64}$/.test(sha256))
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${file}: Expected a SHA-256 in hex but received "${sha256}"`,
    );
  if (reference.kind === 'inline' && reference.base64.length > Math.ceil(INLINE_LIMIT / 3) * 4) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${file}: Expected at most ${INLINE_LIMIT} bytes in a job; submit a reference instead`,
    );
  }
}

function openQueue(model: string, connection: Redis): Queue<JobBody> {
  const queue = new Queue<JobBody>(queueName(model), { connection });
  queue.on('error', () => undefined); // the failing command reports the error
  return queue;
}

/**
 * Submits a run of images. If the process dies midway, the run keeps the images submitted so far.
 *
 * @returns the run id, for {@link runResults}
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT; ERR_DIAD_BROKER_UNAVAILABLE when the broker is not reached
 *   within 5 s, is lost for 30 s, or rejects a command
 */
export async function submitRun(
  images: Iterable<Submission> | AsyncIterable<Submission>,
  options: SubmitOptions,
): Promise<string> {
  iterable(images, 'an iterable of submissions', 'images');
  const { redis: url, model, seed, priority, attempts } = validateSubmitOptions(options);
  const broker = await BrokerConnection.open(url);
  const { redis } = broker;
  const queue = openQueue(model, redis);
  const run = randomUUID();
  let count = 0;
  let chunk: Submission[] = [];
  const send = async (): Promise<void> => {
    const items = chunk.map(({ file, sha256 }) => JSON.stringify({ file, sha256 } satisfies Item));
    // Items first: the result of a job without an item could never be read.
    await broker.ask(redis.eval(APPEND, 3, runKey(run), itemsKey(run), endedKey(run), count, ...items));
    const jobs = chunk.map((image, i) => ({
      name: 'score',
      data: { ...image, model, settings: { seed } },
      opts: {
        jobId: jobName(run, count + i),
        attempts,
        priority,
        backoff: { type: 'exponential', delay: 500, jitter: 0.5 },
        removeOnComplete: true, // the result has its own key
      },
    }));
    await broker.ask(queue.addBulk(jobs));
    count += chunk.length;
    chunk = [];
  };
  try {
    await broker.ask(redis.hset(runKey(run), { model, seed, submitted: new Date().toISOString() }));
    for await (const image of images) {
      checkSubmission(image);
      chunk.push(image);
      if (chunk.length === CHUNK) await send();
    }
    if (chunk.length > 0) await send();
    return run;
  } finally {
    await queue.close();
    broker.close();
  }
}

interface OpenRun {
  readonly run: string;
  readonly redis: Redis;
  readonly queue: Queue<JobBody>;
}

/** Determines the result for an item from its stored result, see {@link readStored}. */
async function resolveItem(
  open: OpenRun,
  { file, sha256 }: Item,
  place: number,
  stored: string | null | undefined,
): Promise<RunResult> {
  if (stored === null) return { file, sha256, status: 'expired' };
  if (stored !== undefined) return { file, sha256, status: 'done', ...(JSON.parse(stored) as StoredScore) };
  const name = jobName(open.run, place);
  // Read the state first: a job read before it failed has no reason yet.
  const state = await open.queue.getJobState(name);
  if (state === 'failed') {
    const job = await open.queue.getJob(name);
    if (job !== undefined) return { file, sha256, status: 'failed', error: job.failedReason };
  }
  if (state !== 'unknown') return { file, sha256, status: 'waiting' };
  // The job has ended since its result was read, or was removed.
  const [ended] = await readStored(open.redis, open.run, [place]);
  if (ended !== undefined) return resolveItem(open, { file, sha256 }, place, ended);
  return {
    file,
    sha256,
    status: 'failed',
    error: 'The broker no longer has a job or result for this image',
  };
}

/**
 * Yields the results of a run in the order of submission.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an unknown run; ERR_DIAD_BROKER_UNAVAILABLE when the broker
 *   is not reached within 5 s, is lost for 30 s, or rejects a command; the signal's reason
 */
export async function* runResults(
  run: string,
  options: ReadRunOptions,
): AsyncGenerator<RunResult, void, undefined> {
  requiredText(run, 'run');
  const { redis: url, wait, signal } = validateReadRunOptions(options);
  const broker = await BrokerConnection.open(url);
  let queue: Queue<JobBody> | undefined;
  try {
    const model = await broker.ask(broker.redis.hget(runKey(run), 'model'));
    if (model === null) throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `The broker has no run ${run}`);
    queue = openQueue(model, broker.redis);
    const { redis } = broker;
    const open = { run, redis, queue };
    for (let start = 0; ; start += CHUNK) {
      const items = await broker.ask(redis.lrange(itemsKey(run), start, start + CHUNK - 1));
      if (items.length === 0) return;
      const places = items.map((_, i) => start + i);
      const stored = await broker.ask(readStored(redis, run, places));
      for (const [i, place] of places.entries()) {
        const item = JSON.parse(items[i]!) as Item;
        let result = await broker.ask(resolveItem(open, item, place, stored[i]));
        while (result.status === 'waiting' && wait) {
          await sleep(250, undefined, signal === undefined ? {} : { signal });
          const [now] = await broker.ask(readStored(redis, run, [place]));
          result = await broker.ask(resolveItem(open, item, place, now));
        }
        yield result;
      }
    }
  } finally {
    await queue?.close();
    broker.close();
  }
}

/** Counts the images of a run by status. */
export async function runProgress(
  run: string,
  redis: string,
): Promise<Readonly<Record<RunResult['status'], number>>> {
  const progress = { done: 0, failed: 0, waiting: 0, expired: 0 };
  for await (const { status } of runResults(run, { redis })) progress[status]++;
  return progress;
}
