// Processes items concurrently and yields results in the order of the items.
import { setImmediate } from 'node:timers/promises';

/**
 * Starts work on items as they arrive and yields results in the order of the items. Runs at most
 * `concurrency` at a time, reads the source no faster than results are consumed, and yields a completed
 * result when the source has no next item yet.
 *
 * @param start - must not reject
 * @param abandon - called when the consumer stops, before pending work is awaited
 * @throws errors of the source
 */
export async function* inOrder<Item, Result>(
  items: Iterable<Item> | AsyncIterable<Item>,
  concurrency: number,
  start: (item: Item, index: number) => Promise<Result>,
  abandon: () => void,
): AsyncGenerator<Result, void, undefined> {
  const source: Iterator<Item> | AsyncIterator<Item> =
    Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  const underWay: Promise<{ readonly result: Result }>[] = [];
  let [taken, ended] = [0, false];
  const next = async (): Promise<IteratorResult<Item>> => {
    try {
      return await source.next();
    } catch (error) {
      ended = true; // a source that threw has ended
      throw error;
    }
  };
  let coming: Promise<IteratorResult<Item>> | undefined;
  try {
    while (!ended || underWay.length > 0) {
      if (!ended && underWay.length < concurrency && coming === undefined) {
        coming = next();
        coming.catch(() => undefined); // can reject after the consumer has stopped
      }
      // Prefer an available item; while the source is waiting, yield completed results.
      const taking = coming === undefined ? undefined : await Promise.race([coming, setImmediate(undefined)]);
      const first =
        taking ?? (await Promise.race([...(coming === undefined ? [] : [coming]), ...underWay.slice(0, 1)]));
      if ('result' in first) {
        void underWay.shift();
        yield first.result;
        continue;
      }
      coming = undefined;
      ended = first.done === true;
      if (first.done !== true)
        underWay.push(start(await Promise.resolve(first.value), taken++).then((result) => ({ result })));
    }
  } finally {
    abandon();
    await Promise.all(underWay);
    if (!ended) {
      const closing = Promise.resolve(source.return?.()).catch(() => undefined);
      // A pending next() can block return() until the next item arrives: do not wait for it.
      if (coming === undefined) await closing;
    }
  }
}
