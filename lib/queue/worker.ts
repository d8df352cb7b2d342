// A worker: takes jobs, scores several at once so that the engine forms batches, writes each result under its content key.
import { setTimeout as sleep } from 'node:timers/promises';
import { DelayedError, Queue, UnrecoverableError, Worker, type Job } from 'bullmq';
import { isOfTiles, thresholdsFor } from '../calibration.js';
import { classOfPath } from '../class-of-path.js';
import { calibrationOf, type Diad } from '../diad.js';
import { EngineHealth } from '../engine-health.js';
import { DiadError, isOfImage } from '../errors.js';
import { brokerProblems, deadLetterName, queueName } from './broker.js';
import { BrokerConnection, REMIND_MS } from './connection.js';
import { validateWorkerOptions } from './options.js';
import { classPath, readReference, Unreadable, type ReadPolicy } from './reference.js';
import {
  isKept,
  keep,
  noteEnd,
  resultKey,
  RUN_OUTLIVES,
  type ResultBasis,
  type StoredScore,
} from './results.js';
import type { JobBody } from './run.js';

/** What a worker needs of a loaded bundle. */
export type WorkerScorer = Pick<Diad, 'score' | 'info'>;

/** Options of {@link startWorker}. */
export interface WorkerOptions extends ReadPolicy {
  readonly redis: string;
  readonly scorer: WorkerScorer;
  /** Jobs at once. Default 16. */
  readonly concurrency?: number;
  /** Jobs a second over all workers of the queue. Default: no limit. */
  readonly jobsPerSecond?: number;
  /** How long results are kept, seconds. Default 0: for ever. */
  readonly keepSeconds?: number;
  /** How long a job may go without a sign of life before it counts as stalled, milliseconds. Default 30,000. */
  readonly lockMs?: number;
  /** How often a job may stall before it goes to the dead letters. Default 1: the second stall is the last. */
  readonly maxStalls?: number;
  /** After how long without activity, with jobs waiting, the worker is replaced, milliseconds. Default 15,000. */
  readonly silentMs?: number;
  /** How often an engine that fails is asked whether it scores again, milliseconds; meanwhile no jobs are taken. Default 5,000. */
  readonly recheckMs?: number;
  /** Work although the broker may lose jobs. Default false. */
  readonly allowUnsafeBroker?: boolean;
  /** Receives what an operator should know. */
  readonly log?: (line: string) => void;
}

/** A running worker. */
export interface QueueWorker {
  /** Jobs that this worker ended well. */
  readonly completed: number;
  /** How often the watchdog had to replace the consumer. */
  readonly restarts: number;
  /** Fulfilled with the reason when the engine has failed for good: no more jobs are taken, the process should be started anew. */
  readonly lost: Promise<Error>;
  /**
   * Takes no more jobs, ends those that run, disconnects. A broker that gives no answer for 5 s is not waited for: jobs that run are then done again by
   * another worker, once their locks have run out.
   */
  close(): Promise<void>;
}

/** Whether a failed job will not be tried again. */
function isFinal(job: Job<JobBody>, error: Error): boolean {
  const stalled = error.message.includes('stalled more than');
  return error instanceof UnrecoverableError || stalled || job.attemptsMade >= (job.opts.attempts ?? 1);
}

/** Says the same line once a minute at most. */
function seldom(log: (line: string) => void): (line: string) => void {
  const saidAt = new Map<string, number>();
  return (line) => {
    if (Date.now() - (saidAt.get(line) ?? -Infinity) < REMIND_MS) return;
    saidAt.set(line, Date.now());
    log(line);
  };
}

/** Connects to a broker that keeps what it is given; one that cannot be reached is waited for. */
async function reachBroker(
  redis: string,
  allowUnsafeBroker: boolean,
  log: (line: string) => void,
): Promise<BrokerConnection> {
  const broker = new BrokerConnection(redis);
  broker.report(log);
  try {
    await broker.reach();
    const problems = await broker.ask(brokerProblems(broker.redis));
    if (problems.length > 0 && !allowUnsafeBroker) {
      throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `The broker may lose jobs: ${problems.join('; ')}`);
    }
    for (const problem of problems) log(`the broker may lose jobs: ${problem}`);
    return broker;
  } catch (error) {
    broker.close();
    throw error;
  }
}

/**
 * What an image's score and verdict will follow from. A scorer that is no Diad may judge by thresholds of classes that only it knows.
 *
 * @param root - of the worker's files
 */
function basisOf(
  { reference, file, settings }: JobBody,
  scorer: WorkerScorer,
  root: string | undefined,
): ResultBasis {
  const { bundle, precision } = scorer.info;
  const className = classOfPath(classPath(reference, file, root), bundle.calibratedClasses);
  const calibration = calibrationOf(scorer as Diad);
  // One found on tiles judges no whole image.
  const limits =
    calibration !== undefined && isOfTiles(calibration, undefined)
      ? thresholdsFor(calibration, className)
      : undefined;
  const threshold = calibration === undefined ? bundle.threshold : limits?.threshold;
  return {
    seed: settings.seed,
    model: bundle.digest,
    precision,
    ...(threshold === undefined ? {} : { threshold }),
    ...(className === undefined ? {} : { className }),
  };
}

/**
 * Starts a worker. A broker that cannot be reached is waited for, and `log` told.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an option, `root` being no folder among them, and when the broker evicts keys or keeps no append-only file, unless `allowUnsafeBroker`;
 *   ERR_DIAD_BROKER_UNAVAILABLE when it refuses the URL's user, password or database
 */
export async function startWorker(options: WorkerOptions): Promise<QueueWorker> {
  const validated = await validateWorkerOptions(options);
  const {
    scorer,
    concurrency,
    jobsPerSecond,
    keepSeconds,
    lockMs,
    maxStalls,
    silentMs,
    recheckMs,
    log,
    policy,
  } = validated;
  const { digest } = scorer.info.bundle;
  const broker = await reachBroker(validated.redis, validated.allowUnsafeBroker, log);
  const connection = broker.redis;
  const sayAgain = seldom(log);

  let [completed, restarts, running] = [0, 0, 0];
  let lastSign = Date.now();
  let closing = false;

  /** Scores a job's image unless its result is there; where the result is. */
  const compute = async (body: JobBody): Promise<string> => {
    const { sha256, reference, model } = body;
    if (model !== digest)
      throw new Unreadable(`The job is for the model ${model}, this worker has ${digest}`);
    const basis = basisOf(body, scorer, policy.root);
    const expected = resultKey(sha256, basis);
    if (await isKept(connection, expected, keepSeconds)) return expected; // a duplicate, or a retry after the result was written
    const bytes = await readReference(reference, sha256, policy);
    const { seed, className } = basis;
    const scored = scorer.score(bytes, { seed, ...(className === undefined ? {} : { className }) });
    const { score, threshold, anomalous } = await health.follow(scored);
    const stored: StoredScore = {
      ...basis,
      score,
      ...(threshold === undefined ? {} : { threshold, anomalous: anomalous ?? false }),
    };
    const key = resultKey(sha256, stored);
    await keep(connection, key, stored, keepSeconds);
    return key;
  };
  const processor = async (job: Job<JobBody>, token?: string): Promise<void> => {
    if (!health.well) {
      // It was on its way when the worker paused.
      await job.moveToDelayed(Date.now() + recheckMs, token);
      throw new DelayedError();
    }
    running++;
    lastSign = Date.now();
    try {
      const key = await compute(job.data);
      await noteEnd(connection, job.id ?? '', key, keepSeconds);
    } catch (error) {
      if (isOfImage(error)) throw new UnrecoverableError(`${error.code}: ${error.message}`);
      throw error;
    } finally {
      running--;
      lastSign = Date.now();
    }
  };

  const deadLetters = new Queue<JobBody & { reason: string }>(deadLetterName(digest), { connection });
  const quiet = (): void => undefined; // the connection tells of a lost broker
  deadLetters.on('error', quiet);
  const consume = (): Worker<JobBody> => {
    const worker = new Worker<JobBody>(queueName(digest), processor, {
      connection,
      concurrency,
      lockDuration: lockMs,
      stalledInterval: Math.max(500, Math.floor(lockMs / 2)),
      maxStalledCount: maxStalls,
      // As long after its end as a run is known whose last result has that age.
      ...(keepSeconds === 0 ? {} : { removeOnFail: { age: keepSeconds + RUN_OUTLIVES } }),
      ...(jobsPerSecond === undefined ? {} : { limiter: { max: jobsPerSecond, duration: 1000 } }),
    });
    worker.on('completed', () => completed++);
    worker.on('failed', (job, error) => {
      if (job === undefined || !isFinal(job, error)) return;
      log(`${job.data.file}: ${error.message}`);
      noteEnd(connection, job.id ?? '', '', keepSeconds).catch((failed: unknown) => {
        log(`${job.data.file}: its end is not noted, its run will not expire: ${String(failed)}`);
      });
      const letter = { ...job.data, reason: error.message };
      deadLetters.add('dead', letter, { jobId: `${job.id ?? ''}-dead` }).catch((failed: unknown) => {
        log(`${job.data.file}: not in the dead letters: ${String(failed)}`);
      });
    });
    worker.on('error', (error) => {
      void broker.isOutage(error).then((told) => {
        if (!told) sayAgain(`broker: ${error.message}`);
      });
    });
    return worker;
  };
  let worker = consume();
  // Jobs that an engine fails on are for other workers, and not to be worn out here.
  const changed = (well: boolean): void => {
    lastSign = Date.now();
    (well ? worker.resume() : worker.pause(true)).catch(quiet);
  };
  const health = new EngineHealth({ scorer, log, changed, recheckMs });
  const queue = new Queue<JobBody>(queueName(digest), { connection });
  queue.on('error', quiet);

  // A consumer can be left waiting for a wake-up that the broker forgot when it was restarted.
  const watchdog = setInterval(() => {
    const look = async (): Promise<void> => {
      const { waiting = 0, prioritized = 0 } = await queue.getJobCounts('waiting', 'prioritized');
      if (waiting + prioritized === 0 || (await queue.isPaused())) return;
      if (closing || !health.well || running > 0 || Date.now() - lastSign < silentMs) return;
      log(
        `no sign of life for ${silentMs} ms with ${waiting + prioritized} jobs waiting: starting the consumer again`,
      );
      restarts++;
      lastSign = Date.now();
      const silent = worker;
      worker = consume();
      await silent.close(true);
    };
    look().catch((error: unknown) => {
      if (!closing) sayAgain(`watchdog: ${String(error)}`);
    });
  }, silentMs / 3);

  await worker.waitUntilReady();
  return {
    get completed() {
      return completed;
    },
    get restarts() {
      return restarts;
    },
    lost: health.lost,
    close: async () => {
      closing = true;
      clearInterval(watchdog);
      health.close();
      // Without the broker no job can be ended: its lock runs out, and another worker takes it.
      const ended = worker.close(connection.status !== 'ready');
      const waiting = new AbortController();
      await Promise.race([ended, broker.noAnswer(waiting.signal).catch(quiet)]);
      waiting.abort();
      broker.close(); // and with it what BullMQ would still wait for
      while (running > 0) await sleep(20);
      await deadLetters.close();
      await queue.close();
    },
  };
}
