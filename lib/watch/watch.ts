// Scores pictures as a camera drops them into a folder: each once, over restarts too, results delivered until they have arrived.
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { watch as watchFolder, type FSWatcher } from 'chokidar';
import type { Diad } from '../diad.js';
import { codeOf, DiadError } from '../errors.js';
import { Journal, type WatchEvent } from './journal.js';
import type { Sink } from './sinks.js';

/** Options of {@link watch}. */
export interface WatchOptions {
  readonly folder: string;
  readonly scorer: Pick<Diad, 'score'>;
  readonly sinks: readonly Sink[];
  /** Where the journal is kept. Default `.diad-watch.jsonl` in the folder. */
  readonly journal?: string;
  /** Scored files are moved there. Default: they stay. */
  readonly done?: string;
  readonly seed?: number;
  /** A file counts as written when its size has not changed for this long, milliseconds. Default 500. */
  readonly settleMs?: number;
  /** Pictures at once. Default 16. */
  readonly concurrency?: number;
  readonly log?: (line: string) => void;
}

/** A running watch. */
export interface Watching {
  /** Fulfilled when the files that were there at the start have been found. */
  readonly scanned: Promise<void>;
  /** Ends what is being scored and stops; what is not delivered stays in the journal. */
  close(): Promise<void>;
}

const PICTURE = /\.(png|jpe?g|webp|tiff?|avif|gif)$/i;
const LONGEST_WAIT_MS = 30_000;

async function identify(file: string, relative: string): Promise<string> {
  const { size, mtimeMs } = await stat(file);
  return createHash('sha256')
    .update(JSON.stringify([relative, size, mtimeMs]))
    .digest('hex');
}

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

/**
 * Starts watching.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the folder is not there
 */
export async function watch(options: WatchOptions): Promise<Watching> {
  const { folder, scorer, sinks, done, seed = 0, settleMs = 500, concurrency = 16 } = options;
  const log = options.log ?? (() => undefined);
  const status = await stat(folder).catch(() => undefined);
  if (status?.isDirectory() !== true) throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a folder to watch but ${folder} is none`);
  if (done !== undefined) await mkdir(done, { recursive: true });
  const journal = await Journal.open(options.journal ?? path.join(folder, '.diad-watch.jsonl'));
  const delivery = new Delivery(sinks, journal, log);
  for (const event of journal.undelivered) delivery.add(event);

  const waiting: string[] = [];
  const active = new Set<Promise<void>>();
  let closed = false;

  const scoreFile = async (file: string): Promise<void> => {
    const relative = path.relative(folder, file);
    const id = await identify(file, relative);
    if (!journal.has(id)) {
      const outcome = await scorer.score(await readFile(file), { seed }).then(
        ({ score, threshold, anomalous }) => ({ score, ...(threshold === undefined ? {} : { threshold, anomalous: anomalous ?? false }) }),
        (error: unknown) => {
          if (codeOf(error) === 'ERR_DIAD_CLOSED') throw error;
          return { error: { code: codeOf(error) ?? 'ERR_DIAD_INTERNAL', message: error instanceof Error ? error.message : String(error) } };
        },
      );
      const event: WatchEvent = { id, file: relative, time: new Date().toISOString(), ...outcome };
      await journal.record(event);
      delivery.add(event);
    }
    // Moved after it is in the journal: a kill in between leaves a file that is known and moved at the next start.
    if (done !== undefined) await rename(file, path.join(done, relative.replaceAll(path.sep, '__')));
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
