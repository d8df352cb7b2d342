// Reads Python wheels: zip files whose RECORD contains the hash of every file.
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rename, stat } from 'node:fs/promises';
import path from 'node:path';
import { Transform, type Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { openPromise, type Entry, type ZipFile } from 'yauzl';
import { DiadError } from '../../errors.js';
import { sha256OfFile, type InstalledFile } from './cache.js';

/** An opened wheel. */
export interface Wheel {
  readonly file: string;
  /** Content of METADATA. */
  readonly metadata: string;
  /** SHA-256 (hex) by path, from RECORD. */
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

/** Parses RECORD, a CSV of "path,sha256=<base64url>,size". Relevant paths contain no comma or quote. */
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
 * Opens a wheel. Close it with {@link closeWheel}.
 *
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND when the file is not a wheel or truncated
 */
export async function openWheel(file: string): Promise<Wheel> {
  let zip: ZipFile;
  try {
    zip = await openPromise(file, { autoClose: false });
  } catch (error) {
    throw broken(file, 'not a zip file, or truncated', error);
  }
  try {
    const entries: Entry[] = [];
    for await (const entry of zip.eachEntry()) entries.push(entry);
    const read = async (ending: string): Promise<string> => {
      const entry = entries.find(
        ({ fileName }) => /^[^/]+\.dist-info\/[^/]+$/.test(fileName) && fileName.endsWith(ending),
      );
      if (entry === undefined) throw new Error(`${ending.slice(1)} is missing`);
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

/** Closes a wheel. */
export function closeWheel({ zip }: Wheel): void {
  zip.close();
}

/** Returns the requirements of a wheel: values of Requires-Dist. */
export function requirementsOf({ metadata }: Wheel): readonly string[] {
  return [...metadata.matchAll(/^Requires-Dist: (.+?)\r?$/gm)].map(([, requirement]) => requirement!);
}

async function alreadyThere(file: string, entry: Entry, sha256: string): Promise<boolean> {
  const status = await stat(file).catch(() => undefined);
  return status?.size === entry.uncompressedSize && (await sha256OfFile(file)) === sha256;
}

/**
 * Unpacks one file of a wheel and verifies its hash from RECORD. Keeps an existing file with that hash.
 *
 * @param to - target path, created only when the content is complete and verified
 * @param onBytes - called with the number of bytes written since the last call
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND when the hash differs or the zip is damaged; the signal's
 *   reason when it aborts
 */
export async function unpackEntry(
  wheel: Wheel,
  entry: Entry,
  to: string,
  onBytes: (bytes: number) => void,
  signal?: AbortSignal,
): Promise<InstalledFile> {
  const expected = wheel.record.get(entry.fileName);
  if (expected === undefined) throw broken(wheel.file, `RECORD has no sha256 for ${entry.fileName}`);
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
      `${entry.fileName} has sha256 ${actual} but RECORD has ${expected}; remove it and install again`,
    );
  }
  await rename(`${to}.part`, to);
  return { sha256: actual, size };
}
