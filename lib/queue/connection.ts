// Connections to Redis: how long an answer is waited for, and what is said of a broker that gives none.
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { DiadError } from '../errors.js';

/** How long a broker may take to be reached, milliseconds. */
const REACH_MS = 5000;
/** How long one that was reached may take to answer, the time of a restart included, milliseconds. */
const ANSWER_MS = 30_000;
/** How much later one connection may notice a loss than another, milliseconds. */
const NOTICE_MS = 1000;
/** How often a problem that lasts is told again, milliseconds. */
export const REMIND_MS = 60_000;

/** Answers that trying again does not change. */
const REFUSAL = /^(WRONGPASS|NOAUTH|NOPERM)|invalid password|DB index/;
const SILENCE = /^(no answer|Command timed out)$/;

/** Whether an error is about the broker or the way there, rather than about what was asked of it. */
function isTrouble(error: Error): boolean {
  return (
    error.name === 'ReplyError' ||
    'syscall' in error ||
    SILENCE.test(error.message) ||
    error.message.startsWith('Connection is closed')
  );
}

/** What follows "The broker at HOST:PORT". */
function meaning({ name, message }: Error): string {
  if (message.startsWith('NOAUTH'))
    return 'asks for a password: write it into the URL, redis://USER:PASSWORD@HOST';
  if (/^WRONGPASS|invalid password/.test(message)) return "refuses the URL's user or password";
  if (SILENCE.test(message)) return 'gives no answer';
  return name === 'ReplyError' ? `refuses: ${message}` : `cannot be reached: ${message}`;
}

/** A connection that knows where it leads, and what went wrong last. */
export class BrokerConnection {
  readonly redis: Redis;
  /** Host and port; never user and password. */
  readonly place: string;
  #lastError: Error | undefined;
  #silence: NodeJS.Timeout | undefined;
  #readyAt = -Infinity;

  /**
   * Opens a connection that waits for the broker rather than fail, for workers.
   *
   * @param limit - `commandTimeout`: how long a command may go without an answer, milliseconds; default: for ever
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for what is no redis:// or rediss:// URL
   */
  constructor(url: string, limit: { readonly commandTimeout?: number } = {}) {
    if (!URL.canParse(url) || !/^rediss?:$/.test(new URL(url).protocol)) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected redis://… or rediss://… for redis but received "${url.replace(/\/\/.*@/, '//…@')}"`,
      );
    }
    const { hostname, port } = new URL(url);
    this.place = `${hostname || 'localhost'}:${port || '6379'}`;
    const retryStrategy = (times: number): number => Math.min(2000, 100 * times);
    this.redis = new Redis(url, {
      maxRetriesPerRequest: null,
      connectTimeout: REACH_MS,
      retryStrategy,
      ...limit,
    });
    this.redis.on('error', (error) => {
      this.#lastError = error;
    });
    this.redis.on('ready', () => {
      this.#lastError = undefined;
      this.#readyAt = Date.now();
    });
  }

  /**
   * Opens a connection for those who want an answer now: a command fails when none comes within 30 s.
   *
   * @throws DiadError as the constructor; ERR_DIAD_BROKER_UNAVAILABLE when the broker is not reached within 5 s, or refuses
   */
  static async open(url: string): Promise<BrokerConnection> {
    const broker = new BrokerConnection(url, { commandTimeout: ANSWER_MS });
    const settled = new AbortController();
    try {
      const late = sleep(REACH_MS, undefined, { signal: settled.signal }).then(() =>
        Promise.reject(new Error('no answer')),
      );
      await broker.ask(Promise.race([broker.#reached(), late]));
      return broker;
    } catch (error) {
      broker.close();
      throw error;
    } finally {
      settled.abort();
    }
  }

  /**
   * Waits until the broker is reached, however long that takes.
   *
   * @throws DiadError ERR_DIAD_BROKER_UNAVAILABLE when it refuses the URL's user, password or database
   */
  async reach(): Promise<void> {
    await this.ask(this.#reached());
  }

  // No command is sent for it: one that nobody answers would keep the process from its end.
  #reached(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.redis.status === 'ready') resolve();
      this.redis.once('ready', resolve);
      this.redis.on('error', (error) => {
        if (REFUSAL.test(error.message)) reject(error);
      });
    });
  }

  /**
   * What a command of this connection answers.
   *
   * @throws DiadError ERR_DIAD_BROKER_UNAVAILABLE when the broker is lost or refuses
   */
  async ask<T>(answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw this.#failure(error);
    }
  }

  #failure(error: unknown): Error {
    const given = error instanceof Error ? error : new Error(String(error));
    const known = this.#lastError ?? given;
    if (given instanceof DiadError || (this.#lastError === undefined && !isTrouble(given))) return given;
    // An answer of Redis would bring its command as a cause, and with it the password.
    const options = known.name === 'ReplyError' ? {} : { cause: known };
    return new DiadError(
      'ERR_DIAD_BROKER_UNAVAILABLE',
      `The broker at ${this.place} ${meaning(known)}`,
      options,
    );
  }

  /** Whether an error says no more than that the broker is lost, which {@link BrokerConnection.report} tells. */
  async isOutage(error: Error): Promise<boolean> {
    if (!isTrouble(error)) return false;
    const since = Date.now() - NOTICE_MS;
    await sleep(NOTICE_MS, undefined, { ref: false }); // another connection may have noticed before this one
    return this.redis.status !== 'ready' || this.#readyAt >= since; // or this one be back already
  }

  /**
   * Fulfilled when the broker, lost or not, has not answered for 5 s, or when this connection is closed.
   *
   * @param signal - ends the asking; what was returned is then rejected
   */
  async noAnswer(signal: AbortSignal): Promise<void> {
    for (;;) {
      const answer = this.redis.ping().then(
        () => true,
        () => false,
      );
      if (!(await Promise.race([answer, sleep(REACH_MS, false, { signal, ref: false })]))) return;
      await sleep(NOTICE_MS, undefined, { signal, ref: false });
    }
  }

  /** Tells of the broker's loss at once, again each minute while it lasts, and of its end. */
  report(log: (line: string) => void): void {
    let toldAt = -Infinity;
    const tell = (): void => {
      if (Date.now() - toldAt < REMIND_MS) return;
      toldAt = Date.now();
      log(`${this.#failure(new Error('no answer')).message}; trying again`);
    };
    this.redis.on('error', tell);
    // One that takes connections and says nothing makes no error.
    this.#silence = setInterval(() => {
      if (this.redis.status !== 'ready') tell();
    }, REACH_MS).unref();
    this.redis.on('ready', () => {
      if (toldAt > -Infinity) log(`The broker at ${this.place} answers`);
      toldAt = -Infinity;
    });
  }

  /** Disconnects; what still waits for an answer is rejected. */
  close(): void {
    clearInterval(this.#silence);
    // Between two attempts nothing is connected that could end, and commands would wait for ever: one more attempt, which is given up, ends them.
    if (this.redis.status === 'reconnecting') this.redis.connect().catch(() => undefined);
    this.redis.disconnect();
  }
}
