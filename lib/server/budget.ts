// A bounded amount (bytes, pixels) that requests in flight share.
import { DiadError } from '../errors.js';

/** What is in flight at once, at most `limit`. */
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
   * Takes an amount.
   *
   * @returns gives it back; further calls do nothing
   * @throws DiadError ERR_DIAD_QUEUE_FULL
   */
  take(amount: number): () => void {
    if (this.#used + amount > this.limit) {
      throw new DiadError(
        'ERR_DIAD_QUEUE_FULL',
        `${this.#used} ${this.#unit} are in flight of ${this.limit} and the request needs ${amount}; send it again later`,
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
