// Reading a Python wheel: a zip whose RECORD holds the hash of every file.
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rename, stat } from 'node:fs/promises';
import path from 'node:path';
import { Transform, type Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { openPromise, type Entry, type ZipFile } from 'yauzl';
import { DiadError } from '../errors.js';
import { sha256OfFile, type InstalledFile } from './cache.js';

/** An opened wheel. */
export interface Wheel {
  readonly file: string;
  /** What it says about itself, as in METADATA. */
  readonly metadata: string;
  /** sha256 in hex by path, as in RECORD. */
  readonly record: ReadonlyMap<string, string>;
  readonly entries: readonly Entry[];
  readonly zip: ZipFile;
}

function broken(file: string, why: string, cause?: unknown): DiadError {
  return new DiadError(
    'ERR_DIAD_LIBTORCH_NOT_FOUND',
    `The wheel ${path.basename(file)} cannot be used: ${why}`,
    { cause },
  );
}

/** RECORD is CSV "path,sha256=<base64url>,size"; the paths of interest here hold no comma and no quote. */
function parseRecord(content: string): ReadonlyMap<string, string> {
  const hashes = new Map<string, string>();
  for (const line of content.split(/\r?\n/)) {
    const [, name, digest] = /^([^",]+),sha256=([\w-]+),\d*$/.exec(line) ?? [];
    if (name !== undefined && digest !== undefined)
      hashes.set(name, Buffer.from(digest, 'base64url').toString('hex'));
  }
  return hashes;
}

/**
 * Opens a wheel; its reader stays open until {@link closeWheel}.
 *
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND when it is no wheel, or cut short
 */
export async function openWheel(file: string): Promise<Wheel> {
  let zip: ZipFile;
  try {
    zip = await openPromise(file, { autoClose: false });
  } catch (error) {
    throw broken(file, 'it is no zip file, or its end is missing', error);
  }
  try {
    const entries: Entry[] = [];
    for await (const entry of zip.eachEntry()) entries.push(entry);
    const read = async (ending: string): Promise<string> => {
      const entry = entries.find(
        ({ fileName }) => /^[^/]+\.dist-info\/[^/]+$/.test(fileName) && fileName.endsWith(ending),
      );
      if (entry === undefined) throw new Error(`it has no ${ending.slice(1)}`);
      return text(await zip.openReadStreamPromise(entry));
    };
    return {
      file,
      zip,
      entries,
      metadata: await read('/METADATA'),
      record: parseRecord(await read('/RECORD')),
    };
  } catch (error) {
    zip.close();
    throw broken(file, error instanceof Error ? error.message : String(error), error);
  }
}

/** Closes the reader of a wheel. */
export function closeWheel({ zip }: Wheel): void {
  zip.close();
}

/** The wheel's requirements: values of Requires-Dist. */
export function requirementsOf({ metadata }: Wheel): readonly string[] {
  return [...metadata.matchAll(/^Requires-Dist: (.+?)\r?$/gm)].map(([, requirement]) => requirement!);
}

async function alreadyThere(file: string, entry: Entry, sha256: string): Promise<boolean> {
  const status = await stat(file).catch(() => undefined);
  return status?.size === entry.uncompressedSize && (await sha256OfFile(file)) === sha256;
}

/**
 * Unpacks one file of a wheel and compares its hash with the one in RECORD. A file that is there already with that hash is left as it is.
 *
 * @param to - where it goes; its name appears only once its content is complete and right
 * @param onBytes - called with the number of bytes written since the last call
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND when the hash differs or the zip is damaged; the signal's reason when it aborts
 */
export async function unpackEntry(
  wheel: Wheel,
  entry: Entry,
  to: string,
  onBytes: (bytes: number) => void,
  signal?: AbortSignal,
): Promise<InstalledFile> {
  const expected = wheel.record.get(entry.fileName);
  if (expected === undefined) throw broken(wheel.file, `its RECORD has no sha256 of ${entry.fileName}`);
  const size = entry.uncompressedSize;
  if (await alreadyThere(to, entry, expected)) {
    onBytes(size);
    return { sha256: expected, size };
  }
  await mkdir(path.dirname(to), { recursive: true });
  const hash = createHash('sha256');
  const counted = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk);
      onBytes(chunk.length);
      done(null, chunk);
    },
  });
  try {
    const content: Readable = await wheel.zip.openReadStreamPromise(entry);
    await pipeline(content, counted, createWriteStream(`${to}.part`, { mode: 0o644 }), {
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (error) {
    signal?.throwIfAborted();
    throw broken(
      wheel.file,
      `${entry.fileName} cannot be unpacked (${error instanceof Error ? error.message : String(error)})`,
      error,
    );
  }
  const actual = hash.digest('hex');
  if (actual !== expected) {
    throw broken(
      wheel.file,
      `${entry.fileName} has the sha256 ${actual}, its RECORD says ${expected}; remove it and install again`,
    );
  }
  await rename(`${to}.part`, to);
  return { sha256: actual, size };
}
