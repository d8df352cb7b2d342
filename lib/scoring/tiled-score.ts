// Scores an image in tiles, which go through the queue like images.
import { setMaxListeners } from 'node:events';
import type { RawFrame } from '../image/types.js';
import type { NativeResult, Timings } from '../native/addon.js';
import type { ValidatedCall } from './options.js';
import { coverWithTiles, cropFrame, TileCanvas, type TileOptions } from './tiles.js';

/** Scores one tile. */
export type SubmitTile = (frame: RawFrame, call: ValidatedCall) => Promise<NativeResult>;

/** Result for the whole image. */
export interface TiledResult {
  readonly result: Omit<NativeResult, 'size'>;
  /** Pixels. */
  readonly mapWidth: number;
  /** Pixels. */
  readonly mapHeight: number;
}

function sumOf(timings: readonly Timings[]): Timings {
  const sums = timings.map((each) => Object.entries(each)).flat() as [keyof Timings, number][];
  const total: Record<keyof Timings, number> = {
    queueMs: 0,
    computeMs: 0,
    resizeMs: 0,
    encodeMs: 0,
    denoiseMs: 0,
    decodeMs: 0,
    extractMs: 0,
    mapMs: 0,
  };
  for (const [name, value] of sums) total[name] += value;
  return total;
}

/**
 * Scores all tiles, `concurrency` at a time. The first failure cancels the rest.
 *
 * @returns the maximum tile score, the map of the whole image, the summed timings of the tiles
 */
export async function scoreTiles(
  frame: RawFrame,
  call: ValidatedCall,
  options: Required<TileOptions>,
  concurrency: number,
  submit: SubmitTile,
): Promise<TiledResult> {
  const tiles = coverWithTiles(frame.width, frame.height, options);
  const failed = new AbortController();
  const signal = call.signal === undefined ? failed.signal : AbortSignal.any([call.signal, failed.signal]);
  setMaxListeners(0, signal); // one listener per tile in flight
  let steps = 0;
  const onStep =
    call.onStep === undefined
      ? undefined
      : (_: number, total: number): void => {
          steps += 1;
          call.onStep?.(steps, total * tiles.length);
        };
  const results: Omit<NativeResult, 'map'>[] = [];
  let canvas: TileCanvas | undefined;
  const waiting = tiles.values();
  const work = async (): Promise<void> => {
    for (const tile of waiting) {
      signal.throwIfAborted();
      const { map, ...result } = await submit(cropFrame(frame, tile), { ...call, signal, onStep });
      canvas ??= new TileCanvas(frame, options, result.size);
      await canvas.add(tile, map ?? new Float32Array(), result.size);
      results.push(result);
    }
  };
  const workers = Array.from({ length: Math.min(concurrency, tiles.length) }, work);
  try {
    await Promise.all(workers);
  } catch (error) {
    failed.abort(error);
    await Promise.allSettled(workers);
    throw error;
  }
  const score = results.reduce((largest, result) => Math.max(largest, result.score), -Infinity);
  const result = {
    score,
    map: await canvas!.finish(),
    timings: sumOf(results.map(({ timings }) => timings)),
    batchSize: tiles.length,
  };
  return { result, mapWidth: canvas!.width, mapHeight: canvas!.height };
}
