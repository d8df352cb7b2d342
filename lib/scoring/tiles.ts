// Tiling of images larger than the model's input: covers an image with tiles and merges their maps.
import { resizeMap } from './anomaly-map.js';
import type { RawFrame } from '../image/types.js';
import { inTurns } from '../async/yielding-loop.js';

/** Tiling of an image. */
export interface TileOptions {
  /** Size of a tile, pixels of the image, 16 to 65,536. Each tile is resized to the model's image size. */
  readonly size: number;
  /** Overlap of neighbors, pixels, 0 to size / 2. Default: a quarter of the size. */
  readonly overlap?: number;
}

/** Position of a tile in the image, pixels. */
export interface Tile {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

function countAlong(side: number, size: number, overlap: number): number {
  return side <= size ? 1 : Math.ceil((side - overlap) / (size - overlap));
}

/** Counts the tiles that cover an image. */
export function countTiles(width: number, height: number, { size, overlap }: Required<TileOptions>): number {
  return countAlong(width, size, overlap) * countAlong(height, size, overlap);
}

/**
 * Computes tile offsets along one side: equal steps of at most size - overlap; the last tile ends at the
 * edge.
 */
function starts(side: number, size: number, overlap: number): number[] {
  const count = countAlong(side, size, overlap);
  if (count === 1) return [0];
  return Array.from({ length: count }, (_, i) => Math.round((i * (side - size)) / (count - 1)));
}

/**
 * Covers an image with tiles, row by row. Neighbors overlap by at least `overlap` pixels. An image smaller
 * than a tile becomes one tile.
 */
export function coverWithTiles(
  width: number,
  height: number,
  { size, overlap }: Required<TileOptions>,
): Tile[] {
  const columns = starts(width, size, overlap);
  return starts(height, size, overlap).flatMap((y) =>
    columns.map((x) => ({ x, y, width: Math.min(size, width), height: Math.min(size, height) })),
  );
}

/** Copies the pixels of a tile. */
export function cropFrame({ data, width, channels }: RawFrame, tile: Tile): RawFrame {
  const row = tile.width * channels;
  const cropped = new Uint8Array(row * tile.height);
  for (let y = 0; y < tile.height; y++) {
    const start = ((tile.y + y) * width + tile.x) * channels;
    cropped.set(data.subarray(start, start + row), y * row);
  }
  return { data: cropped, width: tile.width, height: tile.height, channels };
}

/**
 * Computes weights along one side of a tile: they rise from its edge over the overlap, except at the image
 * edge.
 */
function ramp(length: number, overlap: number, atStart: boolean, atEnd: boolean): Float32Array {
  return Float32Array.from({ length }, (_, i) => {
    const fromStart = atStart ? Infinity : i + 0.5;
    const fromEnd = atEnd ? Infinity : length - i - 0.5;
    return Math.min(1, Math.min(fromStart, fromEnd) / Math.max(overlap, 1));
  });
}

/**
 * Merges the maps of tiles into one map. Overlaps are weighted means, with weights that fall to zero at tile
 * edges to avoid seams. The resolution is that of the tile maps, at most that of the image. Memory: 8 bytes
 * per map pixel.
 */
export class TileCanvas {
  readonly width: number;
  readonly height: number;
  readonly #scale: number;
  readonly #overlap: number;
  readonly #image: { readonly width: number; readonly height: number };
  readonly #sums: Float32Array;
  readonly #weights: Float32Array;

  /** @param side - side of a tile's map */
  constructor(
    image: { readonly width: number; readonly height: number },
    { size, overlap }: Required<TileOptions>,
    side: number,
  ) {
    this.#scale = Math.min(1, side / size);
    this.#overlap = overlap * this.#scale;
    this.#image = image;
    this.width = Math.max(1, Math.round(image.width * this.#scale));
    this.height = Math.max(1, Math.round(image.height * this.#scale));
    this.#sums = new Float32Array(this.width * this.height);
    this.#weights = new Float32Array(this.#sums.length);
  }

  /** Adds the map of a tile, row-major [side, side]. */
  async add(tile: Tile, map: Float32Array, side: number): Promise<void> {
    const place = (at: number, limit: number): number => Math.min(limit, Math.round(at * this.#scale));
    const [left, top] = [place(tile.x, this.width - 1), place(tile.y, this.height - 1)];
    const right = Math.max(left + 1, place(tile.x + tile.width, this.width));
    const bottom = Math.max(top + 1, place(tile.y + tile.height, this.height));
    const [width, height] = [right - left, bottom - top];
    const values = await resizeMap(map, side, side, width, height);
    const across = ramp(width, this.#overlap, tile.x === 0, tile.x + tile.width === this.#image.width);
    const down = ramp(height, this.#overlap, tile.y === 0, tile.y + tile.height === this.#image.height);
    await inTurns(height, width, (first, end) => {
      for (let y = first; y < end; y++) {
        for (let x = 0; x < width; x++) {
          const weight = across[x]! * down[y]!;
          const at = (top + y) * this.width + left + x;
          this.#sums[at] = this.#sums[at]! + weight * values[y * width + x]!;
          this.#weights[at] = this.#weights[at]! + weight;
        }
      }
    });
  }

  /** Returns the map of the whole image. */
  async finish(): Promise<Float32Array> {
    const mean = new Float32Array(this.#sums.length);
    await inTurns(this.height, this.width, (first, end) => {
      for (let i = first * this.width; i < end * this.width; i++)
        mean[i] = this.#weights[i]! > 0 ? this.#sums[i]! / this.#weights[i]! : 0;
    });
    return mean;
  }
}
