// Creates BMP files for tests.

/** Parts of a BMP. */
export interface BmpParts {
  readonly width: number;
  /** Negative: top row first. */
  readonly height: number;
  readonly bits: number;
  readonly pixels: readonly number[];
  readonly compression?: number;
  readonly palette?: readonly (readonly [blue: number, green: number, red: number])[];
  /** Follows a header of 40 bytes, or is part of a longer one. */
  readonly masks?: readonly number[];
  readonly header?: number;
  /** Bytes between palette and pixels. */
  readonly gap?: number;
}

/** Encodes a BMP. */
export function bmp({
  width,
  height,
  bits,
  pixels,
  compression = 0,
  palette = [],
  masks = [],
  header = 40,
  gap = 0,
}: BmpParts): Buffer {
  const core = header === 12;
  const masked = Math.max(14 + header, 14 + 40 + 4 * masks.length);
  const head = Buffer.alloc(core ? 26 : masked);
  head.write('BM', 'latin1');
  head.writeUInt32LE(header, 14);
  if (core) {
    for (const [i, value] of [width, height, 1, bits].entries()) head.writeUInt16LE(value, 18 + 2 * i);
  } else {
    head.writeInt32LE(width, 18);
    head.writeInt32LE(height, 22);
    head.writeUInt16LE(1, 26);
    head.writeUInt16LE(bits, 28);
    head.writeUInt32LE(compression, 30);
    head.writeUInt32LE(palette.length, 46);
    for (const [i, mask] of masks.entries()) head.writeUInt32LE(mask, 54 + 4 * i);
  }
  const colors = Buffer.from(palette.flatMap((color) => (core ? color : [...color, 0])));
  head.writeUInt32LE(head.length + colors.length + gap, 10);
  return Buffer.concat([head, colors, Buffer.alloc(gap, 0xee), Buffer.from(pixels)]);
}
