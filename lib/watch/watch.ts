// Scores images as a camera drops them into a folder: each once, over restarts too, results delivered until they have arrived.
import type { Stats } from 'node:fs';
import { mkdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { watch as watchFolder, type FSWatcher } from 'chokidar';
import { classOfPath } from '../class-of-path.js';
import { EngineHealth } from '../engine-health.js';
import { isImageName } from '../image.js';
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
  /** Fulfilled when the files that were there at the start have been found. */
  readonly scanned: Promise<void>;
  /** Fulfilled with the reason when the engine has failed for good: images wait for the process to be started anew. */
  readonly lost: Promise<Error>;
  /** Ends what is being scored and stops; what is not delivered within two seconds stays in the journal. */
  close(): Promise<void>;
}

/** Whether something is known to be neither an image, by its name, nor a way to some. Who opens a pipe waits for whoever writes to it. */
function isNoImage(file: string, found: Stats | undefined): boolean {
  if (found === undefined || found.isDirectory() || found.isSymbolicLink()) return false;
  return !found.isFile() || !isImageName(file);
}

/** Attempts with a file that cannot be read, scored or moved, over some 25 s: a share that is away for a moment, a camera that still holds it. */
const ATTEMPTS = 8;

/** Names by which the journal tells receivers apart: their own, with a number where several have the same. */
function namesOf(sinks: readonly Sink[]): string[] {
  const seen = new Map<string, number>();
  return sinks.map(({ name }) => {
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count === 1 ? name : `${name} ${count}`;
  });
}

/** What an event tells of a score. */
function told({ score, threshold, anomalous, normalizedScore }: ScoreResult): Partial<WatchEvent> {
  if (threshold === undefined) return { score };
  return { score, threshold, anomalous: anomalous ?? false, normalizedScore: normalizedScore ?? 0 };
}

/**
 * What an event tells of an image that has none.
 *
 * @param last - whether it will not be tried again
 * @throws `error` when it will, because it may pass
 */
function refused(error: unknown, last: boolean): Partial<WatchEvent> {
  if (codeOf(error) === 'ERR_DIAD_CLOSED' || !(isOfImage(error) || last)) throw error;
  return { error: { code: codeOf(error) ?? 'ERR_DIAD_INTERNAL', message: messageOf(error) } };
}

/**
 * Starts watching.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an option, or when the folder is not there; the system's error when the journal or `done` cannot be
 *   made
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
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a folder to watch but ${folder} is none`);
  if (done !== undefined) await mkdir(done, { recursive: true });
  const stop = new AbortController();
  const names = namesOf(sinks);
  const journal = await Journal.open(given.journal, { folder, sinks: names, signal: stop.signal, log });
  const deliveries = sinks.map(
    (sink, i) => new Delivery(sink, names[i]!, journal, `${given.journal}.refused`, stop.signal, log),
  );

  const waiting = new Set<string>();
  const active = new Map<string, Promise<void>>();
  /** Attempts that have failed, and scores among them. */
  const failures = new Map<string, number>();
  const failedScores = new Map<string, number>();
  const forget = (file: string): void => {
    failures.delete(file);
    failedScores.delete(file);
  };

  /**
   * Scores what lies at `at`, once; the path in the watched folder stands for it, and names its class.
   *
   * @param isLast - asked when the score fails: whether it will not be tried again
   */
  const scoreOnce = async (
    at: string,
    relative: string,
    id: string,
    isLast: () => boolean,
  ): Promise<void> => {
    if (journal.has(relative, id)) return;
    const its = className ?? classOfPath(path.join(folder, relative), scorer.info.bundle.calibratedClasses);
    const call = { seed, ...(its === undefined ? {} : { className: its }) };
    const bytes = await readFile(at);
    const outcome = await health
      .follow(scorer.score(bytes, call))
      .then(told, (error: unknown) => refused(error, isLast()));
    await journal.record({ id, file: relative, time: new Date().toISOString(), ...outcome });
  };
  const scoreFile = async (file: string): Promise<void> => {
    const relative = path.relative(folder, file);
    const id = await identify(file, relative);
    await scoreOnce(file, relative, id, () => {
      const failed = (failedScores.get(file) ?? 0) + 1;
      failedScores.set(file, failed);
      return failed >= ATTEMPTS && health.well; // while the engine fails nothing is put down to an image
    });
    if (done === undefined) return;
    // Moved after it is in the journal: a kill in between leaves a file that is known and moved at the next start.
    const moved = await moveInto(done, file, relative, id);
    if (moved === undefined) return; // the watcher tells of the image that has replaced it
    if (moved.name !== relative.replaceAll(path.sep, '__'))
      log(`${relative}: moved to ${path.join(done, moved.name)}`);
    await scoreOnce(path.join(done, moved.name), relative, moved.id, () => true); // nobody would find it there again
    await journal.moved(relative, moved.id, moved.name);
  };
  const failed = async (file: string, error: unknown): Promise<void> => {
    const attempt = failures.get(file) ?? 0;
    failures.delete(file);
    if (codeOf(error) === 'ENOENT') {
      forget(file); // gone again
      return;
    }
    if (!health.well && !stop.signal.aborted) {
      found(file); // its turn comes when the engine is well
      return;
    }
    if (stop.signal.aborted || attempt + 1 === ATTEMPTS || codeOf(error) === 'ERR_DIAD_CLOSED') {
      forget(file);
      log(`${file}: ${messageOf(error)}; again at the next start`);
      return;
    }
    failures.set(file, attempt + 1);
    await waitAfter(file, error, attempt, stop.signal, log);
    found(file);
  };
  const next = (): void => {
    for (const file of waiting) {
      if (stop.signal.aborted || !health.well || active.size >= concurrency) return;
      if (active.has(file)) continue; // told of again meanwhile: one after the other, so that it is scored once
      waiting.delete(file);
      const task = scoreFile(file)
        .then(
          () => {
            forget(file);
          },
          (error: unknown) => {
            failed(file, error).catch(() => undefined); // closed
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
