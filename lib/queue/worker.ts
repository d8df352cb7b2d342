// Queue worker: takes jobs, scores several concurrently so that the engine batches them, and stores the
// results.
import { setTimeout as sleep } from 'node:timers/promises';
import { DelayedError, Queue, UnrecoverableError, Worker, type Job } from 'bullmq';
import { isOfTiles, thresholdsFor } from '../calibration/calibration.js';
import { classOfPath } from '../calibration/class-of-path.js';
import { calibrationOf, type Diad } from '../diad.js';
import { EngineHealth } from '../health/engine-health.js';
import { DiadError, isOfImage } from '../errors.js';
import { brokerProblems, deadLetterName, queueName } from './broker.js';
import { BrokerConnection, REMIND_MS } from './connection.js';
import { validateWorkerOptions } from './options.js';
import { classPath, readReference } from './reference.js';
import { Unreadable } from './unreadable.js';
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
import type { WorkerScorer, WorkerOptions } from './types.js';

/** A running worker. */
export interface QueueWorker {
  /** Number of jobs this worker has completed. */
  readonly completed: number;
  /** Number of times the watchdog restarted the consumer. */
  readonly restarts: number;
  /**
   * Resolves with the reason when the engine has failed permanently. No more jobs are taken; restart the
   * process.
   */
  readonly lost: Promise<Error>;
  /**
   * Stops taking jobs, finishes running ones, and disconnects. If the broker does not answer for 5 s, gives
   * up on it; other workers then repeat the running jobs once their locks expire.
   */
  close(): Promise<void>;
}

/** Checks whether a failed job will not be retried. */
function isFinal(job: Job<JobBody>, error: Error): boolean {
  const stalled = error.message.includes('stalled more than');
  return error instanceof UnrecoverableError || stalled || job.attemptsMade >= (job.opts.attempts ?? 1);
}

/** Wraps a log function to log the same line at most once a minute. */
function seldom(log: (line: string) => void): (line: string) => void {
  const saidAt = new Map<string, number>();
  return (line) => {
    if (Date.now() - (saidAt.get(line) ?? -Infinity) < REMIND_MS) return;
    saidAt.set(line, Date.now());
    log(line);
  };
}

/** Connects to a broker, waiting until it is reachable, and checks that it does not lose data. */
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
      throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `The broker can lose jobs: ${problems.join('; ')}`);
    }
    for (const problem of problems) log(`the broker can lose jobs: ${problem}`);
    return broker;
  } catch (error) {
    broker.close();
    throw error;
  }
}

/**
 * Determines the inputs of an image's score and verdict. Class thresholds are known only if the scorer is a
 * Diad.
 *
 * @param root - folder of the worker's files
 */
function basisOf(
  { reference, file, settings }: JobBody,
  scorer: WorkerScorer,
  root: string | undefined,
): ResultBasis {
  const { bundle, precision } = scorer.info;
  const className = classOfPath(classPath(reference, file, root), bundle.calibratedClasses);
  const calibration = calibrationOf(scorer as Diad);
  // A calibration for tiles does not apply to whole images.
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
 * Starts a worker. Waits for an unreachable broker and logs that.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an invalid option, and when the broker evicts keys or has
 *   no append-only file, unless `allowUnsafeBroker`; ERR_DIAD_BROKER_UNAVAILABLE when it rejects the user,
 *   password or database of the URL
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

  /** Scores the image of a job unless its result exists. Returns the key of the result. */
  const compute = async (body: JobBody): Promise<string> => {
    const { sha256, reference, model } = body;
    if (model !== digest)
      throw new Unreadable(`The job is for the model ${model}, this worker has ${digest}`);
    const basis = basisOf(body, scorer, policy.root);
    const expected = resultKey(sha256, basis);
    // A duplicate, or a retry after the result was written.
    if (await isKept(connection, expected, keepSeconds)) return expected;
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
    if (!health.healthy) {
      // The job was fetched while the worker was pausing.
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
  const quiet = (): void => undefined; // the connection reports outages
  deadLetters.on('error', quiet);
  const consume = (): Worker<JobBody> => {
    const worker = new Worker<JobBody>(queueName(digest), processor, {
      connection,
      concurrency,
      lockDuration: lockMs,
      stalledInterval: Math.max(500, Math.floor(lockMs / 2)),
      maxStalledCount: maxStalls,
      // Keep failed jobs as long as their runs.
      ...(keepSeconds === 0 ? {} : { removeOnFail: { age: keepSeconds + RUN_OUTLIVES } }),
      ...(jobsPerSecond === undefined ? {} : { limiter: { max: jobsPerSecond, duration: 1000 } }),
    });
    worker.on('completed', () => completed++);
    worker.on('failed', (job, error) => {
      if (job === undefined || !isFinal(job, error)) return;
      log(`${job.data.file}: ${error.message}`);
      noteEnd(connection, job.id ?? '', '', keepSeconds).catch((failed: unknown) => {
        log(`${job.data.file}: could not record its end, so its run will not expire: ${String(failed)}`);
      });
      const letter = { ...job.data, reason: error.message };
      deadLetters.add('dead', letter, { jobId: `${job.id ?? ''}-dead` }).catch((failed: unknown) => {
        log(`${job.data.file}: could not be added to the dead letters: ${String(failed)}`);
      });
    });
    worker.on('error', (error) => {
      void broker.isOutage(error).then((isOutage) => {
        if (!isOutage) sayAgain(`broker: ${error.message}`);
      });
    });
    return worker;
  };
  let worker = consume();
  // While the engine fails, leave jobs to other workers instead of using up their attempts.
  const changed = (healthy: boolean): void => {
    lastSign = Date.now();
    (healthy ? worker.resume() : worker.pause(true)).catch(quiet);
  };
  const health = new EngineHealth({ scorer, log, changed, recheckMs });
  const queue = new Queue<JobBody>(queueName(digest), { connection });
  queue.on('error', quiet);

  // After a restart of the broker, a consumer can wait for a notification that never comes.
  const watchdog = setInterval(() => {
    const look = async (): Promise<void> => {
      const { waiting = 0, prioritized = 0 } = await queue.getJobCounts('waiting', 'prioritized');
      if (waiting + prioritized === 0 || (await queue.isPaused())) return;
      if (closing || !health.healthy || running > 0 || Date.now() - lastSign < silentMs) return;
      log(
        `no activity for ${silentMs} ms with ${waiting + prioritized} jobs waiting: restarting the consumer`,
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
      // Without the broker no job can be completed: its lock expires and another worker takes it.
      const ended = worker.close(connection.status !== 'ready');
      const waiting = new AbortController();
      await Promise.race([ended, broker.noAnswer(waiting.signal).catch(quiet)]);
      waiting.abort();
      broker.close(); // also ends pending commands of BullMQ
      while (running > 0) await sleep(20);
      await deadLetters.close();
      await queue.close();
    },
  };
}
