// Parity of Node, diad-engine and the Python reference at every stage.
import assert from 'node:assert/strict';
import { cp, writeFile } from 'node:fs/promises';
import path from 'node:path';
import sharp from 'sharp';
import { Diad } from '../../lib/index.js';
import { readNpy } from '../../lib/io/npy.js';
import { CPU_FLOAT32, largestDifference } from '../../lib/verify/verify.js';
import {
  baseBundle,
  editManifest,
  example,
  inFolder,
  publishedBundle,
  python,
  root,
  runProgram,
  withBundleCopy,
} from '../support/support.js';

const IMAGES = ['circuit_board-missing_part.png', 'brick-good.png', 'capsule-crack.jpg'];
const SEED = 11;
const CALIBRATED = new Set(['calibration.json', 'normality.safetensors']);
// Factor on the tolerance of ten steps: the measured difference of step_x is 2.1e-4; the cause is unknown.
const LONG_STEPS = 4;
// For one image of the published design in miniature, as counted by PyTorch's FlopCounterMode on the
// reference. The engine counts 2.5 % more; the cause is unknown.
const NEEDED_GFLOP = 1.434;
const JPEG_TOLERANCE = 1e-4; // for the map: decoders can differ by one level

interface Step {
  readonly timestep: number;
  readonly alphaBar: number;
  readonly alphaBarPrev: number;
}

interface Schedule {
  noise: { readonly timestep: number; readonly sqrtAlphaBar: number; readonly sqrtOneMinusAlphaBar: number };
  steps: readonly Step[];
}

describe('parity with the reference', () => {
  for (const [name, source] of [
    ['the published design', publishedBundle],
    ['the base bundle, not calibrated', baseBundle],
  ] as const)
    it(`matches the reference at every stage in Node and diad-engine: ${name}`, () =>
      inFolder(async (folder) => {
        const bundle = path.join(folder, 'bundle');
        await cp(source, bundle, { recursive: true, filter: (file) => !CALIBRATED.has(path.basename(file)) });
        const files = IMAGES.map((name) => path.join(root, 'examples', name));
        const reference = path.join(folder, 'reference');
        const args = [
          '-m',
          'diad_reference',
          'score',
          '--bundle',
          bundle,
          '--seed',
          String(SEED),
          '--dump',
          reference,
          ...files,
        ];
        const { stdout, stderr, code } = await runProgram(python, args, {
          PYTHONPATH: path.join(root, 'python'),
        });
        assert.equal(code, 0, stderr);
        const scores = stdout
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line) as { file: string; score: number; seed: number });
        assert.deepEqual(
          scores.map(({ file, seed }) => [file, seed]),
          files.map((file) => [file, SEED]),
        );

        const diad = await Diad.load(bundle);
        for (const [i, name] of IMAGES.entries()) {
          const {
            score,
            map,
            stages = {},
          } = await diad.score(await example(name), { seed: SEED, stages: true });
          const jpeg = name.endsWith('.jpg');
          assert.ok(
            Math.abs(score / scores[i]!.score - 1) < (jpeg ? JPEG_TOLERANCE : 1e-5),
            `${name}: score ${score}, reference ${scores[i]!.score}`,
          );
          const expectedMap = await readNpy(path.join(reference, `00${i}.map.npy`));
          assert.ok(
            largestDifference(map.data, expectedMap.data) < (jpeg ? JPEG_TOLERANCE : 2e-5),
            `${name}: map`,
          );
          if (jpeg) continue;
          for (const [stage, tolerance] of Object.entries(CPU_FLOAT32)) {
            const expected = await readNpy(path.join(reference, `00${i}.${stage}.npy`));
            assert.equal(stages[stage]!.shape.join(), expected.shape.join(), `${name}: shape of ${stage}`);
            const difference = largestDifference(stages[stage]!.data, expected.data);
            assert.ok(difference <= tolerance, `${name}: ${stage} differs by ${difference}`);
          }
        }
        await diad.close();

        const frame = path.join(folder, 'frame.ppm');
        const { data, info } = await sharp(files[0])
          .removeAlpha()
          .raw()
          .toBuffer({ resolveWithObject: true });
        await writeFile(frame, Buffer.concat([Buffer.from(`P6\n${info.width} ${info.height}\n255\n`), data]));
        const engine = path.join(root, 'build', 'Release', 'diad-engine');
        const dump = path.join(folder, 'engine');
        const run = await runProgram(engine, [
          'score',
          '--bundle',
          bundle,
          '--seed',
          String(SEED),
          '--dump',
          dump,
          frame,
        ]);
        assert.equal(run.code, 0, run.stderr);
        assert.ok(
          Math.abs((JSON.parse(run.stdout) as { score: number }).score / scores[0]!.score - 1) < 1e-5,
        );
        for (const [stage, tolerance] of Object.entries(CPU_FLOAT32)) {
          const [mine, expected] = await Promise.all([
            readNpy(path.join(dump, `000.${stage}.npy`)),
            readNpy(path.join(reference, `000.${stage}.npy`)),
          ]);
          assert.deepEqual(mine.shape, expected.shape);
          assert.ok(largestDifference(mine.data, expected.data) <= tolerance, `diad-engine: ${stage}`);
        }
      }));

  it('matches with a sampler of two steps that starts without noise', () =>
    withBundleCopy(async (bundle) => {
      await editManifest(bundle, (manifest) => {
        const schedule: Schedule = manifest['schedule']!;
        const [first, second] = schedule.steps as [Step, Step];
        schedule.noise = {
          ...schedule.noise,
          sqrtAlphaBar: Math.sqrt(first.alphaBar),
          sqrtOneMinusAlphaBar: 0,
        };
        schedule.steps = [first, { ...second, alphaBarPrev: 1 }];
      });
      const file = path.join(root, 'examples', IMAGES[0]!);
      const dump = path.join(bundle, '..', 'reference');
      const args = [
        '-m',
        'diad_reference',
        'score',
        '--bundle',
        bundle,
        '--seed',
        String(SEED),
        '--dump',
        dump,
        file,
      ];
      const { stderr, code } = await runProgram(python, args, { PYTHONPATH: path.join(root, 'python') });
      assert.equal(code, 0, stderr);
      const diad = await Diad.load(bundle, { calibration: false });
      const totals = new Set<number>();
      const { stages = {} } = await diad.score(await example(IMAGES[0]!), {
        seed: SEED,
        stages: true,
        onStep: (_, total) => totals.add(total),
      });
      await diad.close();
      assert.deepEqual([...totals], [2]);
      for (const [stage, tolerance] of Object.entries(CPU_FLOAT32)) {
        const expected = await readNpy(path.join(dump, `000.${stage}.npy`));
        assert.equal(stages[stage]!.shape.join(), expected.shape.join(), `shape of ${stage}`);
        const difference = largestDifference(stages[stage]!.data, expected.data);
        assert.ok(difference <= LONG_STEPS * tolerance, `${stage} differs by ${difference}`);
      }
    })).timeout(120_000);

  it('diad-engine profile breaks down the time of one image', () =>
    inFolder(async (folder) => {
      const engine = path.join(root, 'build', 'Release', 'diad-engine');
      const image = path.join(folder, 'gray.pgm');
      await writeFile(image, Buffer.concat([Buffer.from('P5 2 2 255\n'), Buffer.from([1, 2, 3, 4])]));
      const run = await runProgram(engine, ['profile', '--bundle', publishedBundle, '--repeat', '2', image]);
      assert.equal(run.code, 0, run.stderr);
      assert.equal(run.stderr, '');
      const { profiledMs, operators } = JSON.parse(run.stdout) as {
        profiledMs: number;
        operators: { operator: string; calls: number; ms: number; gflop: number | null }[];
      };
      const inside = operators.reduce((sum, { ms }) => sum + ms, 0);
      assert.ok(
        inside > profiledMs / 2 && inside <= profiledMs,
        `${inside} of ${profiledMs} ms are inside operators`,
      );
      const counted = operators.reduce((sum, { gflop }) => sum + (gflop ?? 0), 0);
      assert.ok(Math.abs(counted / NEEDED_GFLOP - 1) < 0.03, `${counted} GFLOP counted`);
      const layers = operators.filter(({ operator }) => operator.startsWith('diad::'));
      const names = new Set(layers.map(({ operator }) => operator.split(',')[0]));
      assert.deepEqual([...names].toSorted(), [
        'diad::attention',
        'diad::geglu',
        'diad::group_norm',
        'diad::instance_norm',
        'diad::layer_norm',
      ]);
      const wrong = await runProgram(engine, ['profile', '--bundle', publishedBundle]);
      assert.equal(wrong.code, 1);
      assert.match(wrong.stderr, /Expected one FILE but received 0/);
    }));

  it('can run the branch independent of the hint on a separate stream without changing the score', () =>
    inFolder(async (folder) => {
      const engine = path.join(root, 'build', 'Release', 'diad-engine');
      const image = path.join(folder, 'gray.pgm');
      await writeFile(image, Buffer.concat([Buffer.from('P5 2 2 255\n'), Buffer.from([1, 2, 3, 4])]));
      const run = async (command: string, switched: string): Promise<unknown> => {
        const { code, stdout, stderr } = await runProgram(
          engine,
          [command, '--bundle', publishedBundle, image],
          {
            DIAD_CUDA_STREAMS: switched,
          },
        );
        assert.equal(code, 0, stderr);
        return JSON.parse(stdout);
      };
      const marks = async (switched: string): Promise<Record<string, number>> => {
        const { operators } = (await run('profile', switched)) as {
          operators: { operator: string; calls: number }[];
        };
        const found = operators.filter(({ operator }) => /^diad::\w+_side/.test(operator));
        return Object.fromEntries(found.map(({ operator, calls }) => [operator.split(',')[0]!, calls]));
      };
      assert.deepEqual(await marks('0'), {});
      assert.deepEqual(await marks('1'), {
        'diad::enter_side': 10,
        'diad::leave_side': 10,
        'diad::join_side': 10,
      });
      const plain = (await run('score', '0')) as { score: number };
      assert.equal(((await run('score', '1')) as { score: number }).score, plain.score);
    }));

  it('diad-engine reports unreadable files and continues', () =>
    inFolder(async (folder) => {
      const engine = path.join(root, 'build', 'Release', 'diad-engine');
      const good = path.join(folder, 'good.pgm');
      await writeFile(good, Buffer.concat([Buffer.from('P5 2 2 255\n'), Buffer.from([1, 2, 3, 4])]));
      const run = await runProgram(engine, [
        'score',
        '--bundle',
        publishedBundle,
        path.join(folder, 'none.ppm'),
        good,
      ]);
      assert.equal(run.code, 1);
      assert.match(run.stderr, /none\.ppm: cannot be read/);
      assert.equal(run.stdout.trim().split('\n').length, 1);
      const unknown = await runProgram(engine, ['score', '--bundle', '/nowhere', good]);
      assert.equal(unknown.code, 1);
      assert.match(unknown.stderr, /ERR_DIAD_BUNDLE_NOT_FOUND/);
    }));
});
