// Metrics: compared with scikit-learn and scikit-image and with hand-computed values; memory and event loop.
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import {
  evaluateArrays,
  METRIC_NAMES,
  METRICS_MODES,
  type EvaluationArrays,
  type Metrics,
} from '../../lib/evaluation/metrics.js';
import { readEvaluationNpz } from '../../lib/evaluation/npz.js';
import { inFolder, python, rejects, root, runModule, runProgram } from '../support/support.js';

type Report = Record<string, Record<string, { classes: Record<string, Metrics>; mean: Metrics }>>;

const reference = { PYTHONPATH: path.join(root, 'python') };

/** Returns the largest difference; undefined values must be undefined on both sides. */
function furthest(expected: Metrics, actual: Metrics): number {
  return Math.max(
    ...METRIC_NAMES.map((name) => {
      const [a, b] = [expected[name], actual[name]];
      return a === null || b === null ? (a === b ? 0 : Infinity) : Math.abs(a - b);
    }),
  );
}

const plain = (classes: Readonly<Record<string, { metrics: Metrics }>>): Record<string, Metrics> =>
  Object.fromEntries(Object.entries(classes).map(([name, { metrics }]) => [name, metrics]));

/** Builds images of one row from scores and defective pixels. */
function rows(
  scores: number[][],
  defects: number[][],
  more: Partial<EvaluationArrays> = {},
): EvaluationArrays {
  return {
    maps: Float64Array.from(scores.flat()),
    masks: Uint8Array.from(defects.flat()),
    height: 1,
    width: scores[0]!.length,
    classNames: scores.map(() => 'part'),
    ...more,
  };
}

describe('metrics', () => {
  it('agrees to 1e-9 with scikit-learn, scikit-image and the definitions of all modes', () =>
    inFolder(async (folder) => {
      const made = await runProgram(python, [path.join(root, 'test', 'support', 'metric_arrays.py'), folder]);
      assert.equal(made.code, 0, made.stderr);
      const files = (await readdir(folder)).map((name) => path.join(folder, name));
      const judged = await runProgram(
        python,
        ['-m', 'diad_reference', 'metrics', ...files, '--mode', 'all'],
        reference,
      );
      assert.equal(judged.code, 0, judged.stderr);
      const report = JSON.parse(judged.stdout) as Report;
      assert.equal(Object.keys(report).length, 12);
      for (const [file, modes] of Object.entries(report)) {
        const arrays = await readEvaluationNpz(file);
        for (const mode of METRICS_MODES) {
          const { classes, mean } = await evaluateArrays(arrays, { mode });
          const expected = modes[mode]!;
          assert.deepEqual(Object.keys(classes).sort(), Object.keys(expected.classes).sort());
          for (const [name, metrics] of Object.entries({ ...plain(classes), mean })) {
            const against = name === 'mean' ? expected.mean : expected.classes[name]!;
            const difference = furthest(against, metrics);
            assert.ok(
              difference < 1e-9,
              `${path.basename(file)} ${mode} ${name}: ${JSON.stringify(metrics)}, not ${JSON.stringify(against)}`,
            );
          }
        }
        // Scratch memory for 32 pixels, which forces every split of the keys, does not change results.
        const whole = await evaluateArrays(arrays);
        const split = await evaluateArrays(arrays, { scratchBytes: 1024 });
        for (const [name, { metrics }] of Object.entries(whole.classes)) {
          assert.ok(
            furthest(metrics, split.classes[name]!.metrics) < 1e-12,
            `${path.basename(file)} ${name}`,
          );
        }
      }
    }));

  it('matches hand-computed values', async () => {
    // Scores 4 3 2 1 with the first and third defective: three of four pairs are in order; precision 1 at
    // recall 1/2, 2/3 at 1.
    const { classes } = await evaluateArrays(
      rows([[4, 3, 2, 1]], [[1, 0, 1, 0]], { imageScores: [4], imageLabels: [1] }),
    );
    const { metrics, pixelF1maxScore, pixelCurve } = classes['part']!;
    assert.equal(metrics.pixel_auroc, 0.75);
    assert.ok(Math.abs(metrics.pixel_ap! - (0.5 + 0.5 * (2 / 3))) < 1e-15);
    assert.equal(metrics.pixel_f1max, 0.8);
    assert.equal(pixelF1maxScore, 2);
    // Two regions: the overlap is 1/2 for rates from 0 to 1/2, so it is 1/2 up to the limit of 0.3.
    assert.equal(metrics.au_pro, 0.5);
    assert.deepEqual([metrics.image_auroc, metrics.image_ap, metrics.image_f1max], [null, 1, 1]);
    assert.deepEqual(
      pixelCurve.map(({ falsePositiveRate, truePositiveRate }) => [falsePositiveRate, truePositiveRate]),
      [
        [0, 0.5],
        [0.5, 0.5],
        [0.5, 1],
        [1, 1],
      ],
    );
  });

  it('counts ties as half and cuts the overlap curve at the limit by interpolation', async () => {
    const { classes } = await evaluateArrays(rows([[1, 1, 1, 1]], [[1, 0, 0, 0]]));
    assert.equal(classes['part']!.metrics.pixel_auroc, 0.5);
    // One step from (0, 0) to (1, 1): the area below 0.3 is 0.3 * 0.3 / 2.
    assert.ok(Math.abs(classes['part']!.metrics.au_pro! - 0.15) < 1e-15);
  });

  it('connects regions at corners; worse than random is below half except in mode diad', async () => {
    const arrays: EvaluationArrays = {
      maps: Float32Array.of(9, 1, 1, 1, 8, 1, 1, 1, 0),
      masks: Uint8Array.of(1, 0, 0, 0, 1, 0, 0, 0, 1),
      height: 3,
      width: 3,
      classNames: ['diagonal'],
    };
    // One region of three pixels, two found before any background, the third after all: overlap 2/3 at every
    // rate up to 0.3.
    const { classes } = await evaluateArrays(arrays);
    assert.ok(Math.abs(classes['diagonal']!.metrics.au_pro! - 2 / 3) < 1e-15);
    const reversed = { ...arrays, maps: arrays.maps.map((score) => -score) as Float32Array };
    const below = (await evaluateArrays(reversed)).classes['diagonal']!.metrics.pixel_auroc!;
    const flipped = (await evaluateArrays(reversed, { mode: 'diad' })).classes['diagonal']!.metrics
      .pixel_auroc!;
    assert.ok(below < 0.5);
    assert.equal(flipped, 1 - below);
  });

  it('returns null for undefined values and averages over classes with a value', async () => {
    const arrays = rows(
      [
        [1, 2],
        [1, 2],
        [3, 4],
      ],
      [
        [0, 1],
        [0, 0],
        [0, 0],
      ],
      { classNames: ['a', 'a', 'b'] },
    );
    const { classes, mean } = await evaluateArrays(arrays);
    assert.deepEqual(Object.values(classes['b']!.metrics), [null, null, null, null, null, null, null]);
    assert.equal(mean.pixel_auroc, classes['a']!.metrics.pixel_auroc);
    assert.notEqual(mean.pixel_auroc, null);
  });

  it('rejects invalid arrays by name', async () => {
    const good = rows([[1, 2]], [[0, 1]]);
    const bad = (more: Partial<EvaluationArrays>): Promise<unknown> => evaluateArrays({ ...good, ...more });
    await rejects(
      bad({ maps: Float64Array.of(1, NaN) }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /map 0 holds -?nan in row 0, column 1/,
    );
    await rejects(bad({ maps: Float64Array.of(1) }), 'ERR_DIAD_INVALID_ARGUMENT', /2 elements for maps/);
    await rejects(
      bad({ masks: Uint8Array.of(1, 0, 1) }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /2 elements for masks/,
    );
    await rejects(bad({ imageScores: [1, 2] }), 'ERR_DIAD_INVALID_ARGUMENT', /imageScores/);
    await rejects(bad({ imageScores: [Infinity] }), 'ERR_DIAD_INVALID_ARGUMENT', /finite image scores/);
    await rejects(bad({ classNames: [] }), 'ERR_DIAD_INVALID_ARGUMENT');
    await rejects(
      evaluateArrays(good, { mode: 'best' as never }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /one of exact, diad/,
    );
    await rejects(evaluateArrays(good, { fprLimit: 0 }), 'ERR_DIAD_INVALID_ARGUMENT', /fprLimit/);
  });

  it('does not block the event loop or the exit of the process', async () => {
    const side = 1024;
    const maps = Float32Array.from({ length: 4 * side * side }, (_, i) => Math.sin(i * 12.9898) * 43758.5453);
    const masks = Uint8Array.from(maps, (_, i) => (i % 997 < 3 ? 1 : 0));
    const arrays = { maps, masks, height: side, width: side, classNames: ['a', 'a', 'b', 'b'] };
    let settled = false;
    let turns = 0;
    const done = evaluateArrays(arrays).finally(() => (settled = true));
    while (!settled) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      turns += 1;
    }
    await done;
    assert.ok(turns > 5, `${turns} turns of the loop`);
    const source = `
      import { evaluateArrays } from ${JSON.stringify(path.join(root, 'dist', 'evaluation', 'metrics.js'))};
      const maps = Float64Array.from({ length: 1 << 23 }, (_, i) => Math.sin(i));
      evaluateArrays({ maps, masks: new Uint8Array(1 << 23).fill(1, 0, 99), height: 1 << 12, width: 1 << 11, classNames: ['a'] });
      setTimeout(() => process.exit(7), 20);`;
    const { code, signal, stderr } = await runModule(source);
    assert.deepEqual([code, signal], [7, null], stderr);
  });
});
