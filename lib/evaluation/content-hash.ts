// Hashes image contents to detect images shared between sets, regardless of file names.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { DiadError } from '../errors.js';

/** Computes the SHA-256 of bytes, hex. */
export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Computes the SHA-256 of a file, hex. */
export async function contentHash(file: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    await pipeline(createReadStream(file), hash);
  } catch (error) {
    throw new DiadError(
      'ERR_DIAD_IMAGE_DECODE',
      `${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      {
        cause: error,
      },
    );
  }
  return hash.digest('hex');
}

/** Computes the hashes of files in order, reading up to 8 files concurrently. */
export async function contentHashes(files: readonly string[]): Promise<string[]> {
  const hashes: string[] = new Array<string>(files.length);
  const waiting = files.entries();
  const work = async (): Promise<void> => {
    for (const [i, file] of waiting) hashes[i] = await contentHash(file);
  };
  await Promise.all(Array.from({ length: 8 }, work));
  return hashes;
}

/**
 * Rejects sets of images that overlap.
 *
 * @param names - names of the sets, for the message
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the first shared files
 */
export function refuseOverlap(
  files: readonly string[],
  hashes: readonly string[],
  others: ReadonlySet<string>,
  names: string,
): void {
  const shared = files.filter((_, i) => others.has(hashes[i]!));
  if (shared.length === 0) return;
  const shown = `${shared.slice(0, 3).join(', ')}${shared.length > 3 ? ', ...' : ''}`;
  throw new DiadError(
    'ERR_DIAD_INVALID_ARGUMENT',
    `${shared.length} of ${files.length} images are in both ${names} (same content): ${shown}; ` +
      'results on them would be invalid',
  );
}
