// Options of the watch, with their defaults and bounds.
import path from 'node:path';
import type { Diad } from '../diad.js';
import { RECHECK_MS } from '../health/engine-health.js';
import { callback, integer, invalid, loadedBundle, optionsObject, seed, text } from '../validate.js';
import type { Sink } from './sinks.js';

/** Options of {@link watch}. */
export interface WatchOptions {
  /** Folder to watch, with its subfolders. */
  readonly folder: string;
  /** A loaded bundle. */
  readonly scorer: Pick<Diad, 'score' | 'info'>;
  /** Receivers. Each gets every event in the order of the scores, independently of other receivers. */
  readonly sinks: readonly Sink[];
  /**
   * File of the journal. Rejected events go to the same path plus `.refused`. Default `.diad-watch.jsonl` in
   * the folder.
   */
  readonly journal?: string;
  /**
   * Folder to which scored files are moved, possibly on another file system. Renames and logs a file whose
   * name exists. Default: files stay in place.
   */
  readonly done?: string;
  /**
   * Class whose thresholds to use. Default: the nearest folder of the image's path that is a calibrated
   * class.
   */
  readonly className?: string;
  /** Seed of the noise: an integer from 0 to 2^53 - 1, or a bigint up to 2^64 - 1. Default 0. */
  readonly seed?: number | bigint;
  /**
   * A file is complete when its size has not changed for this long, milliseconds, 0 to 3,600,000. Default
   * 500.
   */
  readonly settleMs?: number;
  /**
   * Interval for scanning the folder, milliseconds, 10 to 3,600,000. Needed for network shares (NFS, SMB),
   * because the system does not report changes by other hosts. Default: no scanning, system notifications.
   */
  readonly poll?: number;
  /** Concurrent images, 1 to 1,000,000. Default 16. */
  readonly concurrency?: number;
  /**
   * Interval between probes of a failing engine, milliseconds, 1 to 3,600,000; images wait. Default 5,000.
   */
  readonly recheckMs?: number;
  /** Receives errors that are retried, and renamed images. */
  readonly log?: (line: string) => void;
}

/** Validated options. */
export type ValidatedWatch = Required<Omit<WatchOptions, 'done' | 'className' | 'seed' | 'poll'>> & {
  readonly done: string | undefined;
  readonly className: string | undefined;
  readonly seed: bigint;
  readonly poll: number | undefined;
};

const KEYS = [
  'folder',
  'scorer',
  'sinks',
  'journal',
  'done',
  'className',
  'seed',
  'settleMs',
  'poll',
  'concurrency',
  'recheckMs',
  'log',
] as const;

function isSink(value: unknown): value is Sink {
  return (
    typeof (value as Partial<Sink> | null)?.send === 'function' &&
    typeof (value as Partial<Sink>).close === 'function'
  );
}

function sinksOf(sinks: unknown): readonly Sink[] {
  if (!Array.isArray(sinks)) throw invalid('an array of receivers', 'sinks', sinks);
  return sinks.map((sink: unknown, i) => {
    if (!isSink(sink)) throw invalid('a receiver with send() and close()', `sinks[${i}]`, sink);
    return sink;
  });
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateWatchOptions(options: WatchOptions | undefined): ValidatedWatch {
  const given: Partial<WatchOptions> = optionsObject(options, 'watch options', KEYS);
  const folder = text(given.folder, 'folder');
  if (folder === undefined) throw invalid('a folder to watch', 'folder', folder);
  const done = text(given.done, 'done');
  if (done !== undefined && path.resolve(done) === path.resolve(folder))
    throw invalid('another folder than the watched one', 'done', done);
  return {
    folder,
    scorer: loadedBundle(given.scorer, 'scorer'),
    sinks: sinksOf(given.sinks),
    journal: text(given.journal, 'journal') ?? path.join(folder, '.diad-watch.jsonl'),
    done,
    className: text(given.className, 'className'),
    seed: seed(given.seed),
    settleMs: integer(given.settleMs, 'settleMs', 0, 3_600_000, 500),
    poll: given.poll === undefined ? undefined : integer(given.poll, 'poll', 10, 3_600_000, 0),
    concurrency: integer(given.concurrency, 'concurrency', 1, 1_000_000, 16),
    recheckMs: integer(given.recheckMs, 'recheckMs', 1, 3_600_000, RECHECK_MS),
    log: callback(given.log, 'log') ?? (() => undefined),
  };
}
