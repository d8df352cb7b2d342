// Bit-exact port of Pillow's antialiased bilinear resize for 8-bit gray images, which other tools use for
// masks.

/** Bits of the fixed-point coefficients, as in Pillow for 8-bit images. */
const PRECISION = 22;

interface Taps {
  readonly first: number;
  readonly weights: Int32Array;
}

/** Computes triangle-filter taps for each output pixel; the filter is widened by the scale when shrinking. */
function triangleTaps(from: number, to: number): Taps[] {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const raw = Array.from({ length: end - first }, (__, x) =>
      Math.max(0, 1 - Math.abs((x + first - center + 0.5) / support)),
    );
    const sum = raw.reduce((total, weight) => total + weight, 0);
    return {
      first,
      weights: Int32Array.from(raw, (weight) => Math.trunc(0.5 + (weight / sum) * 2 ** PRECISION)),
    };
  });
}

const HALF = 2 ** (PRECISION - 1);
const clipped = (sum: number): number => Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION)));

/**
 * Resizes a gray image: horizontal pass, then vertical pass, each rounded to 8 bits.
 *
 * @param data - row-major [height, width], 0 to 255
 * @returns row-major [toHeight, toWidth]
 */
export function pillowResize(
  data: Uint8Array,
  width: number,
  height: number,
  toWidth: number,
  toHeight: number,
): Uint8Array {
  let rows = data;
  if (toWidth !== width) {
    const taps = triangleTaps(width, toWidth);
    rows = new Uint8Array(height * toWidth);
    for (let y = 0; y < height; y++) {
      for (const [x, { first, weights }] of taps.entries()) {
        let sum = HALF;
        for (let k = 0; k < weights.length; k++) sum += weights[k]! * data[y * width + first + k]!;
        rows[y * toWidth + x] = clipped(sum);
      }
    }
  }
  if (toHeight === height) return rows === data ? data.slice() : rows;
  const taps = triangleTaps(height, toHeight);
  const result = new Uint8Array(toHeight * toWidth);
  for (const [y, { first, weights }] of taps.entries()) {
    for (let x = 0; x < toWidth; x++) {
      let sum = HALF;
      for (let k = 0; k < weights.length; k++) sum += weights[k]! * rows[(first + k) * toWidth + x]!;
      result[y * toWidth + x] = clipped(sum);
    }
  }
  return result;
}
