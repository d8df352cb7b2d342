// Delivers the journal's events to the receivers, independently, so that an unavailable one does not delay
// others.
import { setTimeout as sleep } from 'node:timers/promises';
import { LineFile } from '../io/atomic-file.js';
import type { Journal, Undelivered } from './journal.js';
import { EventRefused, type Sink } from './sinks.js';
import { waitAfter } from './wait.js';

/** Most attempts to send an event that its receiver rejects, over about 6 s. */
const REFUSALS = 6;
/** Time limit for pending sends at shutdown, milliseconds. */
const GRACE_MS = 2000;

/** Delivers events to one receiver in order, retrying each until it has arrived. */
export class Delivery {
  readonly #cut = new AbortController();
  readonly #running: Promise<void>;

  /**
   * @param name - name of the receiver in the journal
   * @param refused - file for rejected events
   * @param stop - stops deliveries and retries
   */
  constructor(
    private readonly sink: Sink,
    private readonly name: string,
    private readonly journal: Journal,
    private readonly refused: string,
    private readonly stop: AbortSignal,
    private readonly log: (line: string) => void,
  ) {
    this.#running = this.#run();
  }

  /** Resolves when no send is pending. Call it after the stop. */
  async close(): Promise<void> {
    const ended = new AbortController();
    const grace = sleep(GRACE_MS, undefined, { signal: ended.signal }).then(
      () => {
        this.#cut.abort();
      },
      () => undefined,
    );
    await this.#running;
    ended.abort();
    await grace;
    await this.sink.close();
  }

  async #run(): Promise<void> {
    for (let attempt = 0; !this.stop.aborted; attempt++) {
      try {
        for await (const next of this.journal.undelivered(this.name)) {
          await this.#deliver(next);
          await this.journal.delivered(this.name, next);
          attempt = 0;
        }
      } catch (error) {
        if (this.stop.aborted) return; // the journal keeps the event
        await waitAfter('journal', error, attempt, this.stop, this.log).catch(() => undefined);
      }
    }
  }

  async #deliver(next: Undelivered): Promise<void> {
    let refusals = 0;
    for (let attempt = 0; ; attempt++) {
      try {
        if (refusals < REFUSALS) await this.#send(next);
        else await this.#setAside(next);
        return;
      } catch (error) {
        if (error instanceof EventRefused && ++refusals === REFUSALS) {
          this.log(
            `${this.sink.name}: ${error.message}, ${REFUSALS} times: ` +
              `${next.event.file} goes to ${this.refused}`,
          );
        } else {
          await waitAfter(this.sink.name, error, attempt, this.stop, this.log);
        }
      }
    }
  }

  /** Sends an event. Ends when cut off, even if the receiver ignores the signal. */
  async #send({ event }: Undelivered): Promise<void> {
    const { signal } = this.#cut;
    signal.throwIfAborted();
    let abort = (): void => undefined;
    const cut = new Promise<never>((_, reject) => {
      abort = () => {
        reject(signal.reason as Error);
      };
      signal.addEventListener('abort', abort);
    });
    try {
      await Promise.race([this.sink.send(event, signal), cut]);
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  async #setAside({ event }: Undelivered): Promise<void> {
    const file = await LineFile.open(this.refused);
    try {
      await file.append(`${JSON.stringify({ sink: this.name, event })}\n`);
    } finally {
      await file.close();
    }
  }
}
