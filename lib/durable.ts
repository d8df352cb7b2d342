// Files that survive a crash: replaced as a whole or not at all, appended line by line.
import { randomUUID } from 'node:crypto';
import { access, constants, mkdir, open, rename, rm, writeFile, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import { DiadError } from './errors.js';

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Refuses, before long work, a folder that its result could not be written into.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT
 */
export async function requireWritable(folder: string): Promise<void> {
  try {
    await access(folder, constants.W_OK);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected a folder that can be written to but received ${folder}: ${reason}`,
      {
        cause: error,
      },
    );
  }
}

type Content = string | Uint8Array | AsyncIterable<string>;

/** Writes and syncs a file beside the one it is to replace; removed again where that fails. */
async function stage(file: string, content: Content): Promise<string> {
  const folder = path.dirname(file);
  await mkdir(folder, { recursive: true });
  const temporary = path.join(folder, `.${path.basename(file)}.${randomUUID()}`);
  try {
    const handle = await open(temporary, 'wx');
    try {
      await writeFile(handle, content);
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  return temporary;
}

/**
 * Writes files, their content as a whole or piece by piece, so that readers see the old one or the new of each, also after a crash. None is replaced
 * before all are on disk; then they are in the order given. Makes their folders.
 */
export async function writeTogether(
  files: readonly (readonly [file: string, content: Content])[],
): Promise<void> {
  const staged: { readonly temporary: string; readonly file: string }[] = [];
  try {
    for (const [file, content] of files) staged.push({ temporary: await stage(file, content), file });
    for (const { temporary, file } of staged) await rename(temporary, file);
  } catch (error) {
    for (const { temporary } of staged) await rm(temporary, { force: true });
    throw error;
  }
  for (const folder of new Set(staged.map(({ file }) => path.dirname(file)))) await syncFolder(folder);
}

/** Writes one file as {@link writeTogether} does. */
export function writeAtomic(file: string, content: Content): Promise<void> {
  return writeTogether([[file, content]]);
}

/** Bytes read at once. */
const CHUNK = 1 << 18;
/** Bytes; what is longer is a block that never reached the disk, not a line of ours. */
const LONGEST_LINE = 1 << 20;

/** A line that its newline completes. */
export interface CompleteLine {
  /** Without the newline; empty for a line of more than 1 MiB. */
  readonly text: string;
  /** Behind its newline, bytes from the file's start. */
  readonly end: number;
}

/** What a line of JSON says; undefined for one that a crash cut short, and for what is no object. */
export function parsedLine(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A file that texts of whole lines are appended to: all of a text, or, when that fails, nothing. Of any size: it is never read as a whole. */
export class LineFile {
  readonly #handle: FileHandle;
  /** Size before an attempt that failed, as long as what it left is still there. */
  #whole: number | undefined;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Opens or makes a file. */
  static async open(file: string): Promise<LineFile> {
    return new LineFile(await open(file, 'a+'));
  }

  /** Bytes. */
  async size(): Promise<number> {
    return (await this.#handle.stat()).size;
  }

  /** The complete lines between two places, bytes from the file's start. */
  async *lines(from = 0, to = Infinity): AsyncGenerator<CompleteLine> {
    let rest: Buffer = Buffer.alloc(0); // of a line whose newline has not been read yet
    let tooLong = false;
    let chunk = Buffer.alloc(0);
    for (let at = from; at < to;) {
      const wanted = Math.min(CHUNK, to - at);
      if (chunk.length < wanted) chunk = Buffer.allocUnsafe(wanted);
      const { bytesRead } = await this.#handle.read(chunk, 0, wanted, at);
      if (bytesRead === 0) return;
      const read = chunk.subarray(0, bytesRead);
      const bytes = rest.length === 0 ? read : Buffer.concat([rest, read]);
      const first = at - rest.length;
      at += bytesRead;
      let start = 0;
      for (let next = bytes.indexOf(10, rest.length); next !== -1; next = bytes.indexOf(10, start)) {
        yield { text: tooLong ? '' : bytes.toString('utf8', start, next), end: first + next + 1 };
        tooLong = false;
        start = next + 1;
      }
      if (bytes.length - start > LONGEST_LINE) tooLong = true;
      rest = tooLong ? Buffer.alloc(0) : Buffer.from(bytes.subarray(start)); // a copy: the next read overwrites the chunk
    }
  }

  /** Takes away what is behind a place, bytes from the file's start. */
  async cut(end: number): Promise<void> {
    if ((await this.size()) > end) await this.#handle.truncate(end);
    await this.#handle.sync();
  }

  /**
   * Appends lines, each with its newline; on disk when it resolves. One call at a time.
   *
   * @returns the file's size, bytes
   */
  async append(text: string): Promise<number> {
    await this.#mend();
    const before = await this.size();
    this.#whole = before;
    try {
      await this.#handle.appendFile(text);
      await this.#handle.datasync();
    } catch (error) {
      await this.#mend().catch(() => undefined); // then before the next attempt
      throw error;
    }
    this.#whole = undefined;
    return before + Buffer.byteLength(text);
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  async #mend(): Promise<void> {
    if (this.#whole === undefined) return;
    await this.cut(this.#whole);
    this.#whole = undefined;
  }
}

/** A file of JSON lines that only grows; a line counts once its newline is on disk. */
export class JsonLines<Line> {
  readonly #file: LineFile;

  private constructor(file: LineFile) {
    this.#file = file;
  }

  /** Opens or makes a file. A last line that a crash cut off, or that is no JSON, is taken away. Returns the lines that count. */
  static async open<Line>(
    file: string,
  ): Promise<{ readonly file: JsonLines<Line>; readonly lines: readonly Line[] }> {
    const found = await LineFile.open(file);
    const lines: Line[] = [];
    let end = 0;
    for await (const line of found.lines()) {
      try {
        lines.push(JSON.parse(line.text) as Line);
      } catch {
        break; // a block that never reached the disk: what follows it is not to be trusted either
      }
      end = line.end;
    }
    await found.cut(end);
    return { file: new JsonLines<Line>(found), lines };
  }

  /** Appends a line; on disk when it resolves. */
  async append(line: Line): Promise<void> {
    await this.#file.append(`${JSON.stringify(line)}\n`);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
