// The anomaly map of an image and its rendering as a heat map or gray image.
import type { Thresholds } from '../calibration/calibration.js';
import { DiadError } from '../errors.js';
import { heatAlpha, heatColor } from './heat-color.js';
import { decodeImage, NO_LIMITS } from '../image/decode.js';
import type { RawFrame, TakenImage } from '../image/types.js';
import { findRegions, type Region, type RegionsOptions } from './regions.js';
import { inTurns } from '../async/yielding-loop.js';
import { number, optionsObject } from '../validate.js';

export { heatColor };

/** Options of {@link AnomalyMap.toHeatmap}. */
export interface HeatmapOptions {
  /** Value drawn fully transparent. Default 0. */
  readonly min?: number;
  /**
   * Value drawn in the strongest color. Default: twice the threshold of a calibrated bundle, else 1. Colors
   * are never scaled to the extremes of one image, so heat maps of different images are comparable.
   */
  readonly max?: number;
  /** Opacity of the strongest color over the image, 0 to 1. Default 0.75. */
  readonly opacity?: number;
}

/**
 * Resizes a map bilinearly, with aligned pixel centers and repeated edges. Yields to the event loop between
 * blocks of rows.
 *
 * @param data - row-major [height, width]
 * @returns row-major [toHeight, toWidth]
 */
export async function resizeMap(
  data: Float32Array,
  width: number,
  height: number,
  toWidth: number,
  toHeight: number,
): Promise<Float32Array> {
  if (width === toWidth && height === toHeight) return data.slice();
  const result = new Float32Array(toWidth * toHeight);
  const resizeRows = rowsOfResized(data, width, height, toWidth, toHeight);
  await inTurns(toHeight, toWidth, (first, end) => {
    resizeRows(first, end, result.subarray(first * toWidth, end * toWidth));
  });
  return result;
}

/** Returns a function that writes rows `first` to `end` (exclusive) of the resized map into `into`. */
function rowsOfResized(
  data: Float32Array,
  width: number,
  height: number,
  toWidth: number,
  toHeight: number,
): (first: number, end: number, into: Float32Array) => void {
  const columns = taps(width, toWidth);
  const rows = taps(height, toHeight);
  return (first, end, into) => {
    for (let y = first, at = 0; y < end; y++) {
      const [upper, lower, down] = [rows.low[y]! * width, rows.high[y]! * width, rows.share[y]!];
      for (let x = 0; x < toWidth; x++, at++) {
        const [left, right, across] = [columns.low[x]!, columns.high[x]!, columns.share[x]!];
        const above = data[upper + left]! * (1 - across) + data[upper + right]! * across;
        const below = data[lower + left]! * (1 - across) + data[lower + right]! * across;
        into[at] = above * (1 - down) + below * down;
      }
    }
  };
}

function taps(from: number, to: number): { low: Int32Array; high: Int32Array; share: Float64Array } {
  const [low, high, share] = [new Int32Array(to), new Int32Array(to), new Float64Array(to)];
  for (let i = 0; i < to; i++) {
    const position = Math.min(from - 1, Math.max(0, ((i + 0.5) * from) / to - 0.5));
    low[i] = Math.floor(position);
    high[i] = Math.min(from - 1, low[i]! + 1);
    share[i] = position - low[i]!;
  }
  return { low, high, share };
}

/**
 * Anomaly per pixel: summed feature distances, blurred. 0 means identical to the reconstruction; the maximum
 * is 6.
 */
export class AnomalyMap {
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** Row-major, width x height. */
  readonly data: Float32Array;
  /** Values above it belong to a defect. Undefined when no pixel threshold applies to this result. */
  readonly pixelThreshold: number | undefined;
  readonly #image: TakenImage;
  readonly #imageSize: { readonly width: number; readonly height: number };
  readonly #threshold: number | undefined;

  /** @internal */
  constructor(
    width: number,
    height: number,
    data: Float32Array,
    image: TakenImage,
    imageSize: { readonly width: number; readonly height: number },
    limits: Thresholds | undefined,
  ) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.#image = image;
    this.#imageSize = imageSize;
    this.#threshold = limits?.threshold;
    this.pixelThreshold = limits?.pixelThreshold;
  }

  /**
   * Finds the regions of the map above a threshold, in pixels of the original image, largest first. Maps of
   * up to 4,194,304 pixels whose outlines have up to 65,536 points in total are processed at full resolution.
   * Larger maps, or maps with more points (a threshold within the noise), are halved until they fit; each
   * pixel of the halved map is the maximum of four.
   *
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, also when no threshold is given and the bundle has no pixel
   *   threshold
   */
  regions(options?: RegionsOptions): readonly Region[] {
    const given = optionsObject(options, 'region options', ['threshold', 'minArea']);
    if (given.threshold === undefined && this.pixelThreshold === undefined) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        'Expected a threshold for the regions because no pixel threshold applies to this result: ' +
          'pass { threshold }, or run `diad calibrate` if the bundle has none',
      );
    }
    const threshold = number(given.threshold, 'threshold', -1e6, 1e6, this.pixelThreshold ?? 0);
    const minArea = number(given.minArea, 'minArea', 0, Number.MAX_SAFE_INTEGER, 0);
    return findRegions(this, this.#imageSize, threshold).filter(({ area }) => area >= minArea);
  }

  /**
   * Renders the map as colors over the image, at the size of the image.
   *
   * @returns PNG bytes
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT
   */
  async toHeatmap(options?: HeatmapOptions): Promise<Buffer> {
    const given = optionsObject(options, 'heat map options', ['min', 'max', 'opacity']);
    const min = number(given.min, 'min', -1e6, 1e6, 0);
    const byDefault = this.#threshold === undefined ? 1 : 2 * this.#threshold;
    const max = number(given.max, 'max', min + 1e-9, 1e6, Math.max(byDefault, min + 1e-9));
    const opacity = number(given.opacity, 'opacity', 0, 1, 0.75);
    const frame = await decodeImage(this.#image, NO_LIMITS);
    return encodePng(await this.#over(frame, min, max, opacity));
  }

  /**
   * Renders the map as a gray image, black at `min` (default 0) and white at `max` (default as in
   * `toHeatmap`).
   *
   * @returns PNG bytes
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT
   */
  async toGray(options?: Omit<HeatmapOptions, 'opacity'>): Promise<Buffer> {
    const given = optionsObject(options, 'gray map options', ['min', 'max']);
    const min = number(given.min, 'min', -1e6, 1e6, 0);
    const byDefault = this.#threshold === undefined ? 1 : 2 * this.#threshold;
    const max = number(given.max, 'max', min + 1e-9, 1e6, Math.max(byDefault, min + 1e-9));
    const data = new Uint8Array(this.data.length);
    await inTurns(this.height, this.width, (first, end) => {
      for (let i = first * this.width; i < end * this.width; i++)
        data[i] = Math.round(255 * strengthOf(this.data[i]!, min, max));
    });
    return encodePng({ data, width: this.width, height: this.height, channels: 1 });
  }

  /**
   * Returns only the size: JSON.stringify would write one line per value. For values: `Array.from(map.data)`.
   */
  toJSON(): { readonly width: number; readonly height: number } {
    return { width: this.width, height: this.height };
  }

  /** Blends the map's colors over an image. */
  async #over(
    { data: under, width, height, channels }: RawFrame,
    min: number,
    max: number,
    opacity: number,
  ): Promise<RawFrame> {
    const data = new Uint8Array(width * height * 3);
    const resizeRows = rowsOfResized(this.data, this.width, this.height, width, height);
    await inTurns(height, width, (first, end) => {
      const values = new Float32Array((end - first) * width);
      resizeRows(first, end, values);
      for (let i = 0, at = first * width; i < values.length; i++, at++) {
        const place = 4 * Math.round((LEVELS - 1) * strengthOf(values[i]!, min, max));
        const alpha = opacity * COLORS[place + 3]!;
        for (let c = 0; c < 3; c++) {
          data[3 * at + c] = Math.round(
            under[at * channels + (channels === 1 ? 0 : c)]! * (1 - alpha) + COLORS[place + c]! * alpha,
          );
        }
      }
    });
    return { data, width, height, channels: 3 };
  }
}

/** Returns the position of a value between min and max, clamped to 0..1; NaN gives 0. */
function strengthOf(value: number, min: number, max: number): number {
  const strength = (value - min) / (max - min);
  return strength > 0 ? Math.min(1, strength) : 0;
}

/** Number of quantized strengths: adjacent colors differ by less than half of one of 255 levels. */
const LEVELS = 4096;

/** Red, green, blue (0..255) and alpha (0..1) of each strength. */
const COLORS = Float32Array.from(
  Array.from({ length: LEVELS }, (_, i) => [
    ...heatColor(i / (LEVELS - 1)),
    heatAlpha(i / (LEVELS - 1)),
  ]).flat(),
);

/** Encodes a frame as PNG. */
export async function encodePng(frame: RawFrame): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  const { data, width, height, channels } = frame;
  return sharp(data, { raw: { width, height, channels } }).png().toBuffer();
}
