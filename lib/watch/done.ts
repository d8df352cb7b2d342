// Moves scored images into a folder without overwriting, because cameras reuse file names.
import { createHash } from 'node:crypto';
import { open, readFile, rename, rm, stat, unlink, utimes } from 'node:fs/promises';
import path from 'node:path';
import { writeAtomic } from '../io/atomic-file.js';
import { codeOf } from '../errors.js';

/** Longest file name, bytes. File systems allow 255, of which a temporary copy needs some for its suffix. */
const LONGEST_NAME = 200;

/** Location of a moved image. */
export interface Moved {
  /** Name within the folder of scored images. */
  readonly name: string;
  /** Id of the moved content, see {@link identify}. */
  readonly id: string;
}

/**
 * Computes the id of an image: SHA-256 of path, size and modification time. A replaced file has a new id.
 *
 * @param relative - path used for the id, regardless of the current file name
 */
export async function identify(file: string, relative: string): Promise<string> {
  const { size, mtimeMs } = await stat(file);
  return createHash('sha256')
    .update(JSON.stringify([relative, size, mtimeMs]))
    .digest('hex');
}

/**
 * Yields candidate names: the path with "__" between folders, then with part of the id, then also with a
 * number.
 */
function* namesFor(relative: string, id: string): Generator<string> {
  const { name, ext } = path.parse(relative.replaceAll(path.sep, '__'));
  const characters = Array.from(name);
  const named = (ending: string): string => {
    while (Buffer.byteLength(characters.join('') + ending) > LONGEST_NAME) characters.pop();
    return characters.join('') + ending;
  };
  yield named(ext);
  yield named(`.${id.slice(0, 12)}${ext}`);
  for (let count = 2; ; count++) yield named(`.${id.slice(0, 12)}-${count}${ext}`);
}

/** Claims the first free name with an empty file, atomically and without hard links. */
async function claim(folder: string, names: Iterable<string>): Promise<string> {
  for (const name of names) {
    try {
      await (await open(path.join(folder, name), 'wx')).close();
      return name;
    } catch (error) {
      if (codeOf(error) !== 'EEXIST') throw error;
    }
  }
  throw new Error(`No name is free in ${folder}`);
}

/**
 * Fills a claimed file with the content of an image.
 *
 * @returns 'moved' by a rename, 'copied' if the folder is on another file system, 'replaced' if the image has
 *   changed, in which case nothing is written
 */
async function fill(
  target: string,
  file: string,
  unchanged: () => Promise<boolean>,
): Promise<'moved' | 'copied' | 'replaced'> {
  try {
    // Not unlink(), which could remove a newer image with the same name.
    await rename(file, target);
    return 'moved';
  } catch (error) {
    if (codeOf(error) !== 'EXDEV') throw error;
  }
  const { atime, mtime } = await stat(file);
  const bytes = await readFile(file);
  if (!(await unchanged())) return 'replaced';
  await writeAtomic(target, bytes);
  // Informational only, and not supported by every file system.
  await utimes(target, atime, mtime).catch(() => undefined);
  return 'copied';
}

/**
 * Removes the original of a copy. If that fails, removes the copy, so that a retry does not create another.
 */
async function unlinkCopied(file: string, target: string): Promise<void> {
  try {
    await unlink(file);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return;
    await rm(target, { force: true });
    throw error;
  }
}

/**
 * Moves an image without overwriting another, even across file systems. If the process is killed, the image
 * stays at its place or, across file systems, exists in both; an empty file or a dot file can remain in the
 * folder.
 *
 * @param folder - folder of scored images
 * @param relative - path of the image in the watched folder, from which its name is derived
 * @param id - id of the scored image
 * @returns its name and the id of the moved content, which differs if a newer image replaced it at that
 *   moment; undefined if it was replaced before, in which case the newer image stays in place
 * @throws the system error; the file then stays in place
 */
export async function moveInto(
  folder: string,
  file: string,
  relative: string,
  id: string,
): Promise<Moved | undefined> {
  const unchanged = async (): Promise<boolean> => (await identify(file, relative)) === id;
  if (!(await unchanged())) return undefined;
  const name = await claim(folder, namesFor(relative, id));
  const target = path.join(folder, name);
  let how: Awaited<ReturnType<typeof fill>> | undefined;
  try {
    how = await fill(target, file, unchanged);
  } finally {
    if (how === undefined || how === 'replaced') await rm(target, { force: true });
  }
  if (how === 'replaced') return undefined;
  if (how === 'moved') return { name, id: await identify(target, relative) };
  if (await unchanged()) await unlinkCopied(file, target);
  return { name, id };
}
