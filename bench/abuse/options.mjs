// Everything a caller can put into an option, by fast-check.
import fc from 'fast-check';
import { isDiadError, library, picture, within } from './harness.mjs';

export const abuse = "caller's options of load, score, reconstruct and scoreMany, and the image argument: fast-check over the whole space";
export const mustHold = 'a result, or ERR_DIAD_INVALID_ARGUMENT naming the option';
export const amounts = { short: 160, full: 20_000 };

const junk = fc.oneof(
  fc.anything({ withBigInt: true, withDate: true, withMap: true, withTypedArray: true, maxDepth: 2 }),
  fc.constant(Symbol('s')),
);
const or = (...sound) => fc.oneof({ weight: 15, arbitrary: fc.oneof(...sound) }, { weight: 1, arbitrary: junk });
const given = (shape) => fc.record(shape, { requiredKeys: [] });
const plusUnknown = (options) =>
  fc
    .tuple(options, fc.oneof({ weight: 20, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: fc.string() }))
    .map(([known, name]) => (name === null ? known : { ...known, [name]: 1 }));

const call = {
  seed: or(fc.nat(), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.constantFrom(-1, 0.5, -1n, 2n ** 64n, 2 ** 53)),
  timeoutMs: or(fc.integer({ min: 20_000, max: 2 ** 31 - 1 }), fc.constantFrom(0, 1, -1, 0.5, 2 ** 31, NaN)),
  onStep: or(fc.constant(() => {})),
  signal: or(fc.constant(new AbortController().signal)),
};
const scoring = {
  ...call,
  mapSize: or(fc.constantFrom('model', 'image', 'model', 'image', 'Model')),
  stages: or(fc.boolean()),
  className: or(fc.string()),
  tile: or(given({ size: or(fc.integer({ min: 10, max: 70_000 })), overlap: or(fc.integer({ min: -1, max: 40_000 })) })),
};
const many = { ...scoring, concurrency: or(fc.integer({ min: -1, max: 10 })), onError: or(fc.constantFrom('throw', 'yield', 'ignore')) };
delete many.onStep;
const loading = {
  device: or(fc.constantFrom('cpu', 'auto', 'cuda', 'cuda:0', 'cuda:99', 'CPU', 'tpu')),
  precision: or(fc.constantFrom('float32', 'bfloat16', 'float64')),
  threads: or(fc.integer({ min: -1, max: 2000 })),
  maxBatch: or(fc.integer({ min: -1, max: 300 })),
  maxDelayMs: or(fc.integer({ min: -1, max: 100_000 })),
  queueLimit: or(fc.integer()),
  maxPixels: or(fc.integer()),
  verify: or(fc.boolean()),
  warmup: or(fc.boolean()),
  libtorch: or(fc.constantFrom('/nowhere', '')),
};
const bytes = fc.oneof(
  { weight: 4, arbitrary: fc.constant(picture()) },
  { weight: 1, arbitrary: fc.constantFrom(new Uint8Array(0), new ArrayBuffer(4), 'path.png') },
);
const frame = given({
  data: or(fc.uint8Array({ maxLength: 64 })),
  width: or(fc.integer({ min: -1, max: 8 }), fc.double()),
  height: or(fc.integer({ min: -1, max: 8 }), fc.constant(2 ** 53)),
  channels: or(fc.integer({ min: 0, max: 5 })),
});
const image = fc.oneof({ weight: 6, arbitrary: bytes }, { weight: 3, arbitrary: frame }, { weight: 1, arbitrary: junk });
const options = (shape) => fc.oneof({ weight: 19, arbitrary: plusUnknown(given(shape)) }, { weight: 1, arbitrary: junk });

const ALLOWED = /^ERR_DIAD_(INVALID_ARGUMENT|IMAGE_DECODE|IMAGE_TOO_LARGE|TIMEOUT|DEVICE_UNAVAILABLE|LIBTORCH_NOT_FOUND|BUNDLE_NOT_FOUND)$/;
const NAMES = new RegExp(
  `\\b(${[...Object.keys({ ...scoring, ...many, ...loading }), 'bundle', 'image', 'image\\.\\w+', 'images', 'options', 'unknown key'].join('|')})`,
);

/** A frame that was valid, but is large or tiled into thousands of tiles, would only take time. */
const cheap = (value) => value?.tile?.size === undefined || typeof value.tile.size !== 'number' || value.tile.size >= 64;

export async function run(count) {
  const { Diad } = await library();
  const diad = await Diad.load(undefined, { maxBatch: 1 });
  const golden = (await diad.score(picture())).score;
  const tally = { results: 0, refused: 0, other: 0 };
  const failures = [];

  async function judged(what, action) {
    try {
      await within(60_000, action(), what);
      tally.results++;
    } catch (error) {
      if (!isDiadError(error) || !ALLOWED.test(error.code))
        throw new Error(`${what}: ${error?.code ?? ''} ${String(error?.message ?? error)}`, { cause: error });
      if (error.code !== 'ERR_DIAD_INVALID_ARGUMENT') tally.other++;
      else if (NAMES.test(error.message)) tally.refused++;
      else throw new Error(`${what}: the message names no option: ${error.message}`);
    }
  }

  const kinds = {
    score: fc.asyncProperty(image, options(scoring), async (input, chosen) => {
      fc.pre(cheap(chosen));
      await judged('score', () => diad.score(input, chosen));
    }),
    reconstruct: fc.asyncProperty(image, options(call), (input, chosen) => judged('reconstruct', () => diad.reconstruct(input, chosen))),
    scoreMany: fc.asyncProperty(fc.oneof(fc.array(bytes, { maxLength: 2 }), junk), options(many), async (images, chosen) => {
      fc.pre(cheap(chosen));
      await judged('scoreMany', async () => {
        const results = diad.scoreMany(images, chosen);
        while (!(await results.next()).done);
      });
    }),
    load: fc.asyncProperty(fc.oneof(fc.constantFrom(undefined, '/nowhere', ''), junk), options(loading), async (bundle, chosen) => {
      // Sound options would load a bundle a time: what is tried here are those that must not get that far.
      await judged('load', async () => (await Diad.load(bundle ?? '/nowhere', chosen)).close());
    }),
  };
  const share = Math.ceil(count / Object.keys(kinds).length);
  for (const [name, property] of Object.entries(kinds)) {
    const outcome = await fc.check(property, { numRuns: share, seed: 9, endOnFailure: true });
    if (outcome.failed)
      failures.push(`${name}: ${outcome.errorInstance?.message ?? outcome.error} with ${fc.stringify(outcome.counterexample)}`);
  }
  if (tally.results === 0) failures.push('not one call gave a result: the group shows too little');
  const { score } = await diad.score(picture());
  if (score !== golden) failures.push(`the score afterwards is ${score}, not ${golden}`);
  await diad.close();
  return {
    measured: `${tally.results} results, ${tally.refused} refused by name, ${tally.other} refused otherwise; ${failures.length} bad`,
    failures,
  };
}
