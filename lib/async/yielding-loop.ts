// Processes large arrays in blocks and yields to the event loop in between.
import { setImmediate } from 'node:timers/promises';

/** Elements per block, which take a few milliseconds. */
const PER_TURN = 1 << 17;

/**
 * Processes rows of equal length in blocks. Small inputs are processed at once.
 *
 * @param rows - number of rows
 * @param length - elements per row
 * @param work - processes the rows from `first` to `end` (exclusive)
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
