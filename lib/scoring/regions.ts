// Finds defect regions of an anomaly map: boxes, areas and contours above a threshold.
import { contours } from 'd3-contour';

/** Options of `AnomalyMap.regions`. */
export interface RegionsOptions {
  /** Map values above it belong to a region. Default: the calibration's pixel threshold. */
  readonly threshold?: number;
  /** Smallest area of a region, square pixels of the image. Default 0. */
  readonly minArea?: number;
}

/** A point in pixels of the image; (0, 0) is the top left corner. */
export type Point = readonly [x: number, y: number];

/** A connected anomalous region. */
export interface Region {
  /** Smallest box of whole pixels around it. */
  readonly box: { readonly x: number; readonly y: number; readonly width: number; readonly height: number };
  /** Area without holes, square pixels of the image. */
  readonly area: number;
  /** Largest map value inside. */
  readonly peak: number;
  /** Outline; the last point connects to the first. */
  readonly contour: readonly Point[];
  /** Outlines of holes. */
  readonly holes: readonly (readonly Point[])[];
}

interface MapValues {
  readonly width: number;
  readonly height: number;
  readonly data: Float32Array;
}

/** Largest map that is processed at full resolution, which takes some hundred milliseconds. */
const MOST_PIXELS = 1 << 22;
/** Most outline points: assigning holes to outlines takes quadratic time. */
const MOST_POINTS = 1 << 16;

/**
 * Counts the outline points: one per pair of neighbors on different sides of the threshold; the outside is
 * below.
 */
function countPoints({ width, height, data }: MapValues, threshold: number): number {
  let points = 0;
  for (let y = 0, at = 0; y < height; y++) {
    let left = false;
    for (let x = 0; x < width; x++, at++) {
      const above = data[at]! >= threshold;
      if (above !== left) points++;
      if (above !== (y > 0 && data[at - width]! >= threshold)) points++;
      if (above && y === height - 1) points++;
      left = above;
    }
    if (left) points++;
  }
  return points;
}

/** Halves a map. Each pixel is the maximum of four, so that no defect is lost. */
function halve({ width, height, data }: MapValues): MapValues {
  const half = { width: Math.ceil(width / 2), height: Math.ceil(height / 2) };
  const largest = new Float32Array(half.width * half.height).fill(-Infinity);
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0, row = (y >> 1) * half.width; x < width; x++, from++) {
      const at = row + (x >> 1);
      if (data[from]! > largest[at]!) largest[at] = data[from]!;
    }
  }
  return { ...half, data: largest };
}

/** Halves a map until its outlines can be found in some hundred milliseconds. */
function ofBoundedCost(
  map: MapValues,
  threshold: number,
): { readonly map: MapValues; readonly reduction: number } {
  let [reduced, reduction] = [map, 1];
  while (reduced.data.length > MOST_PIXELS || countPoints(reduced, threshold) > MOST_POINTS) {
    [reduced, reduction] = [halve(reduced), 2 * reduction];
  }
  return { map: reduced, reduction };
}

/** Returns the smallest box of whole pixels around an outline, clipped to the image. */
function boxOf(
  outline: readonly Point[],
  { width, height }: { readonly width: number; readonly height: number },
): Region['box'] {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of outline) {
    [left, right] = [Math.min(left, x), Math.max(right, x)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
  }
  [left, top] = [Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top))];
  return {
    x: left,
    y: top,
    width: Math.min(width, Math.ceil(right)) - left,
    height: Math.min(height, Math.ceil(bottom)) - top,
  };
}

/** Computes the area of a polygon (shoelace formula, absolute value). */
function areaOf(ring: readonly Point[]): number {
  let sum = 0;
  for (const [i, [x, y]] of ring.entries()) {
    const [nextX, nextY] = ring[(i + 1) % ring.length]!;
    sum += x * nextY - nextX * y;
  }
  return Math.abs(sum) / 2;
}

/** Finds where a ring crosses the center line of each pixel row (even-odd rule), by row, sorted. */
function crossings(ring: readonly Point[], height: number): Map<number, number[]> {
  const rows = new Map<number, number[]>();
  for (const [i, [x1, y1]] of ring.entries()) {
    const [x2, y2] = ring[(i + 1) % ring.length]!;
    const last = Math.min(height - 1, Math.ceil(Math.max(y1, y2) - 0.5) - 1);
    for (let y = Math.max(0, Math.ceil(Math.min(y1, y2) - 0.5)); y <= last; y++) {
      const x = x1 + ((y + 0.5 - y1) / (y2 - y1)) * (x2 - x1);
      const row = rows.get(y);
      if (row === undefined) rows.set(y, [x]);
      else row.push(x);
    }
  }
  for (const row of rows.values()) row.sort((a, b) => a - b);
  return rows;
}

/**
 * Finds the largest map value among pixels whose centers are inside an outline. Time is linear in the area
 * plus the length of the outline.
 */
function peakWithin({ width, height, data }: MapValues, ring: readonly Point[], threshold: number): number {
  let peak = threshold;
  for (const [y, row] of crossings(ring, height)) {
    for (let i = 0; i + 1 < row.length; i += 2) {
      const last = Math.min(width - 1, Math.ceil(row[i + 1]! - 0.5) - 1);
      for (let x = Math.max(0, Math.ceil(row[i]! - 0.5)); x <= last; x++)
        peak = Math.max(peak, data[y * width + x]!);
    }
  }
  return peak;
}

/**
 * Finds the regions above a threshold by marching squares with linear interpolation, scaled to the image,
 * largest first.
 *
 * Maps of more than 4,194,304 pixels or 65,536 outline points (a threshold within the noise) are first halved
 * until they fit, where each pixel is the maximum of four. Regions are then coarser and slightly larger, but
 * none is lost.
 *
 * @param given - map of the whole image
 * @param size - size of the image, pixels
 */
export function findRegions(
  given: MapValues,
  size: { readonly width: number; readonly height: number },
  threshold: number,
): Region[] {
  const { map, reduction } = ofBoundedCost(given, threshold);
  const [scaleX, scaleY] = [(size.width / given.width) * reduction, (size.height / given.height) * reduction];
  // The last pixel of a halved map can extend beyond the image.
  const scaled = (ring: readonly Point[]): Point[] =>
    reduction === 1
      ? ring.map(([x, y]) => [x * scaleX, y * scaleY])
      : ring.map(([x, y]) => [Math.min(size.width, x * scaleX), Math.min(size.height, y * scaleY)]);
  const shape = contours().size([map.width, map.height]).contour(Array.from(map.data), threshold);
  const regions = shape.coordinates.map((rings): Region => {
    // Rings of GeoJSON repeat their first point.
    const [outline = [], ...inner] = rings.map((ring) => ring.slice(0, -1).map(([x, y]): Point => [x!, y!]));
    const contour = scaled(outline);
    const holes = inner.map(scaled);
    return {
      box: boxOf(contour, size),
      area: areaOf(contour) - holes.reduce((sum, hole) => sum + areaOf(hole), 0),
      peak: peakWithin(map, outline, threshold),
      contour,
      holes,
    };
  });
  return regions.sort((a, b) => b.area - a.area);
}
