// From what callers hand in to an 8-bit frame, as the published reader (cv2.imread, color) gives it.
import type { SharpOptions } from 'sharp';
import { decodeBmp, isBmp, readBmpHeader } from './bmp.js';
import { DiadError } from './errors.js';
import { countFrames, countScans, isPlainYcbcr } from './image-structure.js';
import { integer, invalid } from './validate.js';

/** An 8-bit image, rows without gaps: gray (1), RGB (3) or RGBA (4, alpha is dropped). */
export interface RawFrame {
  readonly data: Uint8Array | Uint8ClampedArray;
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  readonly channels: 1 | 3 | 4;
}

/** Encoded bytes of a PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP of one page or frame (see `maxFrames` for more), or a raw frame. */
export type ImageInput = Uint8Array | ArrayBuffer | RawFrame;

/** A private copy of what the caller passed: later changes of the caller's memory do not matter. */
export type TakenImage =
  | { readonly kind: 'encoded'; readonly bytes: Uint8Array }
  | { readonly kind: 'frame'; readonly frame: RawFrame };

const LARGEST_SIDE = 2 ** 20;

/**
 * Validates and copies an image argument, synchronously.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for anything that is neither bytes nor a raw frame
 */
export function takeImage(image: ImageInput): TakenImage {
  if (image instanceof Uint8Array) return { kind: 'encoded', bytes: copyBytes(image) };
  if (image instanceof ArrayBuffer || image instanceof SharedArrayBuffer)
    return { kind: 'encoded', bytes: copyBuffer(image) };
  if (typeof image === 'string') {
    throw invalid('encoded bytes or a raw frame (read the file first: await readFile(path))', 'image', image);
  }
  if (typeof image !== 'object' || image === null || !('data' in image))
    throw invalid('encoded bytes or a raw frame', 'image', image);
  return { kind: 'frame', frame: takeFrame(image) };
}

function allocated(size: number): Uint8Array {
  try {
    return new Uint8Array(size);
  } catch (error) {
    throw new DiadError(
      'ERR_DIAD_OUT_OF_MEMORY',
      `There is not enough memory to copy an image of ${size} bytes`,
      { cause: error },
    );
  }
}

/** Not Uint8Array.from: that fails on a view whose buffer was transferred away. Such a view has 0 bytes. */
const copyBytes = (view: Uint8Array | Uint8ClampedArray): Uint8Array => {
  const bytes = allocated(view.length);
  if (view.length > 0) bytes.set(view);
  return bytes;
};

function copyBuffer(buffer: ArrayBuffer | SharedArrayBuffer): Uint8Array {
  let view: Uint8Array;
  try {
    view = new Uint8Array(buffer);
  } catch {
    throw invalid('bytes that are still there (the buffer was transferred or detached)', 'image', buffer);
  }
  return copyBytes(view);
}

function takeFrame(frame: RawFrame): RawFrame {
  const { data, width, height, channels } = frame;
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray))
    throw invalid('a Uint8Array', 'image.data', data);
  for (const [name, side] of [['image.width', width] as const, ['image.height', height] as const]) {
    if (!Number.isInteger(side) || side < 1 || side > LARGEST_SIDE)
      throw invalid(`an integer from 1 to ${LARGEST_SIDE}`, name, side);
  }
  if (![1, 3, 4].includes(channels)) throw invalid('1, 3 or 4', 'image.channels', channels);
  const expected = width * height * channels;
  if (data.length !== expected)
    throw invalid(`${expected} bytes (${width} x ${height} x ${channels})`, 'image.data', data.length);
  return { data: copyBytes(data), width, height, channels };
}

const ascii = (bytes: Uint8Array, start: number, end: number): string =>
  String.fromCharCode(...bytes.subarray(start, end));

/** Endings of the names of files that are read, in small letters. */
export const IMAGE_ENDINGS = ['png', 'jpg', 'jpeg', 'webp', 'tif', 'tiff', 'avif', 'gif', 'bmp'] as const;

const IMAGE_NAME = new RegExp(`\\.(${IMAGE_ENDINGS.join('|')})$`, 'i');

/** Whether a file is called like an image. */
export const isImageName = (file: string): boolean => IMAGE_NAME.test(file);

/** Formats that are read. */
export type ImageFormat = 'png' | 'jpeg' | 'webp' | 'tiff' | 'avif' | 'gif' | 'bmp';

/**
 * The format of encoded bytes by their first bytes; undefined for anything not accepted (SVG, PDF, HEIF with HEVC and the rest).
 */
export function sniffFormat(bytes: Uint8Array): ImageFormat | undefined {
  if (ascii(bytes, 0, 8) === '\x89PNG\r\n\x1a\n') return 'png';
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return 'jpeg';
  if (ascii(bytes, 0, 4) === 'RIFF' && ascii(bytes, 8, 12) === 'WEBP') return 'webp';
  if (['II*\0', 'MM\0*', 'II+\0', 'MM\0+'].includes(ascii(bytes, 0, 4))) return 'tiff';
  if (['GIF87a', 'GIF89a'].includes(ascii(bytes, 0, 6))) return 'gif';
  if (ascii(bytes, 4, 8) === 'ftyp' && ['avif', 'avis'].includes(ascii(bytes, 8, 12))) return 'avif';
  if (isBmp(bytes)) return 'bmp';
  return undefined;
}

/** What is refused before a pixel is decoded. */
export interface ImageLimits {
  /** Of width x height. */
  readonly maxPixels: number;
  /** Of pages or frames, of which only the first is read. */
  readonly maxFrames: number;
}

/** The largest limits there are: for an image that has been let in before. */
export const NO_LIMITS: ImageLimits = { maxPixels: Number.MAX_SAFE_INTEGER, maxFrames: 1_000_000 };

/** An encoder writes about ten at most; each costs a pass over the whole image. */
const MOST_SCANS = 100;

const tooLarge = (width: number, height: number, maxPixels: number): DiadError =>
  new DiadError(
    'ERR_DIAD_IMAGE_TOO_LARGE',
    `Expected at most ${maxPixels} pixels but the image has ${width} x ${height}; raise maxPixels (--max-pixels) if it is meant to be read`,
  );

/** An image of which the first page or frame alone would be looked at; nobody should learn that from a defect that was missed. */
const tooMany = (format: ImageFormat, maxFrames: number): DiadError =>
  new DiadError(
    'ERR_DIAD_IMAGE_TOO_LARGE',
    `Expected at most ${maxFrames} ${maxFrames === 1 ? 'page or frame' : 'pages or frames'} but the ${format.toUpperCase()} has more; ` +
      'hand them in one by one, or raise maxFrames to have the first of them read',
  );

/** Samples as sharp names them; others (of TIFFs) have no range of their own, and would become black or white. */
const READ_DEPTHS: readonly (string | undefined)[] = ['uchar', 'ushort'];

const READING: SharpOptions = {
  failOn: 'error',
  limitInputPixels: false,
  page: 0,
  pages: 1,
  ignoreIcc: true,
};

/** How libvips, its decoders and V8 say that an allocation failed. */
const NO_MEMORY = /out of memory|memory allocation|allocation failed|unable to allocate|insufficient memory/i;

function undecodable(cause: unknown): DiadError {
  const reason = cause instanceof Error ? cause.message.split('\n')[0]! : String(cause);
  if (NO_MEMORY.test(reason)) {
    return new DiadError(
      'ERR_DIAD_OUT_OF_MEMORY',
      `There is not enough memory to decode the image: ${reason}`,
      { cause },
    );
  }
  return new DiadError('ERR_DIAD_IMAGE_DECODE', `The image cannot be decoded: ${reason}`, { cause });
}

/**
 * What an encoded image's header says; no pixel is decoded, so that a caller can refuse by size at little cost.
 *
 * @param bytes - the encoded image
 * @param maxFrames - pages or frames it may have
 * @returns width and height in pixels, as stored (before the EXIF orientation), of the first frame or page
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE for more than `maxFrames`
 */
export async function inspectImage(
  bytes: Uint8Array,
  maxFrames = 1,
): Promise<{ format: ImageFormat; width: number; height: number }> {
  if (!(bytes instanceof Uint8Array)) throw invalid('a Buffer or Uint8Array', 'bytes', bytes);
  integer(maxFrames, 'maxFrames', 1, NO_LIMITS.maxFrames, 1);
  if (bytes.length === 0)
    throw new DiadError('ERR_DIAD_IMAGE_DECODE', 'Expected an encoded image but received 0 bytes');
  const format = sniffFormat(bytes);
  if (format === undefined) {
    const first = Buffer.from(bytes.subarray(0, 8)).toString('hex');
    throw new DiadError(
      'ERR_DIAD_IMAGE_DECODE',
      `Expected PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP but the bytes begin with ${first}`,
    );
  }
  if (format === 'bmp') {
    try {
      const { width, height } = readBmpHeader(bytes);
      return { format, width, height };
    } catch (error) {
      throw undecodable(error);
    }
  }
  if (countFrames(bytes, format, maxFrames + 1) > maxFrames) throw tooMany(format, maxFrames);
  if (format === 'tiff' && isPlainYcbcr(bytes)) {
    throw undecodable(
      new Error('its samples are YCbCr without JPEG compression; write it as RGB, or with JPEG compression'),
    );
  }
  if (format === 'jpeg' && countScans(bytes, MOST_SCANS + 1) > MOST_SCANS) {
    throw undecodable(new Error(`it has more than ${MOST_SCANS} scans`));
  }
  const { default: sharp } = await import('sharp');
  const header = await sharp(bytes, READING)
    .metadata()
    .catch((error: unknown) => {
      throw undecodable(error);
    });
  if ((header.pages ?? 1) > maxFrames) throw tooMany(format, maxFrames);
  if (!READ_DEPTHS.includes(header.depth))
    throw undecodable(new Error(`its samples are of the type ${header.depth}; 8 and 16 bits are read`));
  return { format, width: header.width, height: header.pageHeight ?? header.height };
}

/**
 * Decodes a taken image.
 *
 * EXIF orientation applied, alpha dropped, 16 bits cut to the high byte, embedded color profiles ignored, palettes expanded, CMYK
 * converted, the first frame or page of several.
 *
 * @param image - from {@link takeImage}
 * @param limits - checked on header and structure before any pixel is decoded
 * @returns a frame of 3 channels (those of raw frames as they came)
 * @throws DiadError ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE
 */
export async function decodeImage(
  image: TakenImage,
  { maxPixels, maxFrames }: ImageLimits,
): Promise<RawFrame> {
  if (image.kind === 'frame') {
    const { width, height } = image.frame;
    if (width * height > maxPixels) throw tooLarge(width, height, maxPixels);
    return image.frame;
  }
  const { bytes } = image;
  const { format, width, height } = await inspectImage(bytes, maxFrames);
  if (width * height > maxPixels) throw tooLarge(width, height, maxPixels);
  try {
    if (format === 'bmp') return { ...(await decodeBmp(bytes)), channels: 3 };
    const { default: sharp } = await import('sharp');
    const { data, info } = await sharp(bytes, READING)
      .autoOrient()
      .removeAlpha()
      .toColorspace('srgb')
      .raw()
      .toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height, channels: info.channels === 1 ? 1 : 3 };
  } catch (error) {
    throw undecodable(error);
  }
}
