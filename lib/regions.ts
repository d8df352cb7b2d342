// Defect regions of an anomaly map: boxes, areas and contours where it lies above a threshold.
import { contours } from 'd3-contour';

/** Options of `AnomalyMap.regions`. */
export interface RegionsOptions {
  /** Map values above it belong to a region. Default: the calibration's pixel threshold. */
  readonly threshold?: number;
  /** Smaller regions are left out, square pixels of the picture. Default 0. */
  readonly minArea?: number;
}

/** A point in pixels of the picture, (0, 0) its upper left corner. */
export type Point = readonly [x: number, y: number];

/** A connected part of the picture that is anomalous. */
export interface Region {
  /** Smallest box of whole pixels around it. */
  readonly box: { readonly x: number; readonly y: number; readonly width: number; readonly height: number };
  /** Square pixels of the picture, holes taken off. */
  readonly area: number;
  /** Largest map value within. */
  readonly peak: number;
  /** Outline, the last point joined to the first. */
  readonly contour: readonly Point[];
  /** Outlines of holes. */
  readonly holes: readonly (readonly Point[])[];
}

interface MapValues {
  readonly width: number;
  readonly height: number;
  readonly data: Float32Array;
}

/** Shoelace formula, without sign. */
function areaOf(ring: readonly Point[]): number {
  let sum = 0;
  for (const [i, [x, y]] of ring.entries()) {
    const [nextX, nextY] = ring[(i + 1) % ring.length]!;
    sum += x * nextY - nextX * y;
  }
  return Math.abs(sum) / 2;
}

/** Where a ring crosses the middle of each row of pixels (even-odd rule), rows by their number, each sorted. */
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

/** Largest value among the map's pixels whose centres lie within an outline: time grows with its area and its length, not their product. */
function peakWithin({ width, height, data }: MapValues, ring: readonly Point[], threshold: number): number {
  let peak = threshold;
  for (const [y, row] of crossings(ring, height)) {
    for (let i = 0; i + 1 < row.length; i += 2) {
      const last = Math.min(width - 1, Math.ceil(row[i + 1]! - 0.5) - 1);
      for (let x = Math.max(0, Math.ceil(row[i]! - 0.5)); x <= last; x++) peak = Math.max(peak, data[y * width + x]!);
    }
  }
  return peak;
}

/**
 * Regions above a threshold, by marching squares with linear interpolation on the map, scaled to the picture; the largest first.
 *
 * @param map - covers the whole picture
 * @param size - of the picture, pixels
 */
export function findRegions(map: MapValues, size: { readonly width: number; readonly height: number }, threshold: number): Region[] {
  const [scaleX, scaleY] = [size.width / map.width, size.height / map.height];
  const shape = contours().size([map.width, map.height]).contour(Array.from(map.data), threshold);
  const regions = shape.coordinates.map((rings): Region => {
    // Rings of GeoJSON repeat their first point.
    const [outline = [], ...inner] = rings.map((ring) => ring.slice(0, -1).map(([x, y]): Point => [x!, y!]));
    const scaled = (ring: readonly Point[]): Point[] => ring.map(([x, y]) => [x * scaleX, y * scaleY]);
    const contour = scaled(outline);
    const holes = inner.map(scaled);
    const [xs, ys] = [contour.map(([x]) => x), contour.map(([, y]) => y)];
    const left = Math.max(0, Math.floor(Math.min(...xs)));
    const top = Math.max(0, Math.floor(Math.min(...ys)));
    const right = Math.min(size.width, Math.ceil(Math.max(...xs)));
    const bottom = Math.min(size.height, Math.ceil(Math.max(...ys)));
    return {
      box: { x: left, y: top, width: right - left, height: bottom - top },
      area: areaOf(contour) - holes.reduce((sum, hole) => sum + areaOf(hole), 0),
      peak: peakWithin(map, outline, threshold),
      contour,
      holes,
    };
  });
  return regions.sort((a, b) => b.area - a.area);
}
