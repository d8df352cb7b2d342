// Record of scored images on disk, so that a restart neither loses nor repeats an image.
import { EventEmitter, once } from 'node:events';
import { realpath } from 'node:fs/promises';
import { LineFile, writeAtomic } from '../io/atomic-file.js';
import type { WatchEvent } from './event.js';
import { compacted, entryOf, readPast, stillThere, type Entry } from './journal-file.js';
import { waitAfter } from './wait.js';

/** An event that a receiver has not received. */
export interface Undelivered {
  readonly event: WatchEvent;
  /** Byte offset after the event in the journal. */
  readonly end: number;
}

/** Options of a journal. */
export interface JournalOptions {
  /** Folder of the images. */
  readonly folder: string;
  /** Names of the receivers, unique. */
  readonly sinks: readonly string[];
  /** Ends waiting for events and retries of writes. */
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
}

/**
 * An append-only file of events and deliveries. Each event is flushed to disk before it is sent, so it
 * survives kill -9: the next start delivers it if necessary and does not score its image again. Receivers
 * read their events from the file, so none is kept in memory.
 */
export class Journal {
  readonly #file: LineFile;
  readonly #options: JournalOptions;
  /** Latest id by path in the folder. */
  readonly #known: Map<string, string>;
  /** Byte offset that each receiver has reached. */
  readonly #positions: Map<string, number>;
  readonly #grown = new EventEmitter().setMaxListeners(0);
  #size: number;
  #pending = '';
  #next: Promise<void> | undefined;
  #writing: Promise<void> = Promise.resolve();

  private constructor(
    file: LineFile,
    size: number,
    known: Map<string, string>,
    positions: Map<string, number>,
    options: JournalOptions,
  ) {
    this.#file = file;
    this.#size = size;
    this.#known = known;
    this.#positions = positions;
    this.#options = options;
  }

  /** Opens or creates a journal and compacts it. */
  static async open(file: string, options: JournalOptions): Promise<Journal> {
    const before = await LineFile.open(file);
    const positions = new Map<string, number>();
    let known: Map<string, string>;
    try {
      const past = await readPast(before);
      const there = await stillThere(options.folder, past);
      await writeAtomic(await realpath(file), compacted(before, past, there, options.sinks, positions));
      known = past.known;
      for (const name of known.keys()) if (!there.names.has(name)) known.delete(name);
    } finally {
      await before.close();
    }
    const lines = await LineFile.open(file);
    return new Journal(lines, await lines.size(), known, positions, options);
  }

  /** Checks whether the event of an image is on disk. */
  has(file: string, id: string): boolean {
    return this.#known.get(file) === id;
  }

  /**
   * Yields all undelivered events of a receiver, oldest first, and future ones. Ends when the signal aborts.
   */
  async *undelivered(sink: string): AsyncGenerator<Undelivered> {
    const { signal } = this.#options;
    for (let at = this.#positions.get(sink) ?? 0; ;) {
      for await (const { text, end } of this.#file.lines(at, this.#size)) {
        if (signal.aborted) return;
        at = end;
        const event = entryOf(text)?.event;
        if (event !== undefined) yield { event, end };
      }
      if (signal.aborted) return;
      if (at < this.#size) continue;
      await once(this.#grown, 'grown', { signal }).catch(() => undefined);
    }
  }

  /**
   * Stores an event. Resolves when it is on disk; rejects, without storing it, only when the signal aborts.
   */
  async record(event: WatchEvent): Promise<void> {
    await this.#append({ event });
    this.#known.set(event.file, event.id);
  }

  /** Stores that a receiver has received an event and all before it. */
  async delivered(sink: string, { end }: Undelivered): Promise<void> {
    await this.#append({ sink, to: end });
    this.#positions.set(sink, end);
  }

  /** Stores the name of a moved image, which can differ from its original name. */
  async moved(file: string, id: string, name: string): Promise<void> {
    await this.#append({ moved: id, name });
    if (this.has(file, id)) this.#known.delete(file);
  }

  async close(): Promise<void> {
    await this.#writing;
    await this.#file.close();
  }

  /** Combines all entries that arrive during a write into the next one. */
  #append(entry: Entry): Promise<void> {
    this.#pending += `${JSON.stringify(entry)}\n`;
    if (this.#next === undefined) {
      this.#next = this.#writing.then(() => {
        const text = this.#pending;
        this.#pending = '';
        this.#next = undefined;
        return this.#write(text);
      });
      this.#writing = this.#next.catch(() => undefined); // reported to the callers of these entries
    }
    return this.#next;
  }

  /** Retries until the lines are on disk. While the disk is full, everything waits and nothing is lost. */
  async #write(text: string): Promise<void> {
    const { signal, log } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        this.#size = await this.#file.append(text);
        this.#grown.emit('grown');
        return;
      } catch (error) {
        if (signal.aborted) throw error;
        // Once the signal aborts, makes one last attempt.
        await waitAfter('journal', error, attempt, signal, log).catch(() => undefined);
      }
    }
  }
}
