// Determinism: repeated, batched and concurrent scores of the same image.
import assert from 'node:assert/strict';
import { Diad, type ScoreResult } from '../../lib/index.js';
import { largestDifference } from '../../lib/verify/verify.js';
import { example } from '../support/support.js';

const IMAGES = [
  'gear-missing_part.png',
  'brick-good.png',
  'capsule-crack.jpg',
  'gravel-blob.webp',
  'tile-crack.png',
];
const BATCH_TOLERANCE = 1e-5; // relative, for the score: batches sum in another order

describe('determinism @slow', () => {
  let images: Buffer[];
  before(async () => {
    images = await Promise.all(IMAGES.map(example));
  });

  it('returns bitwise equal score and map, also after a reload and while another model works', async () => {
    const first = await Diad.load(undefined, { maxBatch: 1 });
    const expected = await first.score(images[0]!, { seed: 3 });
    const repeated = await first.score(images[0]!, { seed: 3 });
    await first.close();
    // Another model with a separate queue keeps the machine busy.
    const [again, other] = [
      await Diad.load(undefined, { maxBatch: 1 }),
      await Diad.load(undefined, { maxBatch: 4 }),
    ];
    const noise = Promise.all(images.map((image) => other.score(image)));
    const underLoad = await again.score(images[0]!, { seed: 3 });
    await noise;
    await Promise.all([again.close(), other.close()]);
    for (const result of [repeated, underLoad]) {
      assert.equal(result.score, expected.score);
      assert.equal(largestDifference(result.map.data, expected.map.data), 0);
    }
  });

  it('returns for 100 concurrent calls the sequential results within the batch tolerance', async () => {
    const diad = await Diad.load();
    const calls = Array.from({ length: 100 }, (_, i) => ({ image: images[i % images.length]!, seed: i % 3 }));
    const sequential = new Map<string, ScoreResult>();
    for (const { image, seed } of calls) {
      const key = `${images.indexOf(image)}/${seed}`;
      if (!sequential.has(key)) sequential.set(key, await diad.score(image, { seed }));
    }
    const concurrent = await Promise.all(
      calls.map(({ image, seed }, i) =>
        i % 9 === 8 ? diad.reconstruct(image, { seed }) : diad.score(image, { seed }),
      ),
    );
    assert.ok(diad.stats().meanBatch > 1, 'nothing was computed in a batch');
    await diad.close();
    for (const [i, result] of concurrent.entries()) {
      const { image, seed } = calls[i]!;
      const expected = sequential.get(`${images.indexOf(image)}/${seed}`)!;
      assert.ok(
        Math.abs(result.score / expected.score - 1) <= BATCH_TOLERANCE,
        `call ${i}: ${result.score} instead of ${expected.score}`,
      );
      if ('map' in result)
        assert.ok(largestDifference(result.map.data, expected.map.data) <= 2e-5, `call ${i}: map`);
    }
    assert.notEqual(sequential.get('0/0')!.score, sequential.get('0/1')!.score);
  });

  it('distinguishes seeds beyond 53 bits', async () => {
    const diad = await Diad.load();
    const seeds = [2n ** 53n, 2n ** 53n + 1n, 2n ** 64n - 1n];
    const scores = await Promise.all(
      seeds.map(async (seed) => (await diad.score(images[0]!, { seed })).score),
    );
    await diad.close();
    assert.equal(new Set(scores).size, 3);
  });
});
