// Redis connections with timeouts and readable errors.
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { DiadError } from '../errors.js';

/** Time limit to reach a broker, milliseconds. */
const REACH_MS = 5000;
/** Time limit for an answer of a connected broker, including a restart, milliseconds. */
const ANSWER_MS = 30_000;
/** Largest delay between two connections noticing the same outage, milliseconds. */
const NOTICE_MS = 1000;
/** Interval between repeated reports of the same problem, milliseconds. */
export const REMIND_MS = 60_000;

/** Answers for which a retry is pointless. */
const REFUSAL = /^(WRONGPASS|NOAUTH|NOPERM)|invalid password|DB index/;
const SILENCE = /^(no answer|Command timed out)$/;

/** Checks whether an error concerns the broker or the connection rather than the command. */
function isTrouble(error: Error): boolean {
  return (
    error.name === 'ReplyError' ||
    'syscall' in error ||
    SILENCE.test(error.message) ||
    error.message.startsWith('Connection is closed')
  );
}

/** Describes an error; completes "The broker at HOST:PORT ...". */
function meaning({ name, message }: Error): string {
  if (message.startsWith('NOAUTH'))
    return 'requires a password: add it to the URL, redis://USER:PASSWORD@HOST';
  if (/^WRONGPASS|invalid password/.test(message)) return 'rejects the user or password of the URL';
  if (SILENCE.test(message)) return 'does not answer';
  return name === 'ReplyError' ? `reports: ${message}` : `cannot be reached: ${message}`;
}

/** A Redis connection that records its address and its last error. */
export class BrokerConnection {
  readonly redis: Redis;
  /** Host and port, without user and password. */
  readonly place: string;
  #lastError: Error | undefined;
  #silence: NodeJS.Timeout | undefined;
  #readyAt = -Infinity;

  /**
   * Opens a connection that waits for the broker instead of failing. Intended for workers.
   *
   * @param limit - `commandTimeout`: time limit for the answer to a command, milliseconds; default: none
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the URL does not start with redis:// or rediss://
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
   * Opens a connection whose commands fail when no answer arrives within 30 s. Intended for clients.
   *
   * @throws DiadError as the constructor; ERR_DIAD_BROKER_UNAVAILABLE when the broker is not reached within 5
   *   s or rejects the connection
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
   * Waits without a time limit until the broker is reached.
   *
   * @throws DiadError ERR_DIAD_BROKER_UNAVAILABLE when the broker rejects the user, password or database of
   * the URL
   */
  async reach(): Promise<void> {
    await this.ask(this.#reached());
  }

  // Sends no command, because an unanswered one would keep the process alive.
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
   * Awaits the answer to a command of this connection.
   *
   * @throws DiadError ERR_DIAD_BROKER_UNAVAILABLE when the broker is lost or rejects the command
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
    // A Redis error as the cause would contain its command, which can include the password.
    const options = known.name === 'ReplyError' ? {} : { cause: known };
    return new DiadError(
      'ERR_DIAD_BROKER_UNAVAILABLE',
      `The broker at ${this.place} ${meaning(known)}`,
      options,
    );
  }

  /**
   * Checks whether an error is only an outage of the broker, which {@link BrokerConnection.report} reports.
   */
  async isOutage(error: Error): Promise<boolean> {
    if (!isTrouble(error)) return false;
    const since = Date.now() - NOTICE_MS;
    await sleep(NOTICE_MS, undefined, { ref: false }); // another connection may notice the outage first
    return this.redis.status !== 'ready' || this.#readyAt >= since; // or this one may have reconnected
  }

  /**
   * Resolves when a connected or disconnected broker has not answered for 5 s, or when this connection is
   * closed.
   *
   * @param signal - stops the pings and rejects the returned promise
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

  /** Logs an outage of the broker immediately, again every minute while it lasts, and when it ends. */
  report(log: (line: string) => void): void {
    let reportedAt = -Infinity;
    const report = (): void => {
      if (Date.now() - reportedAt < REMIND_MS) return;
      reportedAt = Date.now();
      log(`${this.#failure(new Error('no answer')).message}; trying again`);
    };
    this.redis.on('error', report);
    // A broker that accepts connections but does not answer raises no error.
    this.#silence = setInterval(() => {
      if (this.redis.status !== 'ready') report();
    }, REACH_MS).unref();
    this.redis.on('ready', () => {
      if (reportedAt > -Infinity) log(`The broker at ${this.place} is available again`);
      reportedAt = -Infinity;
    });
  }

  /** Disconnects. Pending commands reject. */
  close(): void {
    clearInterval(this.#silence);
    // Between two reconnection attempts there is no connection to end, and commands would never settle. Start
    // another attempt so that disconnecting rejects them.
    if (this.redis.status === 'reconnecting') this.redis.connect().catch(() => undefined);
    this.redis.disconnect();
  }
}
