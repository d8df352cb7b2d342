// Tiles: coverage, seamless blending, and small defects in large images.
import assert from 'node:assert/strict';
import { Diad, type RawFrame, type ScoreResult } from '../../lib/index.js';
import { coverWithTiles, cropFrame, TileCanvas } from '../../lib/scoring/tiles.js';
import { rejects } from '../support/support.js';

/** Returns the smallest and largest number of tiles over any pixel. */
function coverage(width: number, height: number, size: number, overlap: number): [number, number] {
  const counts = new Uint8Array(width * height);
  for (const { x, y, width: w, height: h } of coverWithTiles(width, height, { size, overlap })) {
    assert.ok(x >= 0 && y >= 0 && x + w <= width && y + h <= height);
    for (let v = y; v < y + h; v++) for (let u = x; u < x + w; u++) counts[v * width + u]! += 1;
  }
  return [counts.reduce((a, b) => Math.min(a, b)), counts.reduce((a, b) => Math.max(a, b))];
}

describe('tiles', () => {
  it('cover every pixel, end at the edges and overlap by at least the minimum', () => {
    assert.deepEqual(coverWithTiles(100, 40, { size: 64, overlap: 16 }), [
      { x: 0, y: 0, width: 64, height: 40 },
      { x: 36, y: 0, width: 64, height: 40 },
    ]);
    assert.deepEqual(coverWithTiles(64, 64, { size: 64, overlap: 16 }), [
      { x: 0, y: 0, width: 64, height: 64 },
    ]);
    for (const [width, height, size, overlap] of [
      [200, 130, 32, 8],
      [33, 31, 32, 16],
      [97, 101, 16, 0],
    ] as const) {
      const [least, most] = coverage(width, height, size, overlap);
      assert.ok(least >= 1 && most <= 9, `${least} to ${most}`);
      const xs = [...new Set(coverWithTiles(width, height, { size, overlap }).map(({ x }) => x))];
      for (const [i, x] of xs.slice(1).entries()) assert.ok(xs[i]! + size - x >= overlap);
    }
  });

  it('crop the right pixels', () => {
    const data = Uint8Array.from({ length: 4 * 3 * 3 }, (_, i) => i);
    const { data: cropped } = cropFrame(
      { data, width: 4, height: 3, channels: 3 },
      { x: 2, y: 1, width: 2, height: 2 },
    );
    assert.deepEqual([...cropped], [18, 19, 20, 21, 22, 23, 30, 31, 32, 33, 34, 35]);
  });

  it('blend without seams: equal maps stay equal, a step between levels becomes gradual', async () => {
    const options = { size: 64, overlap: 32 };
    const image = { width: 256, height: 96 };
    const [flat, stepped] = [new TileCanvas(image, options, 16), new TileCanvas(image, options, 16)];
    for (const tile of coverWithTiles(image.width, image.height, options)) {
      await flat.add(tile, new Float32Array(256).fill(0.7), 16);
      await stepped.add(tile, new Float32Array(256).fill(tile.x < 100 ? 0 : 1), 16);
    }
    assert.deepEqual([flat.width, flat.height], [64, 24]);
    for (const value of await flat.finish()) assert.ok(Math.abs(value - 0.7) < 1e-6);
    const row = (await stepped.finish()).subarray(0, 64);
    const steps = Array.from(row.subarray(1), (value, i) => value - row[i]!);
    assert.deepEqual([row[0], row[63]], [0, 1]);
    assert.ok(
      steps.every((step) => step >= -1e-6 && step < 0.3),
      `largest step ${Math.max(...steps)}`,
    );
  });

  describe('with the model', () => {
    let diad: Diad;
    before(async () => {
      diad = await Diad.load(undefined, { maxBatch: 4, calibration: false });
    });
    after(() => diad.close());

    /** Creates a plain image with a speck of a few pixels. */
    function speckled(side: number, speck: boolean): RawFrame {
      const data = new Uint8Array(side * side * 3).fill(128);
      const [left, top] = [Math.round(side * 0.7), Math.round(side * 0.3)];
      if (speck) {
        for (let y = 0; y < 12; y++) {
          for (let x = 0; x < 12; x++)
            for (let c = 0; c < 3; c++)
              data[((top + y) * side + left + x) * 3 + c] = (x + y) % 4 < 2 ? 255 : 0;
        }
      }
      return { data, width: side, height: side, channels: 3 };
    }

    const largest = (a: Float32Array, b: Float32Array): { value: number; place: number } => {
      let [value, place] = [0, 0];
      for (const [i, each] of a.entries())
        if (Math.abs(each - b[i]!) > value) [value, place] = [Math.abs(each - b[i]!), i];
      return { value, place };
    };

    it("find a speck in a 2048 x 2048 image that vanishes at the model's image size", async () => {
      const side = 2048;
      const { imageSize } = diad.info.bundle;
      const tile = { size: 4 * imageSize, overlap: imageSize };
      const [good, bad] = [speckled(side, false), speckled(side, true)];
      const whole = await Promise.all([good, bad].map((frame) => diad.score(frame)));
      const steps: number[] = [];
      const tiled: ScoreResult[] = [];
      tiled.push(await diad.score(good, { tile }));
      tiled.push(await diad.score(bad, { tile, onStep: (done, total) => steps.push(done / total) }));
      // Effect of the defect on map and score: hardly any at the model's image size, much more in tiles.
      const seenWhole = largest(whole[1]!.map.data, whole[0]!.map.data);
      const seenTiled = largest(tiled[1]!.map.data, tiled[0]!.map.data);
      assert.ok(seenTiled.value > 1.5 * seenWhole.value, `${seenTiled.value} against ${seenWhole.value}`);
      const { width, height } = tiled[1]!.map;
      assert.deepEqual([width, height], [side / 4, side / 4]);
      const [x, y] = [seenTiled.place % width, Math.floor(seenTiled.place / width)];
      assert.ok(Math.hypot(x / width - 0.7, y / height - 0.3) < 0.06, `${x}, ${y}`);
      assert.equal(steps.at(-1), 1);
    });

    it('score a single tile like the image; the map can have the image size', async () => {
      const frame = speckled(100, true);
      const [plain, tiled, fine] = await Promise.all([
        diad.score(frame),
        diad.score(frame, { tile: { size: 128 } }),
        diad.score(frame, { tile: { size: 128 }, mapSize: 'image' }),
      ]);
      // Batches round differently.
      assert.ok(Math.abs(tiled.score - plain.score) < 1e-5, `${tiled.score}, not ${plain.score}`);
      assert.deepEqual([fine.map.width, fine.map.height], [100, 100]);
      assert.equal((await tiled.map.toHeatmap()).subarray(1, 4).toString(), 'PNG');
    });

    it('wait for free slots in a short queue, with tiles of several images', async () => {
      const narrow = await Diad.load(undefined, {
        maxBatch: 2,
        queueLimit: 4,
        warmup: false,
        calibration: false,
      });
      const frames = [0, 1, 2, 3].map((i) => speckled(96 + i, true));
      const results = await Promise.all(
        frames.map((frame) => narrow.score(frame, { tile: { size: 32, overlap: 0 } })),
      );
      await narrow.close();
      assert.ok(results.every(({ batchSize }) => batchSize >= 9));
    });

    it('validate options; an abort ends all tiles', async () => {
      const frame = speckled(300, false);
      await rejects(diad.score(frame, { tile: { size: 8 } }), 'ERR_DIAD_INVALID_ARGUMENT', /tile\.size/);
      await rejects(diad.score(frame, { tile: {} as never }), 'ERR_DIAD_INVALID_ARGUMENT', /tile\.size/);
      await rejects(
        diad.score(frame, { tile: { size: 64, overlap: 33 } }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /tile\.overlap/,
      );
      await rejects(
        diad.score(frame, { tile: { size: 64 }, stages: true }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /stages/,
      );
      await rejects(diad.score(frame, { tile: { size: 64 }, timeoutMs: 1 }), 'ERR_DIAD_TIMEOUT');
      const controller = new AbortController();
      const pending = diad.score(frame, {
        tile: { size: 32, overlap: 0 },
        signal: controller.signal,
        onStep: () => {
          controller.abort(new Error('enough'));
        },
      });
      await assert.rejects(pending, /enough/);
      const { queued, running } = diad.stats();
      assert.deepEqual([queued, running], [0, 0]);
    });
  });
});
