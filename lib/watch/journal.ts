// What has been scored already, on disk, so that a restart neither loses nor repeats an image.
import { EventEmitter, once } from 'node:events';
import { realpath } from 'node:fs/promises';
import { LineFile, writeAtomic } from '../durable.js';
import type { WatchEvent } from './event.js';
import { compacted, entryOf, readPast, stillThere, type Entry } from './journal-file.js';
import { waitAfter } from './wait.js';

/** An event that a receiver has not had. */
export interface Undelivered {
  readonly event: WatchEvent;
  /** Place behind it in the journal. */
  readonly end: number;
}

/** What a journal needs beside its file. */
export interface JournalOptions {
  /** Of the images. */
  readonly folder: string;
  /** Each a name of its own. */
  readonly sinks: readonly string[];
  /** Ends what waits: for events, and to try a write again. */
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
}

/**
 * A file of events and of what has been delivered, appended to. Each event is flushed to the disk before it is told, so that it survives a kill -9: at
 * the next start it is delivered if it was not, and its image is not scored again. Receivers read their events from the file: none is held in
 * memory.
 */
export class Journal {
  readonly #file: LineFile;
  readonly #options: JournalOptions;
  /** Ids by the path in the folder; the latest of each. */
  readonly #known: Map<string, string>;
  /** How far each receiver has got, bytes from the file's start. */
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

  /** Opens or makes a journal, and writes it anew without what is needed no more. */
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

  /** Whether an image's event is on the disk. */
  has(file: string, id: string): boolean {
    return this.#known.get(file) === id;
  }

  /** The events that a receiver has not had, oldest first, and those to come; ends by the signal. */
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

  /** Keeps an event; fulfilled when it is on the disk. Rejected only by the signal, and then it is not kept. */
  async record(event: WatchEvent): Promise<void> {
    await this.#append({ event });
    this.#known.set(event.file, event.id);
  }

  /** Keeps that a receiver has an event, and all before it. */
  async delivered(sink: string, { end }: Undelivered): Promise<void> {
    await this.#append({ sink, to: end });
    this.#positions.set(sink, end);
  }

  /** Keeps under which name an image lies among the scored ones: not always its own. */
  async moved(file: string, id: string, name: string): Promise<void> {
    await this.#append({ moved: id, name });
    if (this.has(file, id)) this.#known.delete(file);
  }

  async close(): Promise<void> {
    await this.#writing;
    await this.#file.close();
  }

  /** One write for all that has come while the last one was on its way. */
  #append(entry: Entry): Promise<void> {
    this.#pending += `${JSON.stringify(entry)}\n`;
    if (this.#next === undefined) {
      this.#next = this.#writing.then(() => {
        const text = this.#pending;
        this.#pending = '';
        this.#next = undefined;
        return this.#write(text);
      });
      this.#writing = this.#next.catch(() => undefined); // told to those who wait for their own lines
    }
    return this.#next;
  }

  /** Tries until the lines are on the disk: with a full one nothing goes on, and nothing is lost. */
  async #write(text: string): Promise<void> {
    const { signal, log } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        this.#size = await this.#file.append(text);
        this.#grown.emit('grown');
        return;
      } catch (error) {
        if (signal.aborted) throw error;
        await waitAfter('journal', error, attempt, signal, log).catch(() => undefined); // closed: once more, then no longer
      }
    }
  }
}
