// Regions of maps: boxes, areas, outlines, and computing time.
import assert from 'node:assert/strict';
import { contours } from 'd3-contour';
import { AnomalyMap } from '../../lib/scoring/anomaly-map.js';

describe('regions', () => {
  const taken = { kind: 'encoded', bytes: new Uint8Array() } as const;
  /**
   * A map with two blocks of ones, one with a hole, for an image ten times as wide and five times as high.
   */
  const blocks = (limits?: { threshold: number; pixelThreshold: number }): AnomalyMap => {
    const data = new Float32Array(16 * 8);
    for (let y = 1; y < 6; y++) for (let x = 1; x < 6; x++) data[y * 16 + x] = x === 3 && y === 3 ? 0 : 1;
    for (let y = 5; y < 7; y++) for (let x = 10; x < 13; x++) data[y * 16 + x] = y === 5 && x === 11 ? 3 : 2;
    return new AnomalyMap(16, 8, data, taken, { width: 160, height: 40 }, limits);
  };

  it('have boxes, areas, peaks and outlines in image pixels, largest first', () => {
    const [ring, block, ...others] = blocks({ threshold: 1, pixelThreshold: 0.5 }).regions();
    assert.equal(others.length, 0);
    // At half of a step, the outline follows the pixel edges with cut corners: 25 pixels minus 4 corners of
    // one eighth, minus the hole.
    assert.deepEqual(ring!.box, { x: 10, y: 5, width: 50, height: 25 });
    assert.ok(Math.abs(ring!.area - (25 - 0.5 - 0.5) * 50) < 1e-6, String(ring!.area));
    assert.equal(ring!.holes.length, 1);
    assert.equal(ring!.peak, 1);
    assert.equal(block!.peak, 3);
    assert.ok(block!.box.x >= 97 && block!.box.x + block!.box.width <= 133);
    for (const [x, y] of ring!.contour) assert.ok(x >= 10 && x <= 60 && y >= 5 && y <= 30);
  });

  it('respect a threshold and a minimum area; without a threshold the error suggests a solution', () => {
    assert.equal(blocks().regions({ threshold: 1.5 }).length, 1);
    assert.equal(blocks().regions({ threshold: 5 }).length, 0);
    assert.equal(blocks().regions({ threshold: 0.5, minArea: 1000 }).length, 1);
    assert.throws(() => blocks().regions(), /run `diad calibrate`/);
    assert.throws(() => blocks().regions({ minimum: 1 } as never), /unknown key minimum/);
  });
});

describe('regions of large and finely structured maps', () => {
  const taken = { kind: 'encoded', bytes: new Uint8Array() } as const;
  const mapOf = (width: number, height: number, value: (x: number, y: number) => number): AnomalyMap => {
    const data = Float32Array.from({ length: width * height }, (_, i) =>
      value(i % width, Math.floor(i / width)),
    );
    return new AnomalyMap(width, height, data, taken, { width: 2 * width, height: 2 * height }, undefined);
  };

  it('equal those of d3-contour exactly for up to 65,536 outline points', () => {
    const map = mapOf(1500, 1000, (x, y) => Math.sin(x / 16) * Math.cos(y / 18));
    const { coordinates } = contours().size([1500, 1000]).contour(Array.from(map.data), 0.25);
    const expected = coordinates.map((rings) =>
      rings.map((ring) => ring.slice(0, -1).map(([x, y]) => [2 * x!, 2 * y!])),
    );
    const found = map.regions({ threshold: 0.25 });
    assert.ok(found.length > 100);
    const byFirstPoint = (a: number[][][], b: number[][][]): number =>
      a[0]![0]![0]! - b[0]![0]![0]! || a[0]![0]![1]! - b[0]![0]![1]!;
    const rings = found.map(({ contour, holes }) => [contour, ...holes] as unknown as number[][][]);
    assert.deepEqual(rings.sort(byFirstPoint), expected.sort(byFirstPoint));
  });

  it('with more points, are computed on a halved map of maxima, and none is lost', () => {
    // Rings of 4 x 4 around a hole on the left, 154,000 points in total; one block with a peak on the right.
    const block = (x: number, y: number): number =>
      x >= 1600 && x < 1800 && y >= 400 && y < 600 ? (x === 1701 && y === 501 ? 5 : 2) : 0;
    const ring = (x: number, y: number): number =>
      x < 1500 && x % 16 < 4 && y % 16 < 4 && !(x % 16 === 2 && y % 16 === 1) ? 1 : 0;
    const map = mapOf(2000, 1300, (x, y) => Math.max(block(x, y), ring(x, y)));
    const [largest, ...others] = map.regions({ threshold: 0.5 });
    assert.equal(others.length, 94 * 82);
    for (const { holes, peak } of others)
      assert.deepEqual([holes, peak], [[], 1], 'a hole of one pixel is closed');
    assert.equal(largest!.peak, 5);
    const { x, y, width, height } = largest!.box;
    for (const [found, expected] of [
      [x, 3200],
      [y, 800],
      [x + width, 3600],
      [y + height, 1200],
    ] as const) {
      // prettier-ignore
      assert.ok(Math.abs(found - expected) <= 8, `${found} is not about ${expected}`);
    }
    assert.ok(Math.abs(largest!.area / (400 * 400) - 1) < 0.05, String(largest!.area));
  });

  it('stay within the image when halving rounds up its sides', () => {
    const comb = mapOf(1001, 601, (x, y) => (x === 0 || y % 2 === 0 ? 1 : 0)); // an outline of 600,000 points
    const [region, ...others] = comb.regions({ threshold: 0.5 });
    assert.equal(others.length, 0);
    assert.deepEqual(region!.box, { x: 0, y: 0, width: 2002, height: 1202 });
    for (const [x, y] of region!.contour) assert.ok(x >= 0 && x <= 2002 && y >= 0 && y <= 1202);
  });
});
