// The folder of scored images, which keeps every one of them: cameras use their names again.
import { createHash } from 'node:crypto';
import { open, readFile, rename, rm, stat, unlink, utimes } from 'node:fs/promises';
import path from 'node:path';
import { writeAtomic } from '../durable.js';
import { codeOf } from '../errors.js';

/** Bytes; file systems allow 255, of which a copy on its way needs some for a name of its own. */
const LONGEST_NAME = 200;

/** Where an image has been put. */
export interface Moved {
  /** Within the folder of scored images. */
  readonly name: string;
  /** Of what lies there, see {@link identify}. */
  readonly id: string;
}

/**
 * SHA-256 of path, size and time of change: a file that is replaced is another image.
 *
 * @param relative - the path that counts, whatever the file is called now
 */
export async function identify(file: string, relative: string): Promise<string> {
  const { size, mtimeMs } = await stat(file);
  return createHash('sha256')
    .update(JSON.stringify([relative, size, mtimeMs]))
    .digest('hex');
}

/** Names for an image: its own path with "__" between folders, then with the first digits of its id, then with a number as well. */
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

/** Takes the first name that nobody has, by an empty file: of two that try at once one gets it. Works where there are no hard links. */
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
 * Gives an empty file that has been claimed the image's content.
 *
 * @returns how: by its only name, as a copy since the folder is on another file system, or not at all since the image has been replaced
 */
async function fill(
  target: string,
  file: string,
  unchanged: () => Promise<boolean>,
): Promise<'moved' | 'copied' | 'replaced'> {
  try {
    await rename(file, target); // no unlink(), which could take away a newer image that has come under the name
    return 'moved';
  } catch (error) {
    if (codeOf(error) !== 'EXDEV') throw error;
  }
  const { atime, mtime } = await stat(file);
  const bytes = await readFile(file);
  if (!(await unchanged())) return 'replaced';
  await writeAtomic(target, bytes);
  await utimes(target, atime, mtime).catch(() => undefined); // for people only, and not every file system can
  return 'copied';
}

/** Takes the original of a copy away; the copy instead where that is not allowed, so that the next attempt does not make a second one. */
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
 * Moves an image without replacing any, to another file system too. A kill on the way leaves it where it was, or on another file system in both
 * places, and perhaps an empty file or one whose name begins with a dot in the folder.
 *
 * @param folder - of scored images
 * @param relative - the image's path in the watched folder, of which its name is made
 * @param id - of the image that has been scored
 * @returns its name, and the id of what has been moved: another one when a newer image took its place in that very moment; undefined when it had
 *   been replaced before: the newer one stays where it is
 * @throws the system's error; then the file is where it was
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
