// The journal's lines: what they say, and the file written anew at each start without what is needed no more.
import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { parsedLine, type LineFile } from '../durable.js';
import { codeOf } from '../errors.js';
import type { WatchEvent } from './event.js';

/** A line; which of its parts it has says what it is. */
export interface Entry {
  /** First line: of what follows. Files of version 1 have none, and say of each event by `sent` that all receivers have it. */
  readonly version?: 2;
  /** First line: inode of the folder of images. */
  readonly inode?: string;
  /** Id of an image that was known at the start, and its path in the folder. */
  readonly known?: string;
  readonly file?: string;
  readonly event?: WatchEvent;
  /** A receiver's name, and the place in this file up to which it has every event. */
  readonly sink?: string;
  readonly to?: number;
  /** Id of an image that lies among the scored ones now, and its name there. */
  readonly moved?: string;
  readonly name?: string;
  readonly sent?: string;
}

/** What a journal says at the start. */
export interface Past {
  readonly inode: string | undefined;
  /** Ids by the path in the folder; the latest of each. */
  readonly known: Map<string, string>;
  /** How far each receiver had got, bytes from the file's start. */
  readonly positions: ReadonlyMap<string, number>;
  /** Of version 1: ids of events that not all receivers have. */
  readonly unsent: ReadonlySet<string> | undefined;
}

/** Which known images are still to be told apart from new ones. */
export interface There {
  readonly inode: string;
  readonly names: ReadonlySet<string>;
}

/** Characters written at once. */
const BLOCK = 1 << 16;

/** A line's entry. Of one that was cut short by a kill nobody has been told. */
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

/** Names in a folder; undefined when they cannot be read. */
async function namesIn(folder: string): Promise<ReadonlySet<string> | undefined> {
  try {
    return new Set(await readdir(folder));
  } catch (error) {
    return ['ENOENT', 'ENOTDIR'].includes(codeOf(error) ?? '') ? new Set() : undefined;
  }
}

/** Which known images still lie in the folder, or may: all, where it is another one in which none is found, such as a share that is not mounted. */
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
 * The lines of the journal that takes the old one's place: the ids of images that are still there, the events that a receiver has not had, and how
 * far each has got. A receiver that is new gets what the last one of before has not had.
 *
 * @param positions - is given each receiver's place in the new file
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
