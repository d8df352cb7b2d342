// Refusals that come in floods are spaced out, so that clients that send again at once leave the cores to the engine.

/** Refusals answered at once before any is held back. */
const BURST = 100;
/** Milliseconds between answers after that: 200 a second. */
const INTERVAL_MS = 5;
/** No answer is held back for longer, milliseconds. */
const LONGEST_MS = 1000;

/** A leaky bucket that delays instead of dropping. */
export class Pacer {
  #due = 0;

  /**
   * Takes the next place.
   *
   * @param now - milliseconds of a steady clock
   * @returns for how long to hold this answer back, milliseconds, 0 to 1000
   */
  delay(now = performance.now()): number {
    this.#due = Math.max(this.#due, now - BURST * INTERVAL_MS) + INTERVAL_MS;
    this.#due = Math.min(this.#due, now + LONGEST_MS);
    return Math.max(0, this.#due - now);
  }
}
