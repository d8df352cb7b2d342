// Line format of the journal, and its compaction at each start.
import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { parsedLine, type LineFile } from '../io/atomic-file.js';
import { codeOf } from '../errors.js';
import type { WatchEvent } from './event.js';

/** A line of the journal; its fields determine its kind. */
export interface Entry {
  /** First line: format version. Version 1 files have no version and mark delivered events with `sent`. */
  readonly version?: 2;
  /** First line: inode of the folder of images. */
  readonly inode?: string;
  /** Id of an image that was known at the start, and its path in the folder. */
  readonly known?: string;
  readonly file?: string;
  readonly event?: WatchEvent;
  /** Name of a receiver, and the offset in this file up to which it has received all events. */
  readonly sink?: string;
  readonly to?: number;
  /** Id of an image that was moved to the scored ones, and its name there. */
  readonly moved?: string;
  readonly name?: string;
  readonly sent?: string;
}

/** State of a journal at the start. */
export interface Past {
  readonly inode: string | undefined;
  /** Latest id by path in the folder. */
  readonly known: Map<string, string>;
  /** Byte offset that each receiver has reached. */
  readonly positions: ReadonlyMap<string, number>;
  /** Version 1: ids of events that some receiver has not received. */
  readonly unsent: ReadonlySet<string> | undefined;
}

/** Known images that can still be in the folder. */
export interface There {
  readonly inode: string;
  readonly names: ReadonlySet<string>;
}

/** Characters per write. */
const BLOCK = 1 << 16;

/** Parses a line. A truncated line is ignored, because its event was never sent. */
export const entryOf = (text: string): Entry | undefined => parsedLine(text);

export async function readPast(file: LineFile): Promise<Past> {
  const known = new Map<string, string>();
  const positions = new Map<string, number>();
  const unsent = new Set<string>();
  let header: Entry | undefined;
  for await (const { text } of file.lines()) {
    const entry = entryOf(text);
    if (entry === undefined) continue;
    if (entry.version !== undefined) header = entry;
    if (entry.known !== undefined && entry.file !== undefined) known.set(entry.file, entry.known);
    if (entry.event !== undefined) {
      known.set(entry.event.file, entry.event.id);
      if (header === undefined) unsent.add(entry.event.id);
    }
    if (entry.sink !== undefined && entry.to !== undefined) positions.set(entry.sink, entry.to);
    if (entry.sent !== undefined) unsent.delete(entry.sent);
  }
  return { inode: header?.inode, known, positions, unsent: header === undefined ? unsent : undefined };
}

/** Lists the names in a folder; undefined if it cannot be read. */
async function namesIn(folder: string): Promise<ReadonlySet<string> | undefined> {
  try {
    return new Set(await readdir(folder));
  } catch (error) {
    return ['ENOENT', 'ENOTDIR'].includes(codeOf(error) ?? '') ? new Set() : undefined;
  }
}

/**
 * Determines which known images can still be in the folder. If the folder is a different one without any
 * known image, such as the mount point of an unmounted share, keeps all of them.
 */
export async function stillThere(folder: string, { known, inode: before }: Past): Promise<There> {
  const inode = String((await stat(folder, { bigint: true })).ino);
  const listed = new Map<string, ReadonlySet<string> | undefined>();
  const names = new Set<string>();
  for (const file of known.keys()) {
    const { dir, base } = path.parse(file);
    if (!listed.has(dir)) listed.set(dir, await namesIn(path.join(folder, dir)));
    if (listed.get(dir)?.has(base) ?? true) names.add(file);
  }
  const other = before !== undefined && before !== inode && names.size === 0;
  return other ? { inode: before, names: new Set(known.keys()) } : { inode, names };
}

/**
 * Yields the lines of a compacted journal: ids of images that still exist, undelivered events, and the
 * position of each receiver. A new receiver starts where the slowest existing one is.
 *
 * @param positions - filled with each receiver's position in the new file
 */
export async function* compacted(
  file: LineFile,
  past: Past,
  there: There,
  sinks: readonly string[],
  positions: Map<string, number>,
): AsyncGenerator<string> {
  let [size, block] = [0, ''];
  const add = (entry: Entry): void => {
    const line = `${JSON.stringify(entry)}\n`;
    size += Buffer.byteLength(line);
    block += line;
  };
  const taken = function* (least: number): Generator<string> {
    if (block.length < least) return;
    yield block;
    block = '';
  };
  add({ version: 2, inode: there.inode });
  for (const name of there.names) {
    add({ known: past.known.get(name)!, file: name });
    yield* taken(BLOCK);
  }
  const last = past.positions.size === 0 ? 0 : Math.min(...past.positions.values());
  const before = new Map(sinks.map((sink) => [sink, past.positions.get(sink) ?? last]));
  const first = Math.min(...before.values());
  for (const sink of sinks) positions.set(sink, size);
  for await (const { text, end } of file.lines(first)) {
    const event = entryOf(text)?.event;
    if (event === undefined || past.unsent?.has(event.id) === false) continue;
    add({ event });
    for (const sink of sinks) if (end <= before.get(sink)!) positions.set(sink, size);
    yield* taken(BLOCK);
  }
  for (const [sink, to] of positions) add({ sink, to });
  yield* taken(1);
}
