// Spaces out rejections in bursts, so that clients that retry immediately leave the cores to the engine.

/** Rejections answered immediately before delays start. */
const BURST = 100;
/** Interval between later answers, milliseconds: 200 per second. */
const INTERVAL_MS = 5;
/** Longest delay of an answer, milliseconds. */
const LONGEST_MS = 1000;

/** A leaky bucket that delays instead of dropping. */
export class RejectionThrottle {
  #due = 0;

  /**
   * Reserves the next slot.
   *
   * @param now - milliseconds of a monotonic clock
   * @returns the delay of this answer, milliseconds, 0 to 1000
   */
  delay(now = performance.now()): number {
    this.#due = Math.max(this.#due, now - BURST * INTERVAL_MS) + INTERVAL_MS;
    this.#due = Math.min(this.#due, now + LONGEST_MS);
    return Math.max(0, this.#due - now);
  }
}
