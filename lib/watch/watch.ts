// Scores pictures as a camera drops them into a folder: each once, over restarts too, results delivered until they have arrived.
import { mkdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { watch as watchFolder, type FSWatcher } from 'chokidar';
import { classOfPath } from '../class-of-path.js';
import { codeOf, DiadError } from '../errors.js';
import type { ScoreResult } from '../results.js';
import { identify, moveInto } from './done.js';
import { Journal, type WatchEvent } from './journal.js';
import { validateWatchOptions, type WatchOptions } from './options.js';
import type { Sink } from './sinks.js';

/** A running watch. */
export interface Watching {
  /** Fulfilled when the files that were there at the start have been found. */
  readonly scanned: Promise<void>;
  /** Ends what is being scored and stops; what is not delivered stays in the journal. */
  close(): Promise<void>;
}

const PICTURE = /\.(png|jpe?g|webp|tiff?|avif|gif)$/i;
const LONGEST_WAIT_MS = 30_000;

/** Delivers events in their order, one after the other, each to every sink, until it has arrived. */
class Delivery {
  readonly #stop = new AbortController();
  #tail: Promise<void> = Promise.resolve();

  constructor(
    private readonly sinks: readonly Sink[],
    private readonly journal: Journal,
    private readonly log: (line: string) => void,
  ) {}

  add(event: WatchEvent): void {
    this.#tail = this.#tail.then(() => this.#deliver(event)).catch(() => undefined); // stopped: the journal keeps it
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#tail;
    await Promise.all(this.sinks.map((sink) => sink.close()));
  }

  async #deliver(event: WatchEvent): Promise<void> {
    for (const sink of this.sinks) {
      for (let attempt = 0; ; attempt++) {
        this.#stop.signal.throwIfAborted();
        try {
          await sink.send(event);
          break;
        } catch (error) {
          const wait = Math.min(LONGEST_WAIT_MS, 250 * 2 ** attempt) * (0.5 + Math.random() / 2);
          this.log(`${sink.name}: ${error instanceof Error ? error.message : String(error)}; again in ${Math.round(wait)} ms`);
          await sleep(wait, undefined, { signal: this.#stop.signal });
        }
      }
    }
    await this.journal.delivered(event.id);
  }
}

/** What an event tells of a score. */
function told({ score, threshold, anomalous, normalisedScore }: ScoreResult): Partial<WatchEvent> {
  if (threshold === undefined) return { score };
  return { score, threshold, anomalous: anomalous ?? false, normalisedScore: normalisedScore ?? 0 };
}

/** What an event tells of a picture that has none. */
function refused(error: unknown): Partial<WatchEvent> {
  if (codeOf(error) === 'ERR_DIAD_CLOSED') throw error;
  return { error: { code: codeOf(error) ?? 'ERR_DIAD_INTERNAL', message: error instanceof Error ? error.message : String(error) } };
}

/**
 * Starts watching.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an option, or when the folder is not there; the system's error when the journal or `done` cannot be
 *   made
 */
export async function watch(options: WatchOptions): Promise<Watching> {
  const { folder, scorer, sinks, done, className, seed, settleMs, concurrency, log, ...given } = validateWatchOptions(options);
  const status = await stat(folder).catch(() => undefined);
  if (status?.isDirectory() !== true) throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a folder to watch but ${folder} is none`);
  if (done !== undefined) await mkdir(done, { recursive: true });
  const journal = await Journal.open(given.journal);
  const delivery = new Delivery(sinks, journal, log);
  for (const event of journal.undelivered) delivery.add(event);

  const waiting: string[] = [];
  const active = new Set<Promise<void>>();
  let closed = false;

  /** Scores what lies at `at`, once; the path in the watched folder stands for it, and names its class. */
  const scoreOnce = async (at: string, relative: string, id: string): Promise<void> => {
    if (journal.has(id)) return;
    const its = className ?? classOfPath(path.join(folder, relative), scorer.info.bundle.calibratedClasses);
    const call = { seed, ...(its === undefined ? {} : { className: its }) };
    const outcome = await scorer.score(await readFile(at), call).then(told, refused);
    const event: WatchEvent = { id, file: relative, time: new Date().toISOString(), ...outcome };
    await journal.record(event);
    delivery.add(event);
  };
  const scoreFile = async (file: string): Promise<void> => {
    const relative = path.relative(folder, file);
    const id = await identify(file, relative);
    await scoreOnce(file, relative, id);
    if (done === undefined) return;
    // Moved after it is in the journal: a kill in between leaves a file that is known and moved at the next start.
    const moved = await moveInto(done, file, relative, id);
    if (moved === undefined) return; // the watcher tells of the picture that has replaced it
    if (moved.name !== relative.replaceAll(path.sep, '__')) log(`${relative}: moved to ${path.join(done, moved.name)}`);
    await scoreOnce(path.join(done, moved.name), relative, moved.id);
    await journal.moved(moved.id, moved.name);
  };
  const next = (): void => {
    while (!closed && active.size < concurrency && waiting.length > 0) {
      const file = waiting.shift()!;
      const task = scoreFile(file)
        .catch((error: unknown) => {
          if (codeOf(error) !== 'ENOENT') log(`${file}: ${error instanceof Error ? error.message : String(error)}`); // gone again
        })
        .finally(() => {
          active.delete(task);
          next();
        });
      active.add(task);
    }
  };

  const inside = done === undefined ? undefined : path.resolve(done);
  const watcher: FSWatcher = watchFolder(folder, {
    awaitWriteFinish: { stabilityThreshold: settleMs, pollInterval: Math.max(20, Math.floor(settleMs / 5)) },
    ignored: (file, found) => path.resolve(file) === inside || (found?.isFile() === true && !PICTURE.test(file)),
  });
  const found = (file: string): void => {
    waiting.push(file);
    next();
  };
  watcher.on('add', found).on('change', found);
  watcher.on('error', (error) => {
    log(`watching: ${String(error)}`);
  });
  const scanned = new Promise<void>((resolve) => watcher.once('ready', resolve));
  return {
    scanned,
    close: async () => {
      closed = true;
      await watcher.close();
      await Promise.all(active);
      await delivery.close();
      await journal.close();
    },
  };
}
