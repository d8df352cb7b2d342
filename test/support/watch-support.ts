// A watch with a stub engine, and readers for the tests of lib/watch.
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { watch, type Sink, type WatchEvent, type WatchOptions } from '../../lib/watch/index.js';
import { stubScorer } from './queue-support.js';

export { until } from './support.js';

export function collecting(): Sink & { events: WatchEvent[] } {
  const events: WatchEvent[] = [];
  const send = (event: WatchEvent): Promise<void> => {
    events.push(event);
    return Promise.resolve();
  };
  return { name: 'test', events, send, close: () => Promise.resolve() };
}

export async function watching(
  options: Omit<WatchOptions, 'scorer'> & Partial<WatchOptions>,
  use: () => Promise<void>,
): Promise<void> {
  const running = await watch({ scorer: stubScorer(1), settleMs: 100, ...options });
  try {
    await running.scanned;
    await use();
  } finally {
    await running.close();
  }
}

/** Reads the complete lines of a file of JSON lines. */
export async function lines<Line>(file: string): Promise<Line[]> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const complete = text.slice(0, text.lastIndexOf('\n') + 1);
  return complete
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line);
}

export const journalOf = (folder: string): string => path.join(folder, '.diad-watch.jsonl');

/** Reads the events of a journal. */
export async function eventsIn(journal: string): Promise<WatchEvent[]> {
  return (await lines<{ event?: WatchEvent }>(journal)).flatMap(({ event }) =>
    event === undefined ? [] : [event],
  );
}
