// Scoring with a bundle of the published design: results, options, order, cancellation.
import assert from 'node:assert/strict';
import { Diad, DiadError, type ScoreResult } from '../../lib/index.js';
import { example, publishedBundle, rejects } from '../support/support.js';

describe('scoring', () => {
  let diad: Diad;
  let gear: Buffer;
  let board: Buffer;

  before(async () => {
    diad = await Diad.load(publishedBundle);
    [gear, board] = await Promise.all([example('gear-good.png'), example('circuit_board-missing_part.png')]);
  });

  after(() => diad.close());

  it('returns score, map, timings and seed', async () => {
    const result = await diad.score(gear);
    const { score, map, seed, timings, stages } = result;
    assert.ok(score > 0 && score < 6);
    assert.equal(map.width, diad.info.bundle.imageSize);
    assert.equal(map.data.length, map.width * map.height);
    assert.ok(Math.max(...map.data) >= score, 'the pooled maximum is at most the maximum');
    assert.ok(Math.min(...map.data) >= -1e-6);
    assert.equal(seed, 0);
    assert.equal((JSON.parse(JSON.stringify(result)) as typeof result).score, score);
    assert.equal(stages, undefined);
    assert.ok(timings.computeMs > 0 && timings.denoiseMs > 0 && timings.decodeImageMs > 0);
    assert.equal((await map.toHeatmap()).subarray(1, 4).toString(), 'PNG');
  });

  it('returns identical bits for the same seed and others for another seed', async () => {
    const [first, again, other] = [
      await diad.score(gear, { seed: 5 }),
      await diad.score(gear, { seed: 5n }),
      await diad.score(gear, { seed: 6 }),
    ];
    assert.equal(first.score, again.score);
    assert.deepEqual(first.map.data, again.map.data);
    assert.notEqual(first.score, other.score);
  });

  it('scores independently of other images in the batch', async () => {
    const alone = await diad.score(board, { seed: 3 });
    const together = await Promise.all(
      [gear, board, gear, board, gear].map((image, i) => diad.score(image, { seed: i })),
    );
    assert.ok(Math.abs(together[3]!.score / alone.score - 1) < 1e-5);
    const { meanBatch } = diad.stats();
    assert.ok(meanBatch > 1, `batches of ${meanBatch}`);
  });

  it('scores Buffer, ArrayBuffer and decoded frames equally', async () => {
    const { default: sharp } = await import('sharp');
    const { data, info } = await sharp(gear).removeAlpha().raw().toBuffer({ resolveWithObject: true });
    const buffer = gear.buffer.slice(gear.byteOffset, gear.byteOffset + gear.length) as ArrayBuffer;
    const scores = await Promise.all([
      diad.score(gear),
      diad.score(buffer),
      diad.score({ data, width: info.width, height: info.height, channels: 3 }),
    ]);
    for (const { score } of scores) assert.ok(Math.abs(score / scores[0].score - 1) < 1e-5);
  });

  it('allows changing the image right after the call', async () => {
    const expected = (await diad.score(gear)).score;
    const mine = Buffer.from(gear);
    const pending = diad.score(mine);
    mine.fill(0);
    assert.ok(Math.abs((await pending).score / expected - 1) < 1e-5);
  });

  it('returns a map of the image size on request', async () => {
    const { map } = await diad.score(board, { mapSize: 'image' });
    assert.deepEqual([map.width, map.height, map.data.length], [256, 256, 65536]);
  });

  it('returns stages with their shapes on request', async () => {
    const { stages, score } = await diad.score(gear, { stages: true });
    const { imageSize: S, steps } = diad.info.bundle;
    assert.ok(stages);
    assert.deepEqual(stages['x']?.shape, [3, S, S]);
    assert.deepEqual(stages['step_x']?.shape, [steps, 4, S / 8, S / 8]);
    assert.deepEqual(stages['distance_layer3']?.shape, [S, S]);
    assert.deepEqual(stages['score']?.shape, []);
    assert.ok(Math.abs(stages['score'].data[0]! - score) < 1e-6);
  });

  it("reconstructs a PNG at the model's image size", async () => {
    const { image, width, height, data } = await diad.reconstruct(gear);
    const { default: sharp } = await import('sharp');
    const decoded = await sharp(image).raw().toBuffer({ resolveWithObject: true });
    assert.deepEqual([decoded.info.width, decoded.info.height], [width, height]);
    assert.deepEqual([...decoded.data], [...data]);
  });

  it('scores one pixel, gray and very flat images', async () => {
    for (const [width, height, channels] of [
      [1, 1, 3],
      [300, 2, 1],
      [3, 500, 4],
    ] as const) {
      const data = new Uint8Array(width * height * channels).fill(90);
      assert.ok(Number.isFinite((await diad.score({ data, width, height, channels })).score));
    }
  });

  it('calls onStep for every step and rejects with the error it throws', async () => {
    const seen: string[] = [];
    await diad.score(gear, { onStep: (step, total) => void seen.push(`${step}/${total}`) });
    assert.deepEqual(
      seen,
      Array.from({ length: 10 }, (_, i) => `${i + 1}/10`),
    );
    const stop = (): void => {
      throw new RangeError('enough');
    };
    await assert.rejects(diad.score(gear, { onStep: stop }), { name: 'RangeError', message: 'enough' });
  });

  it('rejects with the reason of an abort: before, while queued, between steps', async () => {
    await assert.rejects(diad.score(gear, { signal: AbortSignal.abort() }), { name: 'AbortError' });
    const reason = new Error('the belt stopped');
    const queued = new AbortController();
    const pending = [diad.score(gear, { seed: 1 }), diad.score(gear, { signal: queued.signal })];
    queued.abort(reason);
    await assert.rejects(pending[1]!, reason);
    const running = new AbortController();
    const onStep = (step: number): void => {
      if (step === 3) running.abort(reason);
    };
    await assert.rejects(diad.score(gear, { signal: running.signal, onStep }), reason);
    await pending[0];
    await diad.score(gear);
    assert.equal(diad.stats().queued, 0);
    assert.equal(diad.stats().running, 0);
  });

  it('rejects with ERR_DIAD_TIMEOUT without affecting the next call', async () => {
    const { score } = await diad.score(gear);
    await rejects(diad.score(gear, { timeoutMs: 1 }), 'ERR_DIAD_TIMEOUT', /timeout/);
    const crowd = Array.from({ length: 12 }, () => diad.score(gear, { timeoutMs: 60_000 }));
    await rejects(diad.score(gear, { timeoutMs: 30 }), 'ERR_DIAD_TIMEOUT');
    assert.equal((await Promise.all(crowd)).length, 12);
    assert.equal((await diad.score(gear)).score, score);
  });

  it('scoreMany keeps the order, limits images in flight and reads the source on demand', async () => {
    let taken = 0;
    let given = 0;
    let most = 0;
    function* source(): Generator<Buffer> {
      for (let i = 0; i < 9; i++) {
        taken++;
        most = Math.max(most, taken - given);
        yield i % 2 === 0 ? gear : board;
      }
    }
    const scores: number[] = [];
    for await (const { score } of diad.scoreMany(source(), { concurrency: 3 })) {
      given++;
      scores.push(score);
    }
    assert.equal(scores.length, 9);
    assert.ok(most <= 3, `${most} in flight`);
    const [first, second] = scores;
    for (const [i, score] of scores.entries())
      assert.ok(Math.abs(score / (i % 2 === 0 ? first! : second!) - 1) < 1e-5);
    assert.ok(Math.abs(first! - second!) > 1e-4);
  });

  it('scoreMany yields a result while its source is waiting', async () => {
    let wake = (): void => undefined;
    let closed = false;
    async function* camera(): AsyncGenerator<Buffer> {
      try {
        yield gear;
        await new Promise<void>((resolve) => (wake = resolve));
        yield board;
        await new Promise<void>(() => undefined); // never settles
      } finally {
        closed = true;
      }
    }
    const scores: number[] = [];
    for await (const { score } of diad.scoreMany(camera())) {
      scores.push(score);
      if (scores.length === 2) break; // the source is waiting
      wake();
    }
    assert.equal(scores.length, 2);
    assert.equal(closed, false);
    async function* broken(): AsyncGenerator<Buffer> {
      yield gear;
      await Promise.resolve();
      throw new Error('camera unplugged');
    }
    await assert.rejects(async () => {
      for await (const result of diad.scoreMany(broken())) assert.ok(result.score > 0);
    }, /camera unplugged/);
    let left = false;
    function* endless(): Generator<Buffer> {
      try {
        for (;;) yield gear;
      } finally {
        left = true;
      }
    }
    for await (const result of diad.scoreMany(endless(), { concurrency: 2 })) {
      assert.ok(result.score > 0);
      break;
    }
    assert.ok(left, 'the source was closed');
  });

  it('scoreMany ends at a bad image, or yields the failure in order', async () => {
    const images = [gear, Buffer.from('no image'), board];
    const results: ScoreResult[] = [];
    await assert.rejects(
      async () => {
        for await (const result of diad.scoreMany(images)) results.push(result);
      },
      { code: 'ERR_DIAD_IMAGE_DECODE' },
    );
    assert.equal(results.length, 1);
    const settled = [];
    for await (const item of diad.scoreMany(images, { onError: 'yield' })) settled.push(item);
    assert.deepEqual(
      settled.map(({ status, index }) => `${index} ${status}`),
      ['0 fulfilled', '1 rejected', '2 fulfilled'],
    );
    assert.ok(settled[1]?.status === 'rejected' && settled[1].reason instanceof DiadError);
  });

  it('cancels images in flight when scoreMany is left early or aborted', async () => {
    async function* endless(): AsyncGenerator<Buffer> {
      for (;;) yield Promise.resolve(gear);
    }
    const before = diad.stats().cancelled;
    for await (const { score } of diad.scoreMany(endless(), { concurrency: 30 })) {
      assert.ok(score > 0);
      break;
    }
    assert.ok(diad.stats().cancelled > before, 'more than a batch was in flight');
    const controller = new AbortController();
    await assert.rejects(async () => {
      for await (const result of diad.scoreMany(endless(), { signal: controller.signal })) {
        assert.ok(result.score > 0);
        controller.abort(new Error('shift over'));
      }
    }, /shift over/);
    await diad.score(gear);
    assert.equal(diad.stats().queued + diad.stats().running, 0);
  });

  it('runs queued images by priority, and runs a preferred batch size immediately', async () => {
    const own = await Diad.load(undefined, { maxBatch: 4, maxDelayMs: 60_000, preferredBatches: [1, 2] });
    try {
      const pixels = {
        data: new Uint8Array(16 * 16 * 3).fill(90),
        width: 16,
        height: 16,
        channels: 3 as const,
      };
      const order: number[] = [];
      const ask = async (name: number, priority: number): Promise<number> => {
        const { batchSize } = await own.score(pixels, { priority });
        order.push(name);
        return batchSize;
      };
      const busy = ask(0, 0);
      while (own.stats().running === 0) await new Promise((resolve) => setTimeout(resolve, 1));
      const sizes = await Promise.all([busy, ask(1, -1), ask(2, 0), ask(3, 7)]);
      assert.deepEqual(sizes, [1, 1, 2, 2]);
      assert.equal(order.at(-1), 1);
    } finally {
      await own.close();
    }
  });

  it('limits images in flight to queueLimit', async () => {
    const small = await Diad.load(undefined, { queueLimit: 2, warmup: false });
    const calls = [1, 2, 3, 4].map((seed) => small.score(gear, { seed }));
    const outcomes = await Promise.allSettled(calls);
    assert.deepEqual(
      outcomes.map(({ status }) => status),
      ['fulfilled', 'fulfilled', 'rejected', 'rejected'],
    );
    await rejects(calls[3]!, 'ERR_DIAD_QUEUE_FULL', /raise queueLimit/);
    assert.ok((await small.score(gear)).score > 0);
    await small.close();
  });

  it('rejects an image beyond maxPixels', async () => {
    const careful = await Diad.load(undefined, { maxPixels: 1000 });
    await rejects(careful.score(gear), 'ERR_DIAD_IMAGE_TOO_LARGE', /256 x 256/);
    await careful.close();
  });
});
