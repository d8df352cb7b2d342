// A shared limit (bytes, pixels) for requests in flight.
import { DiadError } from '../errors.js';

/** Tracks the amount in flight, up to `limit`. */
export class Budget {
  readonly limit: number;
  readonly #unit: string;
  #used = 0;

  constructor(limit: number, unit: string) {
    this.limit = limit;
    this.#unit = unit;
  }

  get used(): number {
    return this.#used;
  }

  /**
   * Reserves an amount.
   *
   * @returns a function that releases it; further calls have no effect
   * @throws DiadError ERR_DIAD_QUEUE_FULL
   */
  take(amount: number): () => void {
    if (this.#used + amount > this.limit) {
      throw new DiadError(
        'ERR_DIAD_QUEUE_FULL',
        `${this.#used} of ${this.limit} ${this.#unit} are in flight and the request needs ${amount}; ` +
          'send it again later',
      );
    }
    this.#used += amount;
    let held = true;
    return () => {
      if (held) this.#used -= amount;
      held = false;
    };
  }
}
