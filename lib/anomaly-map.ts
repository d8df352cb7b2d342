// The anomaly map of a picture, and pictures of it.
import type { Thresholds } from './calibration.js';
import { DiadError } from './errors.js';
import { heatAlpha, heatColour } from './heat-colour.js';
import { decodeImage, NO_LIMITS, type RawFrame, type TakenImage } from './image.js';
import { findRegions, type Region, type RegionsOptions } from './regions.js';
import { number, optionsObject } from './validate.js';

export { heatColour };

/** Options of {@link AnomalyMap.toHeatmap}. */
export interface HeatmapOptions {
  /** Value drawn as nothing. Default 0. */
  readonly min?: number;
  /**
   * Value drawn in the strongest colour. Default: twice the threshold of a calibrated bundle, else 1. Colours are never scaled to a picture's
   * own extremes, so that two heat maps can be compared.
   */
  readonly max?: number;
  /** Opacity of the strongest colour over the picture, 0 to 1. Default 0.75. */
  readonly opacity?: number;
}

/**
 * Bilinear resize of a map, pixel centres aligned, edges repeated.
 *
 * @param data - row-major [height, width]
 * @returns row-major [toHeight, toWidth]
 */
export function resizeMap(data: Float32Array, width: number, height: number, toWidth: number, toHeight: number): Float32Array {
  if (width === toWidth && height === toHeight) return data.slice();
  const result = new Float32Array(toWidth * toHeight);
  const columns = taps(width, toWidth);
  const rows = taps(height, toHeight);
  for (let y = 0; y < toHeight; y++) {
    const [upper, lower, down] = [rows.low[y]! * width, rows.high[y]! * width, rows.share[y]!];
    for (let x = 0; x < toWidth; x++) {
      const [left, right, across] = [columns.low[x]!, columns.high[x]!, columns.share[x]!];
      const above = data[upper + left]! * (1 - across) + data[upper + right]! * across;
      const below = data[lower + left]! * (1 - across) + data[lower + right]! * across;
      result[y * toWidth + x] = above * (1 - down) + below * down;
    }
  }
  return result;
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

/** How anomalous each pixel is: summed feature distances, blurred; 0 is "as reconstructed", at most 6. */
export class AnomalyMap {
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** Row-major, width x height. */
  readonly data: Float32Array;
  readonly #picture: TakenImage;
  readonly #pictureSize: { readonly width: number; readonly height: number };
  readonly #threshold: number | undefined;
  readonly #pixelThreshold: number | undefined;

  /** @internal */
  constructor(
    width: number,
    height: number,
    data: Float32Array,
    picture: TakenImage,
    pictureSize: { readonly width: number; readonly height: number },
    limits: Thresholds | undefined,
  ) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.#picture = picture;
    this.#pictureSize = pictureSize;
    this.#threshold = limits?.threshold;
    this.#pixelThreshold = limits?.pixelThreshold;
  }

  /**
   * Where the map lies above a threshold, as regions in the picture's own pixels, the largest first.
   *
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, also when neither a threshold is given nor the bundle calibrated for pixels
   */
  regions(options?: RegionsOptions): readonly Region[] {
    const given = optionsObject(options, 'region options', ['threshold', 'minArea']);
    if (given.threshold === undefined && this.#pixelThreshold === undefined) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        'Expected a threshold for the regions, since the bundle has no pixel threshold: pass { threshold }, or run `diad calibrate`',
      );
    }
    const threshold = number(given.threshold, 'threshold', -1e6, 1e6, this.#pixelThreshold ?? 0);
    const minArea = number(given.minArea, 'minArea', 0, Number.MAX_SAFE_INTEGER, 0);
    return findRegions(this, this.#pictureSize, threshold).filter(({ area }) => area >= minArea);
  }

  /**
   * The picture with the map over it, at the picture's own size.
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
    const frame = await decodeImage(this.#picture, NO_LIMITS);
    const values = resizeMap(this.data, this.width, this.height, frame.width, frame.height);
    return encodePng(blend(frame, values, min, max, opacity));
  }

  /**
   * The map alone as a grey picture, black at `min` (default 0) and white at `max` (default as for the heat map).
   *
   * @returns PNG bytes
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT
   */
  async toGrey(options?: Omit<HeatmapOptions, 'opacity'>): Promise<Buffer> {
    const given = optionsObject(options, 'grey map options', ['min', 'max']);
    const min = number(given.min, 'min', -1e6, 1e6, 0);
    const byDefault = this.#threshold === undefined ? 1 : 2 * this.#threshold;
    const max = number(given.max, 'max', min + 1e-9, 1e6, Math.max(byDefault, min + 1e-9));
    const data = Uint8Array.from(this.data, (value) => Math.round(255 * Math.min(1, Math.max(0, (value - min) / (max - min)))));
    return encodePng({ data, width: this.width, height: this.height, channels: 1 });
  }
}

function blend(frame: RawFrame, values: Float32Array, min: number, max: number, opacity: number): RawFrame {
  const { width, height, channels } = frame;
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < values.length; i++) {
    const strength = Math.min(1, Math.max(0, (values[i]! - min) / (max - min)));
    const colour = heatColour(strength);
    const alpha = opacity * heatAlpha(strength);
    for (let c = 0; c < 3; c++) {
      const under = frame.data[i * channels + (channels === 1 ? 0 : c)]!;
      data[3 * i + c] = Math.round(under * (1 - alpha) + colour[c]! * alpha);
    }
  }
  return { data, width, height, channels: 3 };
}

/** PNG bytes of a frame. */
export async function encodePng(frame: RawFrame): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  const { data, width, height, channels } = frame;
  return sharp(data, { raw: { width, height, channels } }).png().toBuffer();
}
