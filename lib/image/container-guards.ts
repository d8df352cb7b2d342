// Counts frames and scans of encoded images and inspects samples from the file structure, before any
// decoding.
import type { ImageFormat } from './types.js';

/** Creates a DataView over bytes. */
export const view = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Returns a fallback when the structure is truncated; the decoder then reports the error. */
function unlessTruncated<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof RangeError) return otherwise;
    throw error;
  }
}

/**
 * Returns readers for the byte order and offset size of a TIFF or BigTIFF, and its first directory offset.
 */
function openTiff(bytes: Uint8Array) {
  const at = view(bytes);
  const little = bytes[0] === 0x49;
  const big = at.getUint16(2, little) === 43;
  const offset = (position: number): number =>
    big ? Number(at.getBigUint64(position, little)) : at.getUint32(position, little);
  const entries = (directory: number): number =>
    big ? Number(at.getBigUint64(directory, little)) : at.getUint16(directory, little);
  // Size of the entry count, size of an entry, offset of the value within an entry.
  const [countSize, entrySize, valueAt] = big ? [8, 20, 12] : [2, 12, 8];
  const short = (position: number): number => at.getUint16(position, little);
  return { offset, entries, short, countSize, entrySize, valueAt, first: offset(big ? 8 : 4) };
}

/**
 * Counts the pages of a TIFF or BigTIFF by following its directory chain. A cyclic chain stops at the limit.
 */
function tiffPages(bytes: Uint8Array, limit: number): number {
  const { offset, entries, countSize, entrySize, first } = openTiff(bytes);
  let directory = first;
  let pages = 0;
  while (directory !== 0 && pages < limit) {
    pages++;
    directory = offset(directory + countSize + entrySize * entries(directory));
  }
  return pages;
}

const [COMPRESSION, PHOTOMETRIC] = [259, 262]; // tags
const [OLD_JPEG, JPEG, YCBCR] = [6, 7, 6];

/** Checks for a first TIFF page with YCbCr samples but no JPEG compression, which libvips reads as RGB. */
export function isPlainYcbcr(bytes: Uint8Array): boolean {
  return unlessTruncated(() => {
    const { entries, short, countSize, entrySize, valueAt, first } = openTiff(bytes);
    const found = new Map<number, number>();
    const [start, end] = [first + countSize, first + countSize + entrySize * entries(first)];
    for (let entry = start; entry < end; entry += entrySize) {
      const tag = short(entry);
      if (tag === COMPRESSION || tag === PHOTOMETRIC) found.set(tag, short(entry + valueAt));
    }
    return found.get(PHOTOMETRIC) === YCBCR && ![OLD_JPEG, JPEG].includes(found.get(COMPRESSION) ?? 1);
  }, false);
}

/** Counts the image blocks of a GIF. */
function gifFrames(bytes: Uint8Array, limit: number): number {
  const at = view(bytes);
  const table = (flags: number): number => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  let position = 13 + table(at.getUint8(10));
  const skipSubBlocks = (): void => {
    for (let size = at.getUint8(position++); size !== 0; size = at.getUint8(position++)) position += size;
  };
  let frames = 0;
  while (frames < limit) {
    const block = at.getUint8(position++);
    if (block === 0x21) {
      position++; // extension label
    } else if (block === 0x2c) {
      frames++;
      position += 9 + table(at.getUint8(position + 8)) + 1; // descriptor, color table, LZW code size
    } else {
      return frames;
    }
    skipSubBlocks();
  }
  return frames;
}

/** Counts the ANMF chunks of a WebP. A still image has none. */
function webpFrames(bytes: Uint8Array, limit: number): number {
  const at = view(bytes);
  let frames = 0;
  for (let position = 12; frames < limit && position + 8 <= bytes.length;) {
    if (at.getUint32(position) === 0x414e4d46) frames++;
    const size = at.getUint32(position + 4, true);
    position += 8 + size + (size & 1);
  }
  return frames;
}

/**
 * Counts the pages or frames of an encoded image, up to `limit`.
 *
 * @returns at least 1; also 1 for a truncated structure, and for AVIF, whose header lists its images
 */
export function countFrames(bytes: Uint8Array, format: ImageFormat, limit: number): number {
  const counters: Partial<Record<ImageFormat, typeof gifFrames>> = {
    tiff: tiffPages,
    gif: gifFrames,
    webp: webpFrames,
  };
  return unlessTruncated(() => Math.max(1, counters[format]?.(bytes, limit) ?? 1), 1);
}

/** Counts the scans of a JPEG, up to `limit`. Like libjpeg, skips stray bytes before the next marker. */
export function countScans(bytes: Uint8Array, limit: number): number {
  const at = view(bytes);
  const standsAlone = (marker: number): boolean => marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8);
  let [scans, position] = [0, bytes.indexOf(0xff, 2)];
  while (scans < limit && position >= 0) {
    while (bytes[position] === 0xff) position++;
    const marker = bytes[position++];
    if (marker === 0xd9) break; // end of the image
    if (marker === 0xda) scans++;
    // Stuffed 0xff bytes of coded data and standalone markers have no length field.
    const hasLength = marker !== 0 && !standsAlone(marker ?? 0) && position + 2 <= bytes.length;
    position = bytes.indexOf(0xff, position + (hasLength ? at.getUint16(position) : 0));
  }
  return scans;
}
