// Work on items as they come, several at a time, results in the items' order.
import { setImmediate } from 'node:timers/promises';

/**
 * Starts work on each item as it comes and hands results out in the order of the items: at most `concurrency` are under way, the source is read no
 * faster than results are taken, and a result goes out as soon as it is there and the source lets the next item wait.
 *
 * @param start - must not reject
 * @param abandon - called when nobody wants more, before what is under way is waited for
 * @throws what the source throws
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
      ended = true; // a source that threw is over
      throw error;
    }
  };
  let coming: Promise<IteratorResult<Item>> | undefined;
  try {
    while (!ended || underWay.length > 0) {
      if (!ended && underWay.length < concurrency && coming === undefined) {
        coming = next();
        coming.catch(() => undefined); // it may fail when nobody waits for it any more
      }
      // An item that is there is taken first; while the source lets one wait, results that are done go out.
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
      if (coming === undefined) await closing; // else it may come after the item that nobody waits for any more
    }
  }
}
