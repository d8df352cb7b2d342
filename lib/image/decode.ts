// Decodes input images to 8-bit frames that match the published reader (cv2.imread in color).
import type { SharpOptions } from 'sharp';
import { decodeBmp, isBmp, readBmpHeader } from './bmp.js';
import { DiadError } from '../errors.js';
import { countFrames, countScans, isPlainYcbcr } from './container-guards.js';
import { integer, invalid } from '../validate.js';
import type { RawFrame, ImageInput, TakenImage, ImageFormat, ImageLimits } from './types.js';

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
    throw new DiadError('ERR_DIAD_OUT_OF_MEMORY', `Not enough memory to copy an image of ${size} bytes`, {
      cause: error,
    });
  }
}

/** Copies a view. Unlike Uint8Array.from, accepts a view with a detached buffer, which has 0 bytes. */
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
    throw invalid('an attached buffer (this one was transferred or detached)', 'image', buffer);
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

/** Supported file extensions (lower case). */
export const IMAGE_ENDINGS = ['png', 'jpg', 'jpeg', 'webp', 'tif', 'tiff', 'avif', 'gif', 'bmp'] as const;

const IMAGE_NAME = new RegExp(`\\.(${IMAGE_ENDINGS.join('|')})$`, 'i');

/** Checks whether a file name has the extension of an image. */
export const isImageName = (file: string): boolean => IMAGE_NAME.test(file);

/**
 * Detects the format from the first bytes; undefined for unsupported formats (SVG, PDF, HEIF with HEVC, ...).
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

/** No limits, for an image that was already admitted. */
export const NO_LIMITS: ImageLimits = { maxPixels: Number.MAX_SAFE_INTEGER, maxFrames: 1_000_000 };

/** Most scans of a JPEG. Encoders write about ten at most, and each costs a pass over the whole image. */
const MOST_SCANS = 100;

const tooLarge = (width: number, height: number, maxPixels: number): DiadError =>
  new DiadError(
    'ERR_DIAD_IMAGE_TOO_LARGE',
    `Expected at most ${maxPixels} pixels but the image has ${width} x ${height}; ` +
      'raise maxPixels (--max-pixels) to read it anyway',
  );

/** Rejects multi-frame images: silently scoring only the first frame could hide a defect. */
const tooMany = (format: ImageFormat, maxFrames: number): DiadError =>
  new DiadError(
    'ERR_DIAD_IMAGE_TOO_LARGE',
    `Expected at most ${maxFrames} ${maxFrames === 1 ? 'page or frame' : 'pages or frames'} ` +
      `but the ${format.toUpperCase()} has more; ` +
      'submit them one by one, or raise maxFrames to read only the first',
  );

/** Supported sample types, as named by sharp. Others (in TIFFs) have no defined range. */
const READ_DEPTHS: readonly (string | undefined)[] = ['uchar', 'ushort'];

const READING: SharpOptions = {
  failOn: 'error',
  limitInputPixels: false,
  page: 0,
  pages: 1,
  ignoreIcc: true,
};

/** Messages of libvips, its decoders and V8 for a failed allocation. */
const NO_MEMORY = /out of memory|memory allocation|allocation failed|unable to allocate|insufficient memory/i;

function undecodable(cause: unknown): DiadError {
  const reason = cause instanceof Error ? cause.message.split('\n')[0]! : String(cause);
  if (NO_MEMORY.test(reason)) {
    return new DiadError('ERR_DIAD_OUT_OF_MEMORY', `Not enough memory to decode the image: ${reason}`, {
      cause,
    });
  }
  return new DiadError('ERR_DIAD_IMAGE_DECODE', `The image cannot be decoded: ${reason}`, { cause });
}

/**
 * Reads the header of an encoded image without decoding pixels, so that large images can be rejected cheaply.
 *
 * @param bytes - the encoded image
 * @param maxFrames - most pages or frames
 * @returns width and height of the first frame or page in pixels, as stored (before the EXIF orientation)
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE for more than
 *   `maxFrames`
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
      new Error('YCbCr without JPEG compression is not supported; write RGB, or use JPEG compression'),
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
    throw undecodable(new Error(`samples of type ${header.depth} are not supported, only 8 and 16 bits`));
  return { format, width: header.width, height: header.pageHeight ?? header.height };
}

/**
 * Decodes an image. Applies the EXIF orientation, drops alpha, reduces 16 bits to the high byte, ignores
 * embedded color profiles, expands palettes, converts CMYK, and reads only the first frame or page.
 *
 * @param image - from {@link takeImage}
 * @param limits - checked on header and structure before any pixel is decoded
 * @returns a frame with 3 channels; gray images and raw frames keep their channels
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
