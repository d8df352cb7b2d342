// Files that survive a crash: replaced as a whole or not at all, appended line by line.
import { randomUUID } from 'node:crypto';
import { access, constants, mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises';
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
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a folder that can be written to but received ${folder}: ${reason}`, {
      cause: error,
    });
  }
}

/** Writes a file so that readers see the old content or the new, also after a crash. Makes its folder. */
export async function writeAtomic(file: string, content: string | Uint8Array): Promise<void> {
  const folder = path.dirname(file);
  await mkdir(folder, { recursive: true });
  const temporary = path.join(folder, `.${path.basename(file)}.${randomUUID()}`);
  try {
    const handle = await open(temporary, 'wx');
    try {
      await handle.writeFile(content);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(folder);
}

/** A file of JSON lines that only grows; a line counts once its newline is on disk. */
export class JsonLines<Line> {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Opens or makes a file. A last line that a crash cut off, or that is no JSON, is taken away. Returns the lines that count. */
  static async open<Line>(file: string): Promise<{ readonly file: JsonLines<Line>; readonly lines: readonly Line[] }> {
    const handle = await open(file, 'a+');
    const content = await handle.readFile();
    const lines: Line[] = [];
    let end = 0;
    for (let next = content.indexOf(10); next !== -1; next = content.indexOf(10, end)) {
      try {
        lines.push(JSON.parse(content.toString('utf8', end, next)) as Line);
      } catch {
        break; // a block that never reached the disk: what follows it is not to be trusted either
      }
      end = next + 1;
    }
    if (end < content.length) await handle.truncate(end);
    await handle.sync();
    return { file: new JsonLines<Line>(handle), lines };
  }

  /** Appends a line; on disk when it resolves. */
  async append(line: Line): Promise<void> {
    await this.#handle.appendFile(`${JSON.stringify(line)}\n`);
    await this.#handle.datasync();
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}
