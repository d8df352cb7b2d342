// The error of a reference that no retry can read.
import { DiadError } from '../errors.js';

/** A permanently unreadable reference, which is not retried. */
export class Unreadable extends DiadError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_DIAD_INVALID_ARGUMENT', message, options);
  }
}
