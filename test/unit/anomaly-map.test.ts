// Anomaly maps: resizing, colors, heat maps.
import assert from 'node:assert/strict';
import sharp from 'sharp';
import { AnomalyMap, heatColor, resizeMap } from '../../lib/scoring/anomaly-map.js';
import { heatAlpha } from '../../lib/scoring/heat-color.js';
import { inTurns } from '../../lib/async/yielding-loop.js';
import { encodeNpy } from '../../lib/io/npy.js';
import { takeImage } from '../../lib/image/decode.js';
import { rejects } from '../support/support.js';

const image = takeImage({ data: new Uint8Array(4 * 2 * 3).fill(100), width: 4, height: 2, channels: 3 });
const imageSize = { width: 4, height: 2 };
const pixels = async (png: Buffer) => {
  const { data, info } = await sharp(png).raw().toBuffer({ resolveWithObject: true });
  return { data, ...info };
};

describe('anomaly map', () => {
  it('interpolates between pixel centers and repeats edges when resizing by two', async () => {
    assert.deepEqual([...(await resizeMap(Float32Array.of(0, 4), 2, 1, 4, 1))], [0, 1, 3, 4]);
    assert.deepEqual([...(await resizeMap(Float32Array.of(0, 4, 8, 12), 2, 2, 1, 1))], [6]);
    assert.deepEqual([...(await resizeMap(Float32Array.of(1, 2, 3, 4), 2, 2, 2, 2))], [1, 2, 3, 4]);
  });

  it('maps strengths to colors from yellow to magenta, clamped', () => {
    assert.deepEqual(heatColor(0), [255, 230, 80]);
    assert.deepEqual(heatColor(-5), heatColor(0));
    assert.deepEqual(heatColor(1), [200, 0, 90]);
    assert.deepEqual(heatColor(9), heatColor(1));
    assert.deepEqual(heatColor(0.175), [255, 200, 50]);
  });

  it('yields to the event loop while resizing a map to the size of the image', async () => {
    let loops = 0;
    const count = (): void => {
      loops += 1;
      counting = setImmediate(count);
    };
    let counting = setImmediate(count);
    const [width, height] = [2048, 1024];
    const resized = await resizeMap(Float32Array.of(0, 4, 8, 12), 2, 2, width, height);
    clearImmediate(counting);
    assert.ok(loops >= 10, `${loops} loops`); // 16 turns of 2^17 values
    assert.deepEqual([resized[0], resized[width * height - 1], resized.length], [0, 12, width * height]);
    const rows: number[] = [];
    await inTurns(5, 1 << 16, (first, end) => rows.push(first, end));
    await inTurns(2, 1 << 20, (first, end) => rows.push(first, end));
    await inTurns(0, 3, () => assert.fail('there is no row'));
    assert.deepEqual(rows, [0, 2, 2, 4, 4, 5, 0, 1, 1, 2]);
  });

  it('draws the color of the scale to within one level at every strength', async () => {
    const values = Float32Array.from({ length: 512 }, (_, i) => (i - 16) / 480);
    const size = { width: 32, height: 16 };
    const frame = { data: new Uint8Array(512).fill(100), ...size, channels: 1 } as const;
    const map = new AnomalyMap(32, 16, values, { kind: 'frame', frame }, size, undefined);
    const { data } = await pixels(await map.toHeatmap({ opacity: 0.6 }));
    for (const [i, value] of values.entries()) {
      const alpha = 0.6 * heatAlpha(value);
      for (const [c, color] of heatColor(value).entries()) {
        assert.ok(
          Math.abs(data[3 * i + c]! - (100 * (1 - alpha) + color * alpha)) <= 0.75,
          `${value}, channel ${c}`,
        );
      }
    }
  });

  it('serializes only its size to JSON', () => {
    const map = new AnomalyMap(2, 1, Float32Array.of(1, 2), image, imageSize, undefined);
    assert.equal(JSON.stringify({ map }), '{"map":{"width":2,"height":1}}');
  });

  it('renders a heat map at the image size that shows the image where the map is 0', async () => {
    const map = new AnomalyMap(4, 2, Float32Array.of(0, 0, 0, 1, 0, 0, 0, 1), image, imageSize, undefined);
    const { data, width, height, channels } = await pixels(await map.toHeatmap());
    assert.deepEqual([width, height, channels], [4, 2, 3]);
    assert.deepEqual([...data.subarray(0, 3)], [100, 100, 100]);
    assert.deepEqual([...data.subarray(9, 12)], [175, 25, 93]); // 0.25 * 100 + 0.75 * (200, 0, 90)
  });

  it('scales colors by option or threshold, never by the image', async () => {
    const values = Float32Array.from({ length: 8 }, () => 0.5);
    const plain = new AnomalyMap(4, 2, values, image, imageSize, undefined);
    const halved = await pixels(await plain.toHeatmap());
    const full = await pixels(await plain.toHeatmap({ max: 0.5 }));
    assert.notDeepEqual(halved.data, full.data);
    const calibrated = await pixels(
      await new AnomalyMap(4, 2, values, image, imageSize, { threshold: 0.25 }).toHeatmap(),
    );
    assert.deepEqual(calibrated.data, full.data);
    assert.deepEqual(
      [...(await pixels(await plain.toHeatmap({ opacity: 0 }))).data.subarray(0, 3)],
      [100, 100, 100],
    );
  });

  it('renders gray maps', async () => {
    const map = new AnomalyMap(2, 1, Float32Array.of(0.25, 3), image, imageSize, undefined);
    const { data } = await pixels(await map.toGray());
    assert.deepEqual([data[0], data.at(-1)], [64, 255]);
  });

  it('validates options', async () => {
    const map = new AnomalyMap(1, 1, Float32Array.of(0), image, imageSize, undefined);
    await rejects(map.toHeatmap({ opacity: 2 }), 'ERR_DIAD_INVALID_ARGUMENT', /opacity/);
    await rejects(map.toHeatmap({ min: 1, max: 1 }), 'ERR_DIAD_INVALID_ARGUMENT', /max/);
    await rejects(map.toHeatmap({ color: 'red' } as never), 'ERR_DIAD_INVALID_ARGUMENT', /unknown key color/);
  });

  it("writes .npy files in NumPy's layout", () => {
    const bytes = encodeNpy([2, 3], Float32Array.of(1, 2, 3, 4, 5, 6));
    const headerLength = bytes.readUInt16LE(8);
    assert.equal((10 + headerLength) % 64, 0);
    assert.match(
      bytes.toString('latin1', 10, 10 + headerLength),
      /^\{'descr': '<f4', 'fortran_order': False, 'shape': \(2,3,\), \} *\n$/,
    );
    assert.equal(bytes.readFloatLE(10 + headerLength + 20), 6);
    assert.equal(bytes.length, 10 + headerLength + 24);
  });
});
