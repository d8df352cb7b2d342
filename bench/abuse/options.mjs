// Everything a caller can put into an option, by fast-check: sound calls, calls with one wrong option, and anything at all.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { isDiadError, library, readTestImage, python, root, within } from './harness.mjs';

export const abuse =
  "caller's options of load, score, reconstruct and scoreMany, and the image argument: fast-check over the whole space";
export const mustHold =
  'sound options: a result; one wrong option: ERR_DIAD_INVALID_ARGUMENT naming it; anything at all: a result or an error that names an option';
export const amounts = { short: 120, full: 20_000 };

/** An image of the model's own size: what is tried here are options, not decoders. */
async function smallImage() {
  const { default: sharp } = await import('sharp');
  return sharp(readTestImage()).resize(64, 64).png().toBuffer();
}

const junk = fc.oneof(
  fc.anything({ withBigInt: true, withDate: true, withMap: true, withTypedArray: true, maxDepth: 2 }),
  fc.constant(Symbol('s')),
);
const among = fc.constantFrom;

/** Of every option: values that must be taken, and values that must be refused by its name. */
const CALL = {
  seed: [
    fc.oneof(fc.nat(), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })),
    among(-1, 0.5, -1n, 2n ** 64n, 2 ** 53, '1', null, NaN, {}),
  ],
  timeoutMs: [fc.integer({ min: 20_000, max: 2 ** 31 - 1 }), among(-1, 0.5, 2 ** 31, NaN, '5', null)],
  priority: [fc.integer({ min: -1000, max: 1000 }), among(-1001, 1001, 0.5, '1', null)],
  onStep: [fc.constant(() => {}), among(1, 'f', {}, null)],
  signal: [fc.constant(new AbortController().signal), among({}, 1, null, 'x', { aborted: false })],
};
const SCORE_ONLY = {
  mapSize: [among('model', 'image'), among('Model', '', 1, null)],
  stages: [fc.boolean(), among(1, 'true', null)],
  className: [fc.string({ minLength: 1 }).filter((name) => !name.includes('\0')), among('', 'a\0b', 1, null)],
  tile: [
    fc
      .integer({ min: 32, max: 65_536 })
      .chain((size) =>
        fc.record({ size: fc.constant(size), overlap: fc.integer({ min: 0, max: size >> 2 }) }),
      ),
    among(
      null,
      1,
      [],
      {},
      { size: 15 },
      { size: 64, overlap: 33 },
      { size: 64, extra: 1 },
      { size: '64' },
      { size: 64, overlap: -1 },
    ),
  ],
};
const SCORE = { ...CALL, ...SCORE_ONLY };
const MANY = {
  seed: CALL.seed,
  timeoutMs: CALL.timeoutMs,
  priority: CALL.priority,
  signal: CALL.signal,
  ...SCORE_ONLY,
  concurrency: [fc.integer({ min: 1, max: 10 }), among(0, -1, 1.5, 1_000_001, '2', null)],
  onError: [among('throw', 'yield'), among('ignore', '', null, 1)],
};
const count = (low, high) => [
  fc.integer({ min: low, max: high }),
  among(low - 1, high + 1, 1.5, '2', null, NaN),
];
const flag = [fc.boolean(), among(1, 'yes', null)];
const LOAD = {
  device: [among('cpu', 'auto'), among('CPU', 'tpu', 'cuda:', 'cuda:-1', '', 1, null)],
  precision: [fc.constant('float32'), among('float64', '', 1, null)],
  threads: [fc.integer({ min: 1, max: 2 }), among(0, -1, 1025, 1.5, '2', null)],
  maxBatch: count(1, 256),
  maxDelayMs: [fc.integer({ min: 0, max: 20 }), among(-1, 60_001, 0.5, '1', null)],
  preferredBatches: [fc.constant([1]), among(1, 'x', null, [0], [257], [1.5], {})],
  queueLimit: count(1, 1_000_000),
  maxPixels: count(1, Number.MAX_SAFE_INTEGER),
  maxFrames: count(1, 1_000_000),
  verify: flag,
  warmup: flag,
};

const NAMES = new RegExp(
  `\\b(${[...Object.keys({ ...SCORE, ...MANY, ...LOAD }), 'libtorch', 'bundle', 'image', 'image\\.\\w+', 'images', 'options', 'unknown key'].join('|')})`,
);
const ALLOWED =
  /^ERR_DIAD_(INVALID_ARGUMENT|IMAGE_DECODE|IMAGE_TOO_LARGE|TIMEOUT|DEVICE_UNAVAILABLE|LIBTORCH_NOT_FOUND|BUNDLE_NOT_FOUND)$/;

const column = (options, which) =>
  Object.fromEntries(Object.entries(options).map(([name, pair]) => [name, pair[which]]));

/** `{ chosen, expected }`: expected is 'result', the name of the wrong option, or undefined where either will do. */
function chosenFrom(options) {
  const sound = fc.record(column(options, 0), { requiredKeys: [] }).map((chosen) => {
    if (chosen.tile !== undefined) delete chosen.stages; // not together
    return chosen;
  });
  const wrong = among(...Object.keys(options)).chain((name) =>
    fc
      .tuple(sound, options[name][1])
      .map(([chosen, value]) => ({ chosen: { ...chosen, [name]: value }, expected: name })),
  );
  const unknown = fc.tuple(
    sound,
    fc.string().filter((name) => !(name in options) && name !== 'libtorch' && name !== '__proto__'),
  );
  const either = Object.fromEntries(
    Object.entries(options).map(([name, pair]) => [name, fc.oneof(pair[0], pair[1], junk)]),
  );
  return fc.oneof(
    { weight: 5, arbitrary: sound.map((chosen) => ({ chosen, expected: 'result' })) },
    { weight: 4, arbitrary: wrong },
    {
      weight: 1,
      arbitrary: unknown.map(([chosen, name]) => ({
        chosen: { ...chosen, [name]: 1 },
        expected: 'unknown key',
      })),
    },
    { weight: 2, arbitrary: fc.record(either, { requiredKeys: [] }).map((chosen) => ({ chosen })) },
    { weight: 1, arbitrary: junk.map((chosen) => ({ chosen })) },
  );
}

const frame = fc.record(
  {
    data: fc.oneof(fc.uint8Array({ maxLength: 64 }), junk),
    width: fc.oneof(fc.integer({ min: -1, max: 8 }), fc.double(), junk),
    height: fc.oneof(fc.integer({ min: -1, max: 8 }), fc.constant(2 ** 53), junk),
    channels: fc.oneof(fc.integer({ min: 0, max: 5 }), junk),
  },
  { requiredKeys: [] },
);
const soundFrame = fc
  .tuple(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 12 }), among(1, 3, 4))
  .chain(([width, height, channels]) => {
    const length = width * height * channels;
    return fc
      .uint8Array({ minLength: length, maxLength: length })
      .map((data) => ({ data, width, height, channels }));
  });

/** Thousands of tiles, or a wait that is meant to end, would only take time. */
const isWithin = (value, low, high) =>
  typeof value !== 'number' || Number.isNaN(value) || (value >= low && value <= high);
const cheap = (chosen) =>
  isWithin(chosen?.tile?.size, 32, Infinity) && isWithin(chosen?.maxDelayMs, -Infinity, 1000);

/** A bundle of random weights in miniature: options are refused or taken alike, and a score takes milliseconds. */
function tinyBundle(folder) {
  const env = { ...process.env, PYTHONPATH: path.join(root, 'python') };
  const args = [
    '-W',
    'ignore',
    '-m',
    'diad_reference',
    'export',
    '--random',
    '--config',
    'tiny',
    '--out',
    path.join(folder, 'tiny'),
  ];
  execFileSync(python, args, { env, stdio: ['ignore', 'ignore', 'inherit'] });
  return path.join(folder, 'tiny');
}

export async function run(amount) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'diad-options-'));
  try {
    return await tried(amount, tinyBundle(folder));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function tried(amount, bundle) {
  const { Diad } = await library();
  const diad = await Diad.load(bundle, { maxBatch: 1 });
  const bytes = await smallImage();
  const golden = (await diad.score(bytes)).score;
  const tally = { results: 0, refused: 0, other: 0 };
  const failures = [];

  async function judged(what, expected, action) {
    try {
      await within(60_000, action(), what);
      tally.results++;
      if (expected !== undefined && expected !== 'result')
        throw new Error(`${what}: a wrong ${expected} was taken`);
    } catch (error) {
      if (!isDiadError(error) || !ALLOWED.test(error.code))
        throw new Error(`${what}: ${error?.code ?? ''} ${String(error?.message ?? error)}`, { cause: error });
      if (expected === 'result')
        throw new Error(`${what}: sound options were refused: ${error.message}`, { cause: error });
      if (error.code !== 'ERR_DIAD_INVALID_ARGUMENT') tally.other++;
      else if (expected === undefined ? NAMES.test(error.message) : error.message.includes(expected))
        tally.refused++;
      else
        throw new Error(`${what}: the message does not name ${expected ?? 'an option'}: ${error.message}`, {
          cause: error,
        });
    }
  }

  const soundImage = fc.oneof(fc.constant(bytes), soundFrame);
  const anyImage = fc.oneof(frame, junk, among(new Uint8Array(0), new ArrayBuffer(4), 'path.png'));
  const input = fc.oneof(
    { weight: 5, arbitrary: soundImage.map((image) => [image, true]) },
    { weight: 2, arbitrary: anyImage.map((image) => [image, false]) },
  );
  const expectedOf = (isSound, expected) => (isSound ? expected : undefined);

  const kinds = {
    score: fc.asyncProperty(input, chosenFrom(SCORE), async ([image, isSound], { chosen, expected }) => {
      fc.pre(cheap(chosen));
      await judged('score', expectedOf(isSound, expected), () => diad.score(image, chosen));
    }),
    reconstruct: fc.asyncProperty(input, chosenFrom(CALL), ([image, isSound], { chosen, expected }) =>
      judged('reconstruct', expectedOf(isSound, expected), () => diad.reconstruct(image, chosen)),
    ),
    scoreMany: fc.asyncProperty(
      fc.array(soundImage, { maxLength: 2 }),
      chosenFrom(MANY),
      async (images, { chosen, expected }) => {
        fc.pre(cheap(chosen));
        await judged('scoreMany', expected, async () => {
          const results = diad.scoreMany(images, chosen);
          while (!(await results.next()).done);
        });
      },
    ),
    'scoreMany of anything': fc.asyncProperty(
      fc.oneof(fc.array(anyImage, { maxLength: 2 }), junk),
      async (images) => {
        await judged('scoreMany', undefined, async () => {
          const results = diad.scoreMany(images);
          while (!(await results.next()).done);
        });
      },
    ),
    load: fc.asyncProperty(chosenFrom(LOAD), async ({ chosen, expected }) => {
      fc.pre(cheap(chosen));
      await judged('load', expected, async () => (await Diad.load(bundle, chosen)).close());
    }),
    'load of anything': fc.asyncProperty(
      junk.filter((name) => name !== undefined),
      (name) => judged('load', undefined, async () => (await Diad.load(name)).close()),
    ),
  };
  const share = Math.ceil(amount / Object.keys(kinds).length);
  for (const [name, property] of Object.entries(kinds)) {
    const outcome = await fc.check(property, { numRuns: share, seed: 9, endOnFailure: true });
    if (outcome.failed)
      failures.push(
        `${name}: ${outcome.errorInstance?.message ?? outcome.error} with ${fc.stringify(outcome.counterexample)}`,
      );
  }
  if (tally.results < amount / 8)
    failures.push(`only ${tally.results} calls gave a result: the group shows too little`);
  const { score } = await diad.score(bytes);
  if (score !== golden) failures.push(`the score afterwards is ${score}, not ${golden}`);
  await diad.close();
  return {
    measured: `${tally.results} results, ${tally.refused} refused by name, ${tally.other} refused otherwise; ${failures.length} bad`,
    failures,
  };
}
