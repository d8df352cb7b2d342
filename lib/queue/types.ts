// Types that the submitting side and the worker of a queue share.
import type { Diad } from '../diad.js';

/** Sources from which a worker reads images. */
export interface ReadPolicy {
  /** Folder that must contain files, after resolving links. Without it no files are read. */
  readonly root?: string;
  /** Allowed hosts of http(s) images, including redirects. Default: none. */
  readonly hosts?: readonly string[];
  /** Hosts of the list above that can resolve to private or loopback addresses. Default: none. */
  readonly privateHosts?: readonly string[];
  /** Allowed S3 buckets. Default: none. */
  readonly buckets?: readonly string[];
  /** Endpoint of an S3-compatible store. Default: the client's configuration. */
  readonly s3Endpoint?: string;
  /** Largest image, bytes. Default 32 MiB. */
  readonly maxBytes?: number;
}

/** Options of {@link submitRun}. */
export interface SubmitOptions {
  readonly redis: string;
  /** Digest of the model, see `bundleDigest`. */
  readonly model: string;
  /** Seed of the noise, an integer from 0. Default 0. */
  readonly seed?: number;
  /** 1 (most urgent) to 2097151; default 0: before all jobs with a priority. */
  readonly priority?: number;
  /** Attempts per job for temporary failures, at least 1. Default 5. */
  readonly attempts?: number;
}

/** Options of {@link runResults}. */
export interface ReadRunOptions {
  readonly redis: string;
  /** Wait for each image. Default false: unfinished images are yielded as 'waiting'. */
  readonly wait?: boolean;
  readonly signal?: AbortSignal;
}

/** The part of a loaded bundle that a worker uses. */
export type WorkerScorer = Pick<Diad, 'score' | 'info'>;

/** Options of {@link startWorker}. */
export interface WorkerOptions extends ReadPolicy {
  readonly redis: string;
  readonly scorer: WorkerScorer;
  /** Concurrent jobs. Default 16. */
  readonly concurrency?: number;
  /** Jobs per second over all workers of the queue. Default: no limit. */
  readonly jobsPerSecond?: number;
  /** How long results are kept, seconds. Default 0: for ever. */
  readonly keepSeconds?: number;
  /** Time without a heartbeat after which a job counts as stalled, milliseconds. Default 30,000. */
  readonly lockMs?: number;
  /** How often a job can stall before it moves to the dead letters. Default 1: the second stall is final. */
  readonly maxStalls?: number;
  /**
   * Time without activity after which the consumer is restarted if jobs are waiting, milliseconds. Default
   * 15,000.
   */
  readonly silentMs?: number;
  /**
   * Interval between probes of a failing engine, during which no jobs are taken, milliseconds. Default 5,000.
   */
  readonly recheckMs?: number;
  /** Run even if the broker can lose jobs. Default false. */
  readonly allowUnsafeBroker?: boolean;
  /** Receives messages for the operator. */
  readonly log?: (line: string) => void;
}
