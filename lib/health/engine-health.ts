// Detects a broken engine: after repeated failures, scores a known image to tell engine faults from image
// faults.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Diad } from '../diad.js';
import { codeOf, DiadError } from '../errors.js';

/** Consecutive failures that trigger a probe. */
const FAILURES = 3;
/** Default time between probes, milliseconds. */
export const RECHECK_MS = 5000;
/** Failed probes, other than for lack of memory, after which the engine is lost. */
const PROBES = 6;

type Scorer = Pick<Diad, 'score' | 'info'>;

/** Options of {@link EngineHealth}. */
export interface HealthOptions {
  readonly scorer: Scorer;
  readonly log: (line: string) => void;
  /** Called when `healthy` changes. */
  readonly changed?: (healthy: boolean) => void;
  /** Time between probes, milliseconds. */
  readonly recheckMs: number;
}

/**
 * Scores a gray image.
 *
 * @throws DiadError ERR_DIAD_INTERNAL when the score is not finite; also errors of `score`
 */
export async function scoreGray(scorer: Scorer): Promise<void> {
  const side = scorer.info.bundle.imageSize;
  const gray = {
    data: new Uint8Array(side * side).fill(128),
    width: side,
    height: side,
    channels: 1,
  } as const;
  const { score } = await scorer.score(gray, { priority: 1000 }); // top priority
  if (!Number.isFinite(score)) throw new DiadError('ERR_DIAD_INTERNAL', `A gray image scored ${score}`);
}

/** Checks whether an error is caused by the engine, so that other images can fail too. */
const isOfEngine = (error: unknown): boolean =>
  ['ERR_DIAD_INTERNAL', 'ERR_DIAD_OUT_OF_MEMORY'].includes(codeOf(error) ?? '');

/**
 * Tracks the health of an engine from the outcomes of its scores. Three consecutive engine failures trigger a
 * health probe: a gray test image is scored at top priority. While probes fail, the engine is unhealthy and
 * is probed again every `recheckMs`. After six failed probes the engine is lost, because a device error is
 * permanent for the process. Out-of-memory failures do not count, because memory can become available again.
 */
export class EngineHealth {
  /** Resolves with the last error once the engine is lost. */
  readonly lost: Promise<Error>;
  readonly #options: HealthOptions;
  readonly #closed = new AbortController();
  #resolveLost!: (error: Error) => void;
  #healthy = true;
  #failures = 0;
  #probing = false;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.lost = new Promise((resolve) => (this.#resolveLost = resolve));
  }

  /** Whether images should be submitted to the engine. */
  get healthy(): boolean {
    return this.#healthy;
  }

  /** Returns the promise of a score and records its outcome. */
  async follow<T>(score: Promise<T>): Promise<T> {
    try {
      const result = await score;
      this.observe();
      return result;
    } catch (error) {
      this.observe(error);
      throw error;
    }
  }

  /** Records the outcome of a score; no error means success. */
  observe(error?: unknown): void {
    if (error === undefined) this.#failures = 0;
    else if (isOfEngine(error)) this.#failures++;
    if (this.#failures >= FAILURES && !this.#probing) void this.#probe();
  }

  /** Stops probing. */
  close(): void {
    this.#closed.abort();
  }

  async #probe(): Promise<void> {
    const { scorer, log, recheckMs } = this.#options;
    const { signal } = this.#closed;
    this.#probing = true;
    for (let failed = 0; !signal.aborted;) {
      try {
        await scoreGray(scorer);
        this.#probing = false;
        this.#failures = 0;
        if (!this.#healthy) log('the engine scores again');
        this.#setHealthy(true);
        return;
      } catch (error) {
        if (codeOf(error) === 'ERR_DIAD_CLOSED' || signal.aborted) return;
        if (isOfEngine(error)) {
          const why = error instanceof Error ? error : new Error(String(error));
          log(`the engine fails: ${why.message}`);
          this.#setHealthy(false);
          if (codeOf(error) === 'ERR_DIAD_INTERNAL' && ++failed === PROBES) {
            this.#resolveLost(why);
            return;
          }
        }
        await sleep(recheckMs, undefined, { signal, ref: false }).catch(() => undefined); // closed
      }
    }
  }

  #setHealthy(healthy: boolean): void {
    if (this.#healthy === healthy) return;
    this.#healthy = healthy;
    this.#options.changed?.(healthy);
  }
}
