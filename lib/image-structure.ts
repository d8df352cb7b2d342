// How many images an encoded file holds, in how many scans, of which samples, from its structure alone: no decoder has seen the bytes yet.
import type { ImageFormat } from './image.js';

/** For reading numbers. */
export const view = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** What a reader finds, or what stands for it where the structure breaks off: what such an image is worth is the decoder's to say. */
function unlessCutShort<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof RangeError) return otherwise;
    throw error;
  }
}

/** How numbers of a TIFF or BigTIFF are read, and the offset of its first directory. */
function openTiff(bytes: Uint8Array) {
  const at = view(bytes);
  const little = bytes[0] === 0x49;
  const big = at.getUint16(2, little) === 43;
  const offset = (position: number): number =>
    big ? Number(at.getBigUint64(position, little)) : at.getUint32(position, little);
  const entries = (directory: number): number =>
    big ? Number(at.getBigUint64(directory, little)) : at.getUint16(directory, little);
  // Bytes of a directory's count, of an entry, and from an entry's start to its value.
  const [countSize, entrySize, valueAt] = big ? [8, 20, 12] : [2, 12, 8];
  const short = (position: number): number => at.getUint16(position, little);
  return { offset, entries, short, countSize, entrySize, valueAt, first: offset(big ? 8 : 4) };
}

/** Directories of a TIFF or BigTIFF: a chain of offsets, each to a directory of one page. A chain that bites its tail reaches any limit. */
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

/** Whether a TIFF's first page has brightness and color differences for samples, as JPEGs do, without being one: libvips takes them for RGB. */
export function isPlainYcbcr(bytes: Uint8Array): boolean {
  return unlessCutShort(() => {
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

/** Image blocks of a GIF. */
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
      position++; // its label
    } else if (block === 0x2c) {
      frames++;
      position += 9 + table(at.getUint8(position + 8)) + 1; // descriptor, colors, size of a code
    } else {
      return frames;
    }
    skipSubBlocks();
  }
  return frames;
}

/** ANMF chunks of a WebP; a still one has none. */
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
 * Pages or frames of an encoded image, counted up to `limit`.
 *
 * @returns at least 1; 1, too, for a structure that breaks off, and for AVIF, whose images its own header lists
 */
export function countFrames(bytes: Uint8Array, format: ImageFormat, limit: number): number {
  const counters: Partial<Record<ImageFormat, typeof gifFrames>> = {
    tiff: tiffPages,
    gif: gifFrames,
    webp: webpFrames,
  };
  return unlessCutShort(() => Math.max(1, counters[format]?.(bytes, limit) ?? 1), 1);
}

/** Scans of a JPEG, counted up to `limit`. It finds the next marker as libjpeg does, across bytes that belong to nothing. */
export function countScans(bytes: Uint8Array, limit: number): number {
  const at = view(bytes);
  const standsAlone = (marker: number): boolean => marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8);
  let [scans, position] = [0, bytes.indexOf(0xff, 2)];
  while (scans < limit && position >= 0) {
    while (bytes[position] === 0xff) position++;
    const marker = bytes[position++];
    if (marker === 0xd9) break; // end of the image
    if (marker === 0xda) scans++;
    // A stuffed 0xff of the coded data and some markers have no length behind them.
    const hasLength = marker !== 0 && !standsAlone(marker ?? 0) && position + 2 <= bytes.length;
    position = bytes.indexOf(0xff, position + (hasLength ? at.getUint16(position) : 0));
  }
  return scans;
}
