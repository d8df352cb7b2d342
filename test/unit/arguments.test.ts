// Argument validation: options, seeds, frames, and error messages.
import assert from 'node:assert/strict';
import { DiadError } from '../../lib/index.js';
import { codeOf, fromNative } from '../../lib/errors.js';
import { takeImage } from '../../lib/image/decode.js';
import type { ImageInput } from '../../lib/image/types.js';
import { validateCallOptions, validateLoadOptions, validateManyOptions } from '../../lib/scoring/options.js';

function refuses(action: () => unknown, message: RegExp): void {
  assert.throws(action, (error: unknown) => {
    assert.ok(error instanceof DiadError);
    assert.equal(error.code, 'ERR_DIAD_INVALID_ARGUMENT');
    assert.match(error.message, message);
    return true;
  });
}

describe('arguments', () => {
  it('fills in the defaults of load options', () => {
    const { bundle, limits, native } = validateLoadOptions(undefined, undefined);
    assert.equal(bundle, undefined);
    assert.deepEqual(limits, { maxPixels: 100_000_000, maxFrames: 1 });
    assert.deepEqual(native, {
      device: 'auto',
      precision: 'float32',
      threads: 0,
      maxBatch: 8,
      maxDelayMs: 0,
      queueLimit: 1024,
      preferredBatches: [],
      verify: true,
      warmup: true,
      normality: '',
    });
  });

  const load =
    (options: unknown): (() => unknown) =>
    () =>
      validateLoadOptions(undefined, options as never);
  for (const [options, message] of [
    [{ device: 'gpu' }, /Expected auto, cpu, cuda or cuda:N for device but received "gpu" of type string/],
    [{ device: 'cuda:' }, /for device/],
    [
      { precision: 'int4' },
      /Expected one of float32, bfloat16, float16, int8 for precision but received "int4"/,
    ],
    [{ threads: 0 }, /Expected an integer from 1 to 1024 for threads but received 0 of type number/],
    [{ threads: 1.5 }, /threads/],
    [{ threads: '2' }, /received "2" of type string/],
    [{ maxBatch: NaN }, /maxBatch but received NaN/],
    [{ maxDelayMs: -1 }, /maxDelayMs/],
    [{ preferredBatches: 4 }, /Expected an array of batch sizes for preferredBatches but received 4/],
    [
      { preferredBatches: [2, 9] },
      /Expected an integer from 1 to 8 for preferredBatches\[1\] but received 9/,
    ],
    [{ maxBatch: 2, preferredBatches: [4] }, /from 1 to 2 for preferredBatches\[0\]/],
    [{ queueLimit: null }, /queueLimit but received null of type null/],
    [{ maxPixels: Infinity }, /maxPixels/],
    [{ verify: 1 }, /Expected a boolean for verify/],
    [{ warmup: 'yes' }, /warmup/],
    [{ libtorch: '' }, /libtorch/],
    [{ Device: 'cpu' }, /unknown key Device/],
    [[], /Expected an object for load options/],
    [null, /load options but received null/],
  ] as const) {
    it(`rejects the load options ${JSON.stringify(options)}`, () => {
      refuses(load(options), message);
    });
  }

  it('sorts preferred batch sizes and removes duplicates', () => {
    assert.deepEqual(
      validateLoadOptions(undefined, { maxBatch: 16, preferredBatches: [8, 2, 16, 2] }).native
        .preferredBatches,
      [2, 8, 16],
    );
  });

  it('rejects a bundle that is not a path', () => {
    refuses(() => validateLoadOptions(7 as never, undefined), /bundle but received 7 of type number/);
    refuses(() => validateLoadOptions('a\0b', undefined), /bundle/);
  });

  it('accepts seeds as integers from 0, and as bigint beyond 2^53', () => {
    assert.equal(validateCallOptions(undefined, true).seed, 0n);
    assert.equal(validateCallOptions({ seed: 2 ** 53 - 1 }, true).seed, 9007199254740991n);
    assert.equal(validateCallOptions({ seed: 2n ** 64n - 1n }, true).seed, 18446744073709551615n);
    for (const seed of [-1, 0.5, 2 ** 53, 2n ** 64n, -1n, '1'])
      refuses(() => validateCallOptions({ seed: seed as never }, true), /for seed/);
  });

  it('rejects invalid call options by name', () => {
    refuses(() => validateCallOptions({ timeoutMs: -1 }, true), /timeoutMs/);
    refuses(() => validateCallOptions({ priority: 1001 }, true), /from -1000 to 1000 for priority/);
    refuses(() => validateCallOptions({ signal: {} as never }, true), /Expected an AbortSignal for signal/);
    refuses(() => validateCallOptions({ onStep: 1 as never }, true), /Expected a function for onStep/);
    refuses(() => validateCallOptions({ mapSize: 'big' as never }, true), /mapSize/);
    refuses(() => validateCallOptions({ mapSize: 'image' }, false), /unknown key mapSize/);
    refuses(() => validateCallOptions({ experimental: {} } as never, true), /unknown key experimental/);
  });

  it('validates the iterable and the options of scoreMany', () => {
    assert.deepEqual(validateManyOptions([], { concurrency: 3, onError: 'yield' }, 9).concurrency, 3);
    assert.equal(validateManyOptions([], undefined, 9).concurrency, 9);
    refuses(
      () => validateManyOptions(5 as never, undefined, 9),
      /Expected an iterable of images for images but received 5/,
    );
    refuses(() => validateManyOptions(new Uint8Array(3) as never, undefined, 9), /iterable/);
    refuses(() => validateManyOptions([], { concurrency: 0 }, 9), /concurrency/);
    refuses(() => validateManyOptions([], { onError: 'ignore' as never }, 9), /onError/);
  });

  it('rejects invalid images with a hint', () => {
    const take =
      (image: unknown): (() => unknown) =>
      () =>
        takeImage(image as ImageInput);
    refuses(take('image.png'), /read the file first/);
    for (const image of [undefined, null, 5, {}, []])
      refuses(take(image), /Expected encoded bytes or a raw frame for image/);
    const data = new Uint8Array(12);
    refuses(
      take({ data, width: 2, height: 2, channels: 2 }),
      /Expected 1, 3 or 4 for image.channels but received 2/,
    );
    refuses(
      take({ data, width: 2, height: 3, channels: 3 }),
      /Expected 18 bytes \(2 x 3 x 3\) for image.data but received 12/,
    );
    refuses(take({ data, width: 0, height: 2, channels: 3 }), /image.width/);
    refuses(take({ data, width: 2, height: 2.5, channels: 3 }), /image.height/);
    refuses(
      take({ data: [1, 2, 3], width: 1, height: 1, channels: 3 }),
      /Expected a Uint8Array for image.data/,
    );
  });

  it('copies images when they are taken', () => {
    const bytes = Uint8Array.of(1, 2, 3);
    const frame = { data: Uint8Array.of(7, 8, 9), width: 1, height: 1, channels: 3 as const };
    const [encoded, view, raw] = [takeImage(bytes), takeImage(bytes.buffer), takeImage(frame)];
    bytes.fill(0);
    frame.data.fill(0);
    assert.deepEqual(encoded.kind === 'encoded' && [...encoded.bytes], [1, 2, 3]);
    assert.deepEqual(view.kind === 'encoded' && [...view.bytes], [1, 2, 3]);
    assert.deepEqual(raw.kind === 'frame' && [...raw.frame.data], [7, 8, 9]);
  });

  it('rejects a transferred buffer and treats a view of it as empty', () => {
    const buffer = new ArrayBuffer(8);
    const view = new Uint8Array(buffer);
    structuredClone(buffer, { transfer: [buffer] });
    refuses(
      () => takeImage(buffer),
      /Expected an attached buffer \(this one was transferred or detached\) for image/,
    );
    const taken = takeImage(view);
    assert.equal(taken.kind === 'encoded' && taken.bytes.length, 0); // scoring rejects it as "0 bytes"
  });

  it('respects the offset and length of a view', () => {
    const taken = takeImage(Uint8Array.of(0, 1, 2, 3, 0).subarray(1, 4));
    assert.deepEqual(taken.kind === 'encoded' && [...taken.bytes], [1, 2, 3]);
  });

  it('keeps the code of native errors and sets them as the cause', () => {
    const native = Object.assign(new Error('The queue already holds 3 images'), {
      code: 'ERR_DIAD_QUEUE_FULL',
    });
    const error = fromNative(native);
    assert.equal(error.code, 'ERR_DIAD_QUEUE_FULL');
    assert.equal(error.cause, native);
    assert.equal(error.name, 'DiadError');
    assert.equal(fromNative(new TypeError('odd')).code, 'ERR_DIAD_INTERNAL');
    assert.equal(codeOf(Object.assign(new Error(), { code: 5 })), undefined);
  });
});
