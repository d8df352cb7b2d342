// Reads images and masks of data sets from files.
import { readFile } from 'node:fs/promises';
import { decodeBmp, isBmp } from '../image/bmp.js';
import { DiadError } from '../errors.js';
import type { TestImage } from './datasets/index.js';
import { pillowResize } from '../image/pillow-resize.js';

const unreadable = (file: string, error: unknown): DiadError =>
  new DiadError(
    'ERR_DIAD_IMAGE_DECODE',
    `${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
    {
      cause: error,
    },
  );

/**
 * Reads the bytes of an image, for `Diad.score`.
 *
 * @throws DiadError ERR_DIAD_IMAGE_DECODE that names the file
 */
export async function readImage(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    throw unreadable(file, error);
  }
}

/**
 * A mask at its original size: defective pixels, and gray values (16-bit values reduced to the high byte).
 */
export interface Mask {
  readonly width: number;
  readonly height: number;
  /** 0 or 255. */
  readonly defective: Uint8Array;
  readonly gray: Uint8Array;
}

/**
 * Lossy formats blur edges, so a defective pixel needs at least half of white. In other formats any value
 * except 0 is a defect, because data sets use pixel values as indices of defect kinds.
 */
const lossy = (format: string | undefined): boolean =>
  format === 'jpeg' || format === 'webp' || format === 'heif';

async function readMask(file: string): Promise<Mask> {
  const { default: sharp } = await import('sharp');
  try {
    const bytes = await readFile(file);
    const bitmap = isBmp(bytes) ? await decodeBmp(bytes) : undefined;
    const image =
      bitmap === undefined
        ? sharp(bytes, { failOn: 'error', limitInputPixels: false, ignoreIcc: true })
        : sharp(bitmap.data, { raw: { width: bitmap.width, height: bitmap.height, channels: 3 } });
    const { depth, format } = await image.metadata();
    const deep = depth === 'ushort';
    const { data, info } = await image
      .removeAlpha()
      .toColorspace(deep ? 'rgb16' : 'srgb')
      .raw({ depth: deep ? 'ushort' : 'uchar' })
      .toBuffer({ resolveWithObject: true });
    const values = deep ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2) : data;
    const least = lossy(format) ? 128 : 1;
    const defective = new Uint8Array(info.width * info.height);
    const gray = new Uint8Array(defective.length);
    for (let i = 0; i < defective.length; i++) {
      const [r, g, b] = [0, 1, 2].map((c) => values[i * info.channels + Math.min(c, info.channels - 1)]!);
      if (Math.max(r!, g!, b!) >= least) defective[i] = 255;
      const value = r === g && g === b ? r! : 0.299 * r! + 0.587 * g! + 0.114 * b!;
      gray[i] = deep ? value >> 8 : Math.round(value);
    }
    return { width: info.width, height: info.height, defective, gray };
  } catch (error) {
    throw unreadable(file, error);
  }
}

/** Reads masks of equal size and returns their union. */
async function readMasks(files: readonly string[]): Promise<Mask> {
  const [first, ...others] = await Promise.all(files.map(readMask));
  if (first === undefined) throw new DiadError('ERR_DIAD_INTERNAL', 'Expected at least one mask');
  for (const [i, other] of others.entries()) {
    if (other.width !== first.width || other.height !== first.height) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `${files[i + 1]!} is ${other.width} x ${other.height} but ${files[0]!} is ` +
          `${first.width} x ${first.height}: masks of one image must have the same size`,
      );
    }
    for (let p = 0; p < first.gray.length; p++) {
      first.defective[p] = Math.max(first.defective[p]!, other.defective[p]!);
      first.gray[p] = Math.max(first.gray[p]!, other.gray[p]!);
    }
  }
  return first;
}

/** How a mask is resized to the size of the map. */
export type MaskRule =
  /** A pixel is defective if at least half of its area is. */
  | 'half'
  /**
   * A pixel is defective if any gray remains after the resize. A defective image without a mask is defective
   * everywhere. Rule of the published evaluation.
   */
  | 'any';

/**
 * Reads the mask of an image and resizes it to the size of the map.
 *
 * @param size - size of the scored image, pixels; the aspect ratio of masks must match it within 2 %
 * @returns 0 or 1, row-major [side, side]; undefined for a defective image without a mask (rule 'half' only)
 * @throws DiadError ERR_DIAD_IMAGE_DECODE, ERR_DIAD_INVALID_ARGUMENT; both name the file
 */
export async function maskOf(
  image: TestImage,
  size: { readonly width: number; readonly height: number },
  side: number,
  rule: MaskRule,
): Promise<Uint8Array | undefined> {
  if (!image.defective) return new Uint8Array(side * side);
  if (image.masks.length === 0) return rule === 'any' ? new Uint8Array(side * side).fill(1) : undefined;
  const { width, height, defective, gray } = await readMasks(image.masks);
  if (Math.abs(Math.log((width / height) * (size.height / size.width))) > 0.02) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${image.masks[0]!} is ${width} x ${height} but its image ${image.file} is ` +
        `${size.width} x ${size.height}: the aspect ratios differ`,
    );
  }
  const resized = pillowResize(rule === 'any' ? gray : defective, width, height, side, side);
  const least = rule === 'any' ? 1 : 128;
  return resized.map((value) => (value >= least ? 1 : 0));
}
