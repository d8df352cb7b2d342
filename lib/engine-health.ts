// Whether an engine that fails image after image still scores: it is asked with an image of our own, before the failures are put down to theirs.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Diad } from './diad.js';
import { codeOf, DiadError } from './errors.js';

/** Failures in a row after which the engine is asked. */
const FAILURES = 3;
/** Default time between questions, milliseconds. */
export const RECHECK_MS = 5000;
/** Questions that end in an error other than a lack of memory, after which no more are asked. */
const QUESTIONS = 6;

type Scorer = Pick<Diad, 'score' | 'info'>;

/** What an {@link EngineHealth} looks after, and whom it tells. */
export interface HealthOptions {
  readonly scorer: Scorer;
  readonly log: (line: string) => void;
  /** Told when `well` has changed. */
  readonly changed?: (well: boolean) => void;
  /** Between questions, milliseconds. */
  readonly recheckMs: number;
}

/**
 * Scores a gray image.
 *
 * @throws DiadError ERR_DIAD_INTERNAL when its score is no finite number, and what `score` throws
 */
export async function scoreGray(scorer: Scorer): Promise<void> {
  const side = scorer.info.bundle.imageSize;
  const gray = {
    data: new Uint8Array(side * side).fill(128),
    width: side,
    height: side,
    channels: 1,
  } as const;
  const { score } = await scorer.score(gray, { priority: 1000 }); // before all that waits
  if (!Number.isFinite(score)) throw new DiadError('ERR_DIAD_INTERNAL', `A gray image scored ${score}`);
}

/** Whether an error is the engine's, and another image may meet it too. */
const isOfEngine = (error: unknown): boolean =>
  ['ERR_DIAD_INTERNAL', 'ERR_DIAD_OUT_OF_MEMORY'].includes(codeOf(error) ?? '');

/**
 * Watches the outcomes of scores. After three failures of the engine in a row it is asked to score a gray image. While it cannot, it is not well, and
 * is asked again every few seconds. When it has failed six times it is lost: a device that has met an error serves no process that had it open. Memory
 * that it lacks may come back, and is waited for.
 */
export class EngineHealth {
  /** Fulfilled with what the engine failed with last, once it is lost. */
  readonly lost: Promise<Error>;
  readonly #options: HealthOptions;
  readonly #closed = new AbortController();
  #tellLost!: (error: Error) => void;
  #well = true;
  #failures = 0;
  #asking = false;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.lost = new Promise((resolve) => (this.#tellLost = resolve));
  }

  /** Whether images should be handed to the engine. */
  get well(): boolean {
    return this.#well;
  }

  /** Hands a score on, and takes note of it, or of why there is none. */
  async follow<T>(score: Promise<T>): Promise<T> {
    try {
      const result = await score;
      this.saw();
      return result;
    } catch (error) {
      this.saw(error);
      throw error;
    }
  }

  /** Takes note of a score, or of why there is none. */
  saw(error?: unknown): void {
    if (error === undefined) this.#failures = 0;
    else if (isOfEngine(error)) this.#failures++;
    if (this.#failures >= FAILURES && !this.#asking) void this.#ask();
  }

  /** Asks no more. */
  close(): void {
    this.#closed.abort();
  }

  async #ask(): Promise<void> {
    const { scorer, log, recheckMs } = this.#options;
    const { signal } = this.#closed;
    this.#asking = true;
    for (let failed = 0; !signal.aborted;) {
      try {
        await scoreGray(scorer);
        this.#asking = false;
        this.#failures = 0;
        if (!this.#well) log('the engine scores again');
        this.#becomes(true);
        return;
      } catch (error) {
        if (codeOf(error) === 'ERR_DIAD_CLOSED' || signal.aborted) return;
        if (isOfEngine(error)) {
          const why = error instanceof Error ? error : new Error(String(error));
          log(`the engine fails: ${why.message}`);
          this.#becomes(false);
          if (codeOf(error) === 'ERR_DIAD_INTERNAL' && ++failed === QUESTIONS) {
            this.#tellLost(why);
            return;
          }
        }
        await sleep(recheckMs, undefined, { signal, ref: false }).catch(() => undefined); // closed
      }
    }
  }

  #becomes(well: boolean): void {
    if (this.#well === well) return;
    this.#well = well;
    this.#options.changed?.(well);
  }
}
