// Experimental options: the same numbers as the Python reference's, nothing changed without them, company kept apart, thresholds withheld.
import assert from 'node:assert/strict';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import sharp from 'sharp';
import { evaluateDataSet, readDataSet } from '../lib/evaluation/index.js';
import { validateExperimental } from '../lib/experimental.js';
import { Diad, type ExperimentalOptions } from '../lib/index.js';
import { readNpy } from '../lib/npy.js';
import { CPU_FLOAT32, largestDifference } from '../lib/verify.js';
import { demoBundle, example, inFolder, python, rejects, root, runProgram, withBundleCopy } from './support.js';

const SEED = 11;
const picture = path.join(root, 'examples', 'circuit_board-missing_part.png');
const cli = path.join(root, 'dist', 'cli', 'main.js');

const MODES: Readonly<Record<string, ExperimentalOptions>> = {
  'fewer steps': { steps: 4 },
  'a lower start': { startTimestep: 501 },
  'no noise': { startNoise: 'none' },
  'the autoencoder': { compareWith: 'autoencoder' },
  'all together': { steps: 2, startTimestep: 401, startNoise: 'none', compareWith: 'autoencoder' },
};

const flags = (options: ExperimentalOptions): string[] =>
  Object.entries(options).flatMap(([name, value]) => [
    `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
    String(value),
  ]);

async function run(command: string, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runProgram(command, args, { PYTHONPATH: path.join(root, 'python') });
  assert.equal(code, 0, stderr);
  return stdout;
}

/** Compares stages with the reference's dump, each within what is promised of the published system. */
async function compareStages(
  stages: Readonly<Record<string, { shape: readonly number[]; data: Float32Array }>>,
  folder: string,
  what: string,
) {
  for (const [stage, tolerance] of Object.entries(CPU_FLOAT32)) {
    const expected = await readNpy(path.join(folder, `000.${stage}.npy`));
    const mine = stages[stage]!;
    assert.equal(mine.shape.join(), expected.shape.join(), `${what}: shape of ${stage}`);
    const difference = largestDifference(mine.data, expected.data) / (stage === 'score' ? Math.abs(expected.data[0]!) : 1);
    assert.ok(difference <= tolerance, `${what}: ${stage} differs by ${difference}`);
  }
}

describe('experimental options', () => {
  it('Node against the reference, every stage, every option and all together; each changes the result', () =>
    inFolder(async (folder) => {
      const diad = await Diad.load(undefined, { maxBatch: 1 });
      const bytes = await example('circuit_board-missing_part.png');
      const published = await diad.score(bytes, { seed: SEED });
      const steps: Record<string, number> = {};
      for (const [name, experimental] of Object.entries(MODES)) {
        const dump = path.join(folder, name);
        const reference = ['-m', 'diad_reference', 'score', '--bundle', demoBundle, '--seed', String(SEED), '--dump', dump];
        await run(python, [...reference, ...flags(experimental), picture]);
        const { stages = {}, score } = await diad.score(bytes, { seed: SEED, stages: true, experimental });
        await compareStages(stages, dump, name);
        assert.ok(Math.abs(score / published.score - 1) > 1e-4, `${name} changed nothing`);
        steps[name] = stages['step_x']!.shape[0]!;
      }
      assert.deepEqual(steps, { 'fewer steps': 4, 'a lower start': 6, 'no noise': 10, 'the autoencoder': 10, 'all together': 2 });
      const again = await diad.score(bytes, { seed: SEED, experimental: {} });
      assert.equal(again.score, published.score);
      assert.equal(largestDifference(again.map.data, published.map.data), 0);
      await diad.close();
    }));

  it('the command line and diad-engine take the same options', () =>
    inFolder(async (folder) => {
      const options = flags(MODES['all together']!);
      const [expected, node, engine] = ['expected', 'node', 'engine'].map((name) => path.join(folder, name)) as [string, string, string];
      const seed = ['--seed', String(SEED)];
      await run(python, ['-m', 'diad_reference', 'score', '--bundle', demoBundle, ...seed, '--dump', expected, ...options, picture]);
      await run(process.execPath, [cli, 'score', picture, ...seed, '--dump', node, ...options]);
      const frame = path.join(folder, 'frame.ppm');
      const { data, info } = await sharp(picture).removeAlpha().raw().toBuffer({ resolveWithObject: true });
      await writeFile(frame, Buffer.concat([Buffer.from(`P6\n${info.width} ${info.height}\n255\n`), data]));
      const binary = path.join(root, 'build', 'Release', 'diad-engine');
      await run(binary, ['score', '--bundle', demoBundle, ...seed, '--dump', engine, ...options, frame]);
      for (const dump of [node, engine]) {
        const names = (await readdir(dump)).map((name) => name.split('.')[1]!);
        const stages = Object.fromEntries(
          await Promise.all(names.map(async (name) => [name, await readNpy(path.join(dump, `000.${name}.npy`))] as const)),
        );
        await compareStages(stages, expected, path.basename(dump));
      }
      const refused = await runProgram(binary, ['score', '--bundle', demoBundle, '--start-noise', 'pink', frame]);
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /Expected one of gaussian, none for startNoise but received pink/);
      const [rebuilt, changed] = [path.join(folder, 'rebuilt'), path.join(folder, 'changed')];
      await run(process.execPath, [cli, 'reconstruct', picture, '--out', rebuilt]);
      await run(process.execPath, [cli, 'reconstruct', picture, '--out', changed, '--steps', '1']);
      const pixels = async (out: string) => sharp(path.join(out, '000-circuit_board-missing_part.png')).raw().toBuffer();
      assert.notDeepEqual(await pixels(rebuilt), await pixels(changed));
    }));

  it('pictures with other options are not computed together, and steps are counted by option', async () => {
    const diad = await Diad.load(undefined, { maxBatch: 8 });
    const bytes = await example('brick-good.png');
    const kinds: readonly ExperimentalOptions[] = [{}, MODES['all together']!, {}, { startNoise: 'none' }, MODES['all together']!];
    const totals = kinds.map(() => new Set<number>());
    const alone = [];
    for (const experimental of kinds) alone.push(await diad.score(bytes, { experimental }));
    const together = await Promise.all(
      kinds.map((experimental, i) => diad.score(bytes, { experimental, onStep: (_, total) => totals[i]!.add(total) })),
    );
    await diad.close();
    for (const [i, result] of together.entries()) {
      assert.ok(Math.abs(result.score / alone[i]!.score - 1) <= 1e-5, `picture ${i}`);
      assert.ok(result.batchSize <= 2, `picture ${i} in a batch of ${result.batchSize}`);
    }
    assert.deepEqual(
      totals.map((set) => [...set]),
      [[10], [2], [10], [10], [2]],
    );
  });

  it('a calibrated bundle gives no verdict on scores that were computed another way', () =>
    withBundleCopy(async (bundle) => {
      await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify({ threshold: 0.1 }));
      const diad = await Diad.load(bundle);
      const bytes = await example('brick-good.png');
      assert.equal((await diad.score(bytes)).threshold, 0.1);
      assert.equal((await diad.score(bytes, { experimental: {} })).anomalous, true);
      const other = await diad.score(bytes, { experimental: { startNoise: 'none' } });
      assert.equal(other.threshold, undefined);
      assert.equal(other.anomalous, undefined);
      await diad.close();
    }));

  it('an evaluation records the options, and is not resumed with others', () =>
    inFolder(async (folder) => {
      const set = path.join(folder, 'set');
      for (const [kind, name] of [
        ['good', 'brick-good.png'],
        ['bad', 'circuit_board-missing_part.png'],
      ] as const) {
        await mkdir(path.join(set, kind), { recursive: true });
        await writeFile(path.join(set, kind, '0.png'), await example(name));
      }
      const data = await readDataSet(set);
      const diad = await Diad.load();
      const out = path.join(folder, 'out');
      const experimental = { steps: 1, startNoise: 'gaussian' } as const;
      const evaluation = await evaluateDataSet(diad, data, { out, experimental });
      await evaluation.scores.close();
      assert.deepEqual(evaluation.call, { seed: 0n, experimental: { steps: 1 } });
      const expected = await diad.score(await example('brick-good.png'), { experimental });
      assert.ok(Math.abs(evaluation.pictures.find(({ defective }) => !defective)!.score / expected.score - 1) < 1e-5);
      await rejects(evaluateDataSet(diad, data, { out, resume: true }), 'ERR_DIAD_INVALID_ARGUMENT', /experimental/);
      await diad.close();
    }));

  it('what does not fit is refused by name', async () => {
    assert.deepEqual(validateExperimental(undefined), { steps: 0, startTimestep: -1, startNoise: 'gaussian', compareWith: 'input' });
    const diad = await Diad.load();
    const bytes = await example('brick-good.png');
    for (const [options, message] of [
      [{ steps: 0 }, /Expected an integer from 1 to 1000 for experimental.steps but received 0/],
      [{ steps: 11 }, /Expected 1 to 10 for steps but received 11/],
      [{ startTimestep: 500 }, /the bundle's timesteps \(901, 801, .*, 1\) for startTimestep but received 500/],
      [{ startTimestep: 101, steps: 3 }, /Expected 1 to 2 for steps but received 3/],
      [{ startNoise: 'uniform' }, /Expected one of gaussian, none for experimental.startNoise/],
      [{ compareWith: 'mean' }, /Expected one of input, autoencoder for experimental.compareWith/],
      [{ noise: 'none' }, /unknown key noise/],
      [7, /Expected an object for experimental but received 7/],
    ] as const) {
      await rejects(diad.score(bytes, { experimental: options as never }), 'ERR_DIAD_INVALID_ARGUMENT', message);
    }
    assert.deepEqual(diad.info.bundle.timesteps, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]);
    await diad.close();
  });
});
