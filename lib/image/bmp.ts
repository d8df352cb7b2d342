// Decoder for BMP files, which machine-vision cameras write and sharp cannot read. Matches cv2.imread in
// color.
import { setImmediate } from 'node:timers/promises';
import { view } from './container-guards.js';

/** Parsed BMP headers. */
interface Header {
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** Whether the first row in the file is the top row. */
  readonly topDown: boolean;
  readonly bits: number;
  readonly compression: number;
  /** Byte offset of the pixel data. */
  readonly offset: number;
  /** Blue, green, red for each of 256 indices; missing entries are black. Only for up to 8 bits per pixel. */
  readonly palette: Uint8Array;
  /** Bit masks of red, green and blue. Only for 16 and 32 bits per pixel. */
  readonly masks: readonly [red: number, green: number, blue: number];
}

const FILE_HEADER = 14;
const CORE_HEADER = 12;
const INFO_HEADER = 40;
/** Sizes of OS/2 BITMAPCOREHEADER, BITMAPINFOHEADER, V2 and V3 (with masks), V4 and V5. */
const HEADER_SIZES: ReadonlySet<number> = new Set([CORE_HEADER, INFO_HEADER, 52, 56, 108, 124]);
const [PLAIN, RLE8, RLE4, BIT_FIELDS, ALPHA_BIT_FIELDS] = [0, 1, 2, 3, 6];
/** Supported bits per pixel for each compression. */
const BITS: Readonly<Record<number, readonly number[]>> = {
  [PLAIN]: [1, 4, 8, 16, 24, 32],
  [RLE8]: [8],
  [RLE4]: [4],
  [BIT_FIELDS]: [16, 32],
  [ALPHA_BIT_FIELDS]: [16, 32],
};
const LARGEST_SIDE = 2 ** 20;
const MASKS_555 = [0x7c00, 0x03e0, 0x001f] as const;
const MASKS_888 = [0xff0000, 0xff00, 0xff] as const;

/** Pixels decoded before yielding to the event loop. */
const PIXELS_A_TURN = 1 << 20;

/** Checks for a BMP signature and a known header size; the two-letter signature is not specific enough. */
export function isBmp(bytes: Uint8Array): boolean {
  return (
    bytes.length >= FILE_HEADER + CORE_HEADER &&
    bytes[0] === 0x42 &&
    bytes[1] === 0x4d &&
    HEADER_SIZES.has(view(bytes).getUint32(14, true))
  );
}

/**
 * Reads the headers of a BMP without decoding pixels.
 *
 * @throws Error or RangeError that describes the fault
 */
export function readBmpHeader(bytes: Uint8Array): Header {
  const at = view(bytes);
  const size = at.getUint32(14, true);
  const core = size === CORE_HEADER;
  const width = core ? at.getUint16(18, true) : at.getInt32(18, true);
  const signedHeight = core ? at.getUint16(20, true) : at.getInt32(22, true);
  const bits = at.getUint16(core ? 24 : 28, true);
  const compression = core ? PLAIN : at.getUint32(30, true);
  const height = Math.abs(signedHeight);
  if (width < 1 || height < 1 || width > LARGEST_SIDE || height > LARGEST_SIDE)
    throw new Error(`the size is ${width} x ${signedHeight} pixels`);
  if (BITS[compression]?.includes(bits) !== true)
    throw new Error(`${bits} bits per pixel with compression ${compression} are not supported`);
  const topDown = signedHeight < 0;
  if (topDown && [RLE8, RLE4].includes(compression)) throw new Error('top-down rows cannot be compressed');
  const fields = compression === BIT_FIELDS || compression === ALPHA_BIT_FIELDS;
  const offset = at.getUint32(10, true);
  const named = core ? 0 : at.getUint32(46, true); // 0 means all possible colors
  const colors = Math.min(1 << bits, named || 1 << bits);
  return {
    width,
    height,
    topDown,
    bits,
    compression,
    offset,
    palette: bits <= 8 ? readPalette(bytes, FILE_HEADER + size, core ? 3 : 4, colors) : new Uint8Array(),
    masks: fields
      ? [at.getUint32(54, true), at.getUint32(58, true), at.getUint32(62, true)]
      : bits === 16
        ? MASKS_555
        : MASKS_888,
  };
}

/** Reads palette entries of `entry` bytes: blue, green, red and, in 4-byte entries, an unused byte. */
function readPalette(bytes: Uint8Array, start: number, entry: number, count: number): Uint8Array {
  if (start + entry * count > bytes.length) throw new Error('the palette is truncated');
  const palette = new Uint8Array(3 * 256);
  for (let i = 0; i < count; i++)
    palette.set(bytes.subarray(start + entry * i, start + entry * i + 3), 3 * i);
  return palette;
}

/** Decodes run-length encoded rows into color indices, bottom row first. Pixels without a run get index 0. */
function expandRuns(bytes: Uint8Array, { width, height, compression, offset }: Header): Uint8Array {
  const indices = new Uint8Array(width * height);
  const nibbles = compression === RLE4;
  let [position, x, y] = [offset, 0, 0];
  const next = (): number => {
    const byte = bytes[position++];
    if (byte === undefined) throw new Error('the pixel data is truncated');
    return byte;
  };
  const place = (count: number): number => {
    if (y >= height || x + count > width) throw new Error('a run extends past the end of its row');
    const start = y * width + x;
    x += count;
    return start;
  };
  for (;;) {
    const [count, value] = [next(), next()];
    if (count > 0) {
      const start = place(count);
      if (!nibbles) indices.fill(value, start, start + count);
      else for (let i = 0; i < count; i++) indices[start + i] = i % 2 === 0 ? value >> 4 : value & 15;
    } else if (value === 0) {
      [x, y] = [0, y + 1];
    } else if (value === 1) {
      return indices;
    } else if (value === 2) {
      const [right, up] = [next(), next()];
      [x, y] = [x + right, y + up];
    } else {
      const start = place(value);
      const begin = position;
      let byte = 0;
      for (let i = 0; i < value; i++) {
        if (!nibbles || i % 2 === 0) byte = next();
        indices[start + i] = !nibbles ? byte : i % 2 === 0 ? byte >> 4 : byte & 15;
      }
      position += (position - begin) % 2; // absolute runs are padded to an even number of bytes
    }
  }
}

type ReadPixel = (row: number, x: number, rgb: Uint8Array, to: number) => void;

function byPalette({ palette }: Header, indexAt: (row: number, x: number) => number): ReadPixel {
  return (row, x, rgb, to) => {
    const entry = 3 * indexAt(row, x);
    rgb[to] = palette[entry + 2]!;
    rgb[to + 1] = palette[entry + 1]!;
    rgb[to + 2] = palette[entry]!;
  };
}

/** Returns a function that extracts one channel by its mask and scales it to 8 bits. */
function field(mask: number, bits: number): (pixel: number) => number {
  if (mask === 0) return () => 0;
  const shift = 31 - Math.clz32(mask & -mask);
  const most = mask >>> shift;
  // Channels of 15- and 16-bit pixels are shifted, not stretched, as in cv2: white becomes 248 (or 252).
  const moved = bits === 16 && (most === 31 || most === 63);
  return (pixel) => {
    const value = (pixel & mask) >>> shift;
    return moved ? value * (256 / (most + 1)) : Math.trunc((value * 255) / most);
  };
}

/** Selects the pixel reader for a format; `row` is the byte offset where the row begins. */
function pixelReader(bytes: Uint8Array, header: Header): ReadPixel {
  const { bits, masks } = header;
  if (bits === 8) return byPalette(header, (row, x) => bytes[row + x]!);
  if (bits === 4)
    return byPalette(header, (row, x) =>
      x % 2 === 0 ? bytes[row + (x >> 1)]! >> 4 : bytes[row + (x >> 1)]! & 15,
    );
  if (bits === 1) return byPalette(header, (row, x) => (bytes[row + (x >> 3)]! >> (7 - (x & 7))) & 1);
  if (bits === 24 || (bits === 32 && masks === MASKS_888)) {
    const size = bits / 8;
    return (row, x, rgb, to) => {
      const from = row + x * size;
      rgb[to] = bytes[from + 2]!;
      rgb[to + 1] = bytes[from + 1]!;
      rgb[to + 2] = bytes[from]!;
    };
  }
  const at = view(bytes);
  const pixelAt = (from: number): number =>
    bits === 16 ? at.getUint16(from, true) : at.getUint32(from, true);
  const fields = masks.map((mask) => field(mask, bits));
  return (row, x, rgb, to) => {
    const pixel = pixelAt(row + x * (bits / 8));
    for (let channel = 0; channel < 3; channel++) rgb[to + channel] = fields[channel]!(pixel);
  };
}

/**
 * Decodes a BMP with 1, 4 or 8 bits and a palette (optionally run-length encoded), or with 16, 24 or 32 bits.
 * Drops alpha. Yields to the event loop between blocks of rows.
 *
 * @returns RGB, top row first, 3 bytes per pixel
 * @throws Error or RangeError that describes the fault
 */
export async function decodeBmp(
  bytes: Uint8Array,
): Promise<{ data: Uint8Array; width: number; height: number }> {
  const header = readBmpHeader(bytes);
  const { width, height, topDown, bits, compression, offset } = header;
  const coded = compression === RLE8 || compression === RLE4;
  const stride = coded ? width : 4 * Math.ceil((width * bits) / 32);
  if (!coded && offset + stride * (height - 1) + Math.ceil((width * bits) / 8) > bytes.length)
    throw new Error('the pixel data is truncated');
  const indices = coded ? expandRuns(bytes, header) : bytes;
  const read = coded ? byPalette(header, (row, x) => indices[row + x]!) : pixelReader(bytes, header);
  const data = new Uint8Array(3 * width * height);
  const rowsATurn = Math.max(1, Math.floor(PIXELS_A_TURN / width));
  for (let y = 0; y < height; y++) {
    const row = (coded ? 0 : offset) + stride * (topDown ? y : height - 1 - y);
    for (let x = 0; x < width; x++) read(row, x, data, 3 * (y * width + x));
    if (y % rowsATurn === rowsATurn - 1) await setImmediate();
  }
  return { data, width, height };
}
