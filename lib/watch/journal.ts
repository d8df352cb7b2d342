// What has been scored already, on disk, so that a restart neither loses nor repeats a picture.
import { existsSync, readFileSync } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';

/** What is told of a picture; `id` is the same however often it is sent. */
export interface WatchEvent {
  /** SHA-256 of path, size and time of change: a file that is replaced is a new picture. */
  readonly id: string;
  /** Within the watched folder. */
  readonly file: string;
  /** Of the score, ISO 8601. */
  readonly time: string;
  /** 0 (as reconstructed) and up. */
  readonly score?: number;
  /** Of the picture's class, else the global one; only of a calibrated bundle. */
  readonly threshold?: number;
  /** score > threshold; only of a calibrated bundle. */
  readonly anomalous?: boolean;
  /** The score on a scale of 0 to 1 with 0.5 at the threshold; only of a calibrated bundle. */
  readonly normalisedScore?: number;
  readonly error?: { readonly code: string; readonly message: string };
}

interface Entry {
  readonly event?: WatchEvent;
  /** Id of an event that all receivers have. */
  readonly sent?: string;
  /** Id of a picture that lies among the scored ones now, and its name there. */
  readonly moved?: string;
  readonly name?: string;
}

/**
 * An append-only file of events and of what has been delivered. Each line is flushed to the disk before anything is told, so that an event
 * survives a kill -9: at the next start it is delivered if it was not, and its picture is not scored again.
 */
export class Journal {
  readonly #handle: FileHandle;
  readonly #known = new Set<string>();
  readonly #undelivered = new Map<string, WatchEvent>();
  #writing: Promise<void> = Promise.resolve();

  private constructor(handle: FileHandle, text: string) {
    this.#handle = handle;
    for (const line of text.split('\n')) {
      if (line === '') continue;
      let entry: Entry;
      try {
        entry = JSON.parse(line) as Entry;
      } catch {
        continue; // cut short by a kill: its picture was not told of yet
      }
      if (entry.event !== undefined) {
        this.#known.add(entry.event.id);
        this.#undelivered.set(entry.event.id, entry.event);
      }
      if (entry.sent !== undefined) this.#undelivered.delete(entry.sent);
    }
  }

  static async open(file: string): Promise<Journal> {
    const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
    const handle = await open(file, 'a');
    // A line that was cut short must not swallow the next one.
    if (text !== '' && !text.endsWith('\n')) await handle.write('\n');
    return new Journal(handle, text);
  }

  has(id: string): boolean {
    return this.#known.has(id);
  }

  /** Events that not all receivers have, oldest first. */
  get undelivered(): WatchEvent[] {
    return [...this.#undelivered.values()];
  }

  /** Keeps an event; fulfilled when it is on the disk. */
  async record(event: WatchEvent): Promise<void> {
    this.#known.add(event.id);
    this.#undelivered.set(event.id, event);
    await this.#append({ event });
  }

  async delivered(id: string): Promise<void> {
    this.#undelivered.delete(id);
    await this.#append({ sent: id });
  }

  /** Keeps under which name a picture lies among the scored ones: not always its own. */
  async moved(id: string, name: string): Promise<void> {
    await this.#append({ moved: id, name });
  }

  async close(): Promise<void> {
    await this.#writing;
    await this.#handle.close();
  }

  #append(entry: Entry): Promise<void> {
    const append = async (): Promise<void> => {
      await this.#handle.write(`${JSON.stringify(entry)}\n`);
      await this.#handle.datasync();
    };
    this.#writing = this.#writing.then(append);
    return this.#writing;
  }
}
