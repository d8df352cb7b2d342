// Scores images as they appear in a folder, each exactly once even across restarts, with reliable delivery.
import type { Stats } from 'node:fs';
import { mkdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { watch as watchFolder, type FSWatcher } from 'chokidar';
import { classOfPath } from '../calibration/class-of-path.js';
import { EngineHealth } from '../health/engine-health.js';
import { isImageName } from '../image/decode.js';
import { codeOf, DiadError, isOfImage } from '../errors.js';
import type { ScoreResult } from '../results.js';
import { Delivery } from './delivery.js';
import { identify, moveInto } from './done.js';
import type { WatchEvent } from './event.js';
import { Journal } from './journal.js';
import { validateWatchOptions, type WatchOptions } from './options.js';
import type { Sink } from './sinks.js';
import { messageOf, waitAfter } from './wait.js';

/** A running watch. */
export interface Watching {
  /** Resolves when the files that existed at the start have been found. */
  readonly scanned: Promise<void>;
  /**
   * Resolves with the reason when the engine has failed permanently. Images then wait for a restart of the
   * process.
   */
  readonly lost: Promise<Error>;
  /** Finishes active scores and stops. Events not delivered within two seconds stay in the journal. */
  close(): Promise<void>;
}

/**
 * Checks whether a path is neither an image nor can lead to one. Excludes pipes, which would block when
 * opened.
 */
function isNoImage(file: string, found: Stats | undefined): boolean {
  if (found === undefined || found.isDirectory() || found.isSymbolicLink()) return false;
  return !found.isFile() || !isImageName(file);
}

/**
 * Most attempts to read, score or move a file, over about 25 s: a share can be away, or a camera can hold the
 * file.
 */
const ATTEMPTS = 8;

/** Returns unique names of the receivers for the journal, adding a number to duplicates. */
function namesOf(sinks: readonly Sink[]): string[] {
  const seen = new Map<string, number>();
  return sinks.map(({ name }) => {
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count === 1 ? name : `${name} ${count}`;
  });
}

/** Returns the event fields of a score. */
function toEvent({ score, threshold, anomalous, normalizedScore }: ScoreResult): Partial<WatchEvent> {
  if (threshold === undefined) return { score };
  return { score, threshold, anomalous: anomalous ?? false, normalizedScore: normalizedScore ?? 0 };
}

/**
 * Returns the event fields of a failure.
 *
 * @param last - whether there are no more attempts
 * @throws `error` if the image will be tried again
 */
function refused(error: unknown, last: boolean): Partial<WatchEvent> {
  if (codeOf(error) === 'ERR_DIAD_CLOSED' || !(isOfImage(error) || last)) throw error;
  return { error: { code: codeOf(error) ?? 'ERR_DIAD_INTERNAL', message: messageOf(error) } };
}

/**
 * Starts watching a folder.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an invalid option, or when the folder does not exist; the
 *   system error when the journal or `done` cannot be created
 */
export async function watch(options: WatchOptions): Promise<Watching> {
  const {
    folder,
    scorer,
    sinks,
    done,
    className,
    seed,
    settleMs,
    poll,
    concurrency,
    recheckMs,
    log,
    ...given
  } = validateWatchOptions(options);
  const status = await stat(folder).catch(() => undefined);
  if (status?.isDirectory() !== true)
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected a folder to watch but ${folder} is not a folder`,
    );
  if (done !== undefined) await mkdir(done, { recursive: true });
  const stop = new AbortController();
  const names = namesOf(sinks);
  const journal = await Journal.open(given.journal, { folder, sinks: names, signal: stop.signal, log });
  const deliveries = sinks.map(
    (sink, i) => new Delivery(sink, names[i]!, journal, `${given.journal}.refused`, stop.signal, log),
  );

  const waiting = new Set<string>();
  const active = new Map<string, Promise<void>>();
  /** Failed attempts by file, and how many of them were scores. */
  const failures = new Map<string, number>();
  const failedScores = new Map<string, number>();
  const forget = (file: string): void => {
    failures.delete(file);
    failedScores.delete(file);
  };

  /**
   * Scores the file at `at` once. The path in the watched folder identifies it and determines its class.
   *
   * @param isLast - called when the score fails: whether there are no more attempts
   */
  const scoreOnce = async (
    at: string,
    relative: string,
    id: string,
    isLast: () => boolean,
  ): Promise<void> => {
    if (journal.has(relative, id)) return;
    const scoreClass =
      className ?? classOfPath(path.join(folder, relative), scorer.info.bundle.calibratedClasses);
    const call = { seed, ...(scoreClass === undefined ? {} : { className: scoreClass }) };
    const bytes = await readFile(at);
    const outcome = await health
      .follow(scorer.score(bytes, call))
      .then(toEvent, (error: unknown) => refused(error, isLast()));
    await journal.record({ id, file: relative, time: new Date().toISOString(), ...outcome });
  };
  const scoreFile = async (file: string): Promise<void> => {
    const relative = path.relative(folder, file);
    const id = await identify(file, relative);
    await scoreOnce(file, relative, id, () => {
      const failed = (failedScores.get(file) ?? 0) + 1;
      failedScores.set(file, failed);
      return failed >= ATTEMPTS && health.healthy; // an unhealthy engine is not the image's fault
    });
    if (done === undefined) return;
    // Move only after the journal entry: after a kill in between, the next start moves the known file.
    const moved = await moveInto(done, file, relative, id);
    if (moved === undefined) return; // the watcher reports the image that replaced it
    if (moved.name !== relative.replaceAll(path.sep, '__'))
      log(`${relative}: moved to ${path.join(done, moved.name)}`);
    // The image is no longer in the watched folder, so this is the only chance to score it.
    await scoreOnce(path.join(done, moved.name), relative, moved.id, () => true);
    await journal.moved(relative, moved.id, moved.name);
  };
  const failed = async (file: string, error: unknown): Promise<void> => {
    const attempt = failures.get(file) ?? 0;
    failures.delete(file);
    if (codeOf(error) === 'ENOENT') {
      forget(file); // removed
      return;
    }
    if (!health.healthy && !stop.signal.aborted) {
      found(file); // processed when the engine is healthy
      return;
    }
    if (stop.signal.aborted || attempt + 1 === ATTEMPTS || codeOf(error) === 'ERR_DIAD_CLOSED') {
      forget(file);
      log(`${file}: ${messageOf(error)}; will retry at the next start`);
      return;
    }
    failures.set(file, attempt + 1);
    await waitAfter(file, error, attempt, stop.signal, log);
    found(file);
  };
  const next = (): void => {
    for (const file of waiting) {
      if (stop.signal.aborted || !health.healthy || active.size >= concurrency) return;
      if (active.has(file)) continue; // still active: wait, so that it is scored once
      waiting.delete(file);
      const task = scoreFile(file)
        .then(
          () => {
            forget(file);
          },
          (error: unknown) => {
            failed(file, error).catch(() => undefined); // aborted by close()
          },
        )
        .finally(() => {
          active.delete(file);
          next();
        })
        .then(() => undefined);
      active.set(file, task);
    }
  };
  const found = (file: string): void => {
    waiting.add(file);
    next();
  };
  const health = new EngineHealth({ scorer, log, changed: next, recheckMs });

  const inside = done === undefined ? undefined : path.resolve(done);
  const watcher: FSWatcher = watchFolder(folder, {
    awaitWriteFinish: { stabilityThreshold: settleMs, pollInterval: Math.max(20, Math.floor(settleMs / 5)) },
    ignored: (file, found) => path.resolve(file) === inside || isNoImage(file, found),
    ...(poll === undefined ? {} : { usePolling: true, interval: poll, binaryInterval: poll }),
  });
  watcher.on('add', found).on('change', found);
  watcher.on('error', (error) => {
    log(`watching: ${String(error)}`);
  });
  const scanned = new Promise<void>((resolve) => watcher.once('ready', resolve));
  return {
    scanned,
    lost: health.lost,
    close: async () => {
      stop.abort();
      health.close();
      await watcher.close();
      await Promise.all(active.values());
      await Promise.all(deliveries.map((delivery) => delivery.close()));
      await journal.close();
    },
  };
}
