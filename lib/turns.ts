// Work on large arrays in turns, so that the event loop goes on in between.
import { setImmediate } from 'node:timers/promises';

/** Elements of one turn: some milliseconds. */
const PER_TURN = 1 << 17;

/**
 * Works through rows of equal length, a few at a time; what is small is done at once.
 *
 * @param rows - how many there are
 * @param length - elements of a row
 * @param work - does the rows from `first` up to, not including, `end`
 */
export async function inTurns(
  rows: number,
  length: number,
  work: (first: number, end: number) => void,
): Promise<void> {
  const each = Math.max(1, Math.floor(PER_TURN / Math.max(1, length)));
  for (let first = 0; first < rows; first += each) {
    if (first > 0) await setImmediate();
    work(first, Math.min(rows, first + each));
  }
}
