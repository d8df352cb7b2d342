// Crash-safe files: atomic replacement and line-wise appending.
import { randomUUID } from 'node:crypto';
import { access, constants, mkdir, open, rename, rm, writeFile, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import { DiadError } from '../errors.js';

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Rejects a folder without write permission before long work whose result goes there.
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
      `Expected a writable folder but received ${folder}: ${reason}`,
      {
        cause: error,
      },
    );
  }
}

type Content = string | Uint8Array | AsyncIterable<string>;

/** Writes and syncs a temporary file next to its target. Removes it on failure. */
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
 * Replaces files atomically: readers see either the old or the new content of each, even after a crash.
 * Writes and syncs all contents before it replaces the first file, then replaces them in order. Creates
 * missing folders.
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

/** Replaces one file as {@link writeTogether} does. */
export function writeAtomic(file: string, content: Content): Promise<void> {
  return writeTogether([[file, content]]);
}

/** Bytes per read. */
const CHUNK = 1 << 18;
/** Bytes. Longer lines are blocks that never reached the disk, because no valid line is that long. */
const LONGEST_LINE = 1 << 20;

/** A line with a terminating newline. */
export interface CompleteLine {
  /** Text without the newline; empty for a line of more than 1 MiB. */
  readonly text: string;
  /** Byte offset after the newline. */
  readonly end: number;
}

/** Parses a line of JSON. Returns undefined for a truncated line or a value that is not an object. */
export function parsedLine(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/**
 * A file to which whole lines are appended. An append writes all of the text or, if it fails, nothing. The
 * file can have any size, because it is never read as a whole.
 */
export class LineFile {
  readonly #handle: FileHandle;
  /** Size before a failed append, until its partial text is removed. */
  #whole: number | undefined;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Opens or creates a file. */
  static async open(file: string): Promise<LineFile> {
    return new LineFile(await open(file, 'a+'));
  }

  /** Returns the size, bytes. */
  async size(): Promise<number> {
    return (await this.#handle.stat()).size;
  }

  /** Yields the complete lines between two byte offsets. */
  async *lines(from = 0, to = Infinity): AsyncGenerator<CompleteLine> {
    let rest: Buffer = Buffer.alloc(0); // start of a line whose newline has not been read yet
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
      // Copy, because the next read overwrites the chunk.
      rest = tooLong ? Buffer.alloc(0) : Buffer.from(bytes.subarray(start));
    }
  }

  /** Truncates the file to `end` bytes. */
  async cut(end: number): Promise<void> {
    if ((await this.size()) > end) await this.#handle.truncate(end);
    await this.#handle.sync();
  }

  /**
   * Appends lines, each with its newline. Resolves when they are on disk. Do not call concurrently.
   *
   * @returns the size of the file, bytes
   */
  async append(text: string): Promise<number> {
    await this.#mend();
    const before = await this.size();
    this.#whole = before;
    try {
      await this.#handle.appendFile(text);
      await this.#handle.datasync();
    } catch (error) {
      await this.#mend().catch(() => undefined); // otherwise repaired before the next append
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

/** An append-only file of JSON lines. A line counts only once its newline is on disk. */
export class JsonLines<Line> {
  readonly #file: LineFile;

  private constructor(file: LineFile) {
    this.#file = file;
  }

  /**
   * Opens or creates a file. Removes everything from the first truncated or invalid line on. Returns the
   * lines.
   */
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
        break; // an unwritten block: the data after it is unreliable too
      }
      end = line.end;
    }
    await found.cut(end);
    return { file: new JsonLines<Line>(found), lines };
  }

  /** Appends a line. Resolves when it is on disk. */
  async append(line: Line): Promise<void> {
    await this.#file.append(`${JSON.stringify(line)}\n`);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
