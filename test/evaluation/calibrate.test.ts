// Thresholds: bounded quantiles, F1, verdicts; diad calibrate.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { setImmediate, setTimeout } from 'node:timers/promises';
import {
  normalizedScore,
  parseCalibration,
  thresholdsFor,
  type Calibration,
} from '../../lib/calibration/calibration.js';
import { calibrate } from '../../lib/evaluation/calibrate.js';
import { writeCalibration } from '../../lib/evaluation/calibration-files.js';
import { readGoodImages } from '../../lib/evaluation/datasets/good.js';
import { boundedQuantile, f1maxThreshold, imagesNeeded } from '../../lib/evaluation/thresholds.js';
import { DiadError, Diad } from '../../lib/index.js';
import { writeImage } from '../support/dataset-trees.js';
import { HANG_GUARD_MS, inFolder, rejects, root, runProgram, withBundleCopy } from '../support/support.js';

const cli = path.join(root, 'dist', 'cli', 'main.js');
const run = (args: readonly string[]) => runProgram(process.execPath, [cli, ...args]);

describe('thresholds', () => {
  it('boundedQuantile is the smallest order statistic that holds the target for a further image', () => {
    const values = Array.from({ length: 99 }, (_, i) => 99 - i);
    assert.equal(boundedQuantile(values, 0.01), 99);
    // 98 values: even the largest is exceeded with probability 1/99.
    assert.equal(boundedQuantile(values.slice(1), 0.01), undefined);
    assert.equal(boundedQuantile(values, 0.1), 90);
    assert.equal(boundedQuantile([3, 1, 2], 0.25), 3);
    assert.equal(boundedQuantile([], 0.5), undefined);
    assert.deepEqual([0.01, 0.05, 0.25, 0.5, 0.3].map(imagesNeeded), [99, 19, 3, 1, 3]);
  });

  it('boundedQuantile holds the target false positive rate over many draws', () => {
    let state = 12345;
    const random = (): number => (state = (state * 48271) % 2147483647) / 2147483647;
    const [target, size, draws] = [0.1, 29, 4000];
    let alarms = 0;
    for (let i = 0; i < draws; i++) {
      const threshold = boundedQuantile(
        Array.from({ length: size }, () => random() ** 3),
        target,
      )!;
      if (random() ** 3 > threshold) alarms += 1;
    }
    // Binomial with p = 0.1 at most: three standard deviations are 0.0142.
    assert.ok(Math.abs(alarms / draws - target) < 0.0145, `${alarms / draws}`);
  });

  it('puts the threshold of maximum F1 between the scores it separates', () => {
    const scored = (good: number[], bad: number[]) => [
      ...good.map((score) => ({ score, defective: false })),
      ...bad.map((score) => ({ score, defective: true })),
    ];
    assert.equal(f1maxThreshold(scored([1, 2], [4, 5])), 3);
    assert.equal(f1maxThreshold(scored([1, 4.5], [4, 5, 6])), 2.5); // a false alarm costs less than a miss
    assert.equal(f1maxThreshold(scored([1, 2], [])), undefined);
    const all = f1maxThreshold(scored([1], [1, 2]))!;
    assert.ok(all < 1 && all > 0.99);
  });

  it('takes the highest threshold of equal F1, and keeps equal scores together', () => {
    const of = (...entries: [number, boolean][]) =>
      entries.map(([score, defective]) => ({ score, defective }));
    // F1 is 2/3 for the first image alone and for all four.
    assert.equal(f1maxThreshold(of([2, true], [5, true], [3, false], [4, false])), 4.5);
    assert.equal(f1maxThreshold(of([5, true], [5, false], [1, false])), 3);
  });

  it('normalizes the score to 0.5 at the threshold and 0.05 at the median normal image, increasing', () => {
    const limits = { threshold: 2, scale: (2 - 1) / Math.log(0.95 / 0.05) };
    assert.equal(normalizedScore(2, limits), 0.5);
    assert.ok(Math.abs(normalizedScore(1, limits) - 0.05) < 1e-12);
    assert.ok(normalizedScore(3, limits) > 0.94);
    assert.deepEqual(
      [0, 2, 6].map((score) => normalizedScore(score, { threshold: 2 })),
      [0, 0.5, 0.75],
    );
    assert.equal(normalizedScore(0, { threshold: 0 }), 0.5);
  });

  it('uses class thresholds or the global ones, and rejects a broken file', () => {
    const calibration = parseCalibration(
      '{"threshold":1,"classes":{"gear":{"threshold":2,"pixelThreshold":0.5}}}',
    );
    assert.equal(thresholdsFor(calibration, 'gear').threshold, 2);
    assert.equal(thresholdsFor(calibration, 'toString').threshold, 1);
    assert.equal(thresholdsFor(calibration, undefined).threshold, 1);
    for (const source of [
      '{',
      '[]',
      '{"threshold":"1"}',
      '{"threshold":1,"classes":{"a":{}}}',
      '{"threshold":1,"imageDigests":"x"}',
      '{"threshold":1,"model":5}',
    ]) {
      assert.throws(
        () => parseCalibration(source),
        (error) => error instanceof DiadError && error.code === 'ERR_DIAD_BUNDLE_INVALID',
        source,
      );
    }
  });

  it('lists normal images of a folder: flat, by class, or of a data set', () =>
    inFolder(async (folder) => {
      await rejects(readGoodImages(folder), 'ERR_DIAD_INVALID_ARGUMENT', /but found none/);
      for (const file of ['a.png', 'gear/b.PNG', 'screw/good/c.jpg', 'good/d.png', 'gear/.hidden.png']) {
        await writeImage(path.join(folder, file));
      }
      const found = (await readGoodImages(folder)).map(
        ({ file, className }) => `${path.relative(folder, file)} ${className}`,
      );
      const own = path.basename(folder);
      assert.deepEqual(found.sort(), [
        `a.png ${own}`,
        'gear/b.PNG gear',
        `good/d.png ${own}`,
        'screw/good/c.jpg screw',
      ]);
      await writeImage(path.join(folder, 'gear', 'train', 'good', 'e.png'));
      const trained = await readGoodImages(folder);
      assert.deepEqual(
        trained.map(({ className }) => className),
        ['gear'],
      );
    }));
});

describe('calibration of a bundle', () => {
  const write = (bundle: string, calibration: object): Promise<void> =>
    writeFile(path.join(bundle, 'calibration.json'), JSON.stringify(calibration));

  it('rejects a calibration of another model, unless loaded with { calibration: false }', () =>
    withBundleCopy(async (bundle) => {
      await write(bundle, { threshold: 0.1, model: 'f'.repeat(64) });
      await rejects(
        Diad.load(bundle),
        'ERR_DIAD_BUNDLE_INVALID',
        /of this model \([0-9a-f]{12}\) .* another \(f{12}\): run `diad calibrate` again/,
      );
      const diad = await Diad.load(bundle, { calibration: false });
      assert.equal(diad.info.bundle.threshold, undefined);
      const result = await diad.score(await readFile(path.join(root, 'examples', 'gear-good.png')));
      assert.deepEqual([result.threshold, result.anomalous], [undefined, undefined]);
      await write(bundle, { threshold: 0.25, model: diad.info.bundle.digest });
      await diad.close();
      const own = await Diad.load(bundle);
      assert.equal(own.info.bundle.threshold, 0.25);
      await own.close();
      await rejects(
        Diad.load(bundle, { calibration: 'no' as never }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /calibration/,
      );
    }));

  it('warns about another precision', () =>
    withBundleCopy(async (bundle) => {
      const warnings: (string | undefined)[] = [];
      const listen = (warning: Error & { code?: string }): void => {
        if (warning.code?.startsWith('DIAD_') === true) warnings.push(`${warning.code}: ${warning.message}`);
      };
      process.on('warning', listen);
      try {
        for (const [precision, count] of [
          ['float32', 0],
          [undefined, 0],
          ['bfloat16', 1],
        ] as const) {
          await write(bundle, { threshold: 0.1, ...(precision === undefined ? {} : { precision }) });
          const diad = await Diad.load(bundle, { warmup: false });
          assert.equal(diad.info.bundle.threshold, 0.1);
          await diad.close();
          await setImmediate();
          assert.equal(warnings.length, count, String(precision));
        }
        assert.match(
          warnings[0]!,
          /^DIAD_CALIBRATED_IN_ANOTHER_PRECISION: .*computed with precision bfloat16 and are used with float32/,
        );
      } finally {
        process.off('warning', listen);
      }
    }));
});

describe('diad calibrate', () => {
  /** Creates normal images of two classes, by folder. */
  async function goodFolder(folder: string): Promise<string> {
    const good = path.join(folder, 'good-parts');
    for (const name of ['brick', 'capsule', 'gear', 'screw']) {
      const className = name < 'd' ? 'soft' : 'hard';
      await mkdir(path.join(good, className), { recursive: true });
      await cp(path.join(root, 'examples', `${name}-good.png`), path.join(good, className, `${name}.png`));
    }
    return good;
  }

  it('writes global and class thresholds for results; the class comes from option or folder', () =>
    withBundleCopy(async (bundle) =>
      inFolder(async (folder) => {
        const good = await goodFolder(folder);
        const done = await run([
          'calibrate',
          '--good',
          good,
          '--model',
          bundle,
          '--target-fpr',
          '0.4',
          '--per-class',
        ]);
        assert.equal(done.code, 0, done.stderr);
        assert.match(
          done.stdout,
          /^all +image \d.*from 4 normal images\nhard .*from 2.*\nsoft .*from 2.*\n.*calibration\.json\n$/,
        );
        assert.deepEqual(
          (await readdir(bundle)).filter((name) => name.startsWith('.')),
          [],
        );
        const calibration = JSON.parse(
          await readFile(path.join(bundle, 'calibration.json'), 'utf8'),
        ) as Calibration;
        assert.deepEqual(
          [calibration.method, calibration.targetFpr, calibration.images],
          ['quantile', 0.4, 4],
        );
        assert.equal(calibration.imageDigests?.length, 4);
        assert.ok(Math.abs(Date.parse(calibration.createdAt!) - Date.now()) < HANG_GUARD_MS);

        const diad = await Diad.load(bundle);
        assert.equal(calibration.model, diad.info.bundle.digest);
        assert.equal(calibration.precision, 'float32');
        assert.equal(calibration.tile, undefined);
        const image = await readFile(path.join(good, 'hard', 'gear.png'));
        const [plain, named] = await Promise.all([
          diad.score(image),
          diad.score(image, { className: 'hard' }),
        ]);
        await diad.close();
        assert.equal(plain.threshold, calibration.threshold);
        assert.equal(named.threshold, calibration.classes!['hard']!.threshold);
        assert.equal(plain.anomalous, plain.score > plain.threshold);
        assert.equal(plain.normalizedScore! > 0.5, plain.anomalous);
        assert.ok(Array.isArray(named.map.regions()));

        const scored = await run(['score', path.join(good, 'hard', 'gear.png'), '--model', bundle, '--json']);
        const row = JSON.parse(scored.stdout) as { threshold: number; normalizedScore: number };
        assert.equal(row.threshold, calibration.classes!['hard']!.threshold);
        assert.ok(Math.abs(row.normalizedScore - named.normalizedScore!) < 1e-3);

        // The calibration images must not be used as a test set, under any name.
        const set = path.join(folder, 'set');
        await mkdir(path.join(set, 'good'), { recursive: true });
        await mkdir(path.join(set, 'bad'), { recursive: true });
        await cp(path.join(root, 'examples', 'screw-good.png'), path.join(set, 'good', 'renamed.png'));
        await cp(path.join(root, 'examples', 'gear-missing_part.png'), path.join(set, 'bad', '1.png'));
        const tested = await run([
          'eval',
          '--data',
          set,
          '--model',
          bundle,
          '--out',
          path.join(folder, 'out'),
        ]);
        assert.equal(tested.code, 1);
        assert.match(
          tested.stderr,
          /1 of 2 images are in both this test set and the calibration set .*renamed\.png/,
        );
        // A duplicate image adds no information.
        await cp(path.join(good, 'hard', 'gear.png'), path.join(good, 'hard', 'gear-again.png'));
        const copied = await run(['calibrate', '--good', good, '--model', bundle, '--target-fpr', '0.19']);
        assert.match(copied.stderr, /at least 5 different normal images .* received 4: /);
        // A calibration that fails leaves no copy behind.
        const out = path.join(folder, 'copy');
        const args = ['calibrate', '--good', good, '--model', bundle, '--out', out, '--target-fpr'];
        assert.equal((await run([...args, '0.19'])).code, 1);
        await assert.rejects(readFile(path.join(out, 'manifest.json')), { code: 'ENOENT' });
        assert.equal((await run([...args, '0.4'])).code, 0);
        assert.equal(
          (await readFile(path.join(out, 'calibration.json'), 'utf8')).includes('"threshold"'),
          true,
        );
        const again = await run([
          'calibrate',
          '--good',
          good,
          '--model',
          bundle,
          '--target-fpr',
          '0.4',
          '--test',
          set,
        ]);
        assert.equal(again.code, 1);
        assert.match(again.stderr, /1 of 5 images are in both the calibration and the test set .*screw\.png/);
      }),
    ));

  it('replaces an invalid calibration, and describes tiles', () =>
    withBundleCopy(async (bundle) =>
      inFolder(async (folder) => {
        const good = await goodFolder(folder);
        const file = path.join(bundle, 'calibration.json');
        for (const old of ['{', JSON.stringify({ threshold: 0.1, model: 'f'.repeat(64) })]) {
          await writeFile(file, old);
          const done = await run([
            'calibrate',
            '--good',
            good,
            '--model',
            bundle,
            '--target-fpr',
            '0.4',
            '--tile',
            '200',
          ]);
          assert.equal(done.code, 0, done.stderr);
          assert.deepEqual(parseCalibration(await readFile(file, 'utf8')).tile, { size: 200, overlap: 50 });
        }
        const diad = await Diad.load(bundle, { warmup: false });
        const warned = once(process, 'warning') as Promise<[Error & { code?: string }]>;
        const image = await readFile(path.join(root, 'examples', 'gear-good.png'));
        const verdicts: unknown[] = [];
        for (const tile of [{ size: 200 }, { size: 200, overlap: 40 }, undefined]) {
          const { threshold, anomalous } = await diad.score(image, tile === undefined ? {} : { tile });
          verdicts.push([threshold === undefined, anomalous === undefined]);
        }
        await diad.close();
        // A maximum over tiles is not comparable with the score of a whole image.
        assert.deepEqual(verdicts, [
          [false, false],
          [true, true],
          [true, true],
        ]);
        const [warning] = await warned;
        assert.equal(warning.code, 'DIAD_CALIBRATED_ON_OTHER_TILES');
        assert.match(
          warning.message,
          /computed on tiles of 200 pixels with an overlap of 50: results on .* with an overlap of 40 have no/,
        );
      }),
    ));

  it('reports unwritable output before scoring; Ctrl-C exits with 130 and leaves the bundle unchanged', () =>
    withBundleCopy(async (bundle) =>
      inFolder(async (folder) => {
        const good = await goodFolder(folder);
        const nowhere = await run([
          'calibrate',
          '--good',
          good,
          '--model',
          path.join(folder, 'none'),
          '--target-fpr',
          '0.4',
        ]);
        assert.equal(nowhere.code, 1);
        assert.match(
          nowhere.stderr,
          /ERR_DIAD_INVALID_ARGUMENT: Expected a writable folder but received .*none/,
        );

        for (let i = 0; i < 256; i++) await writeImage(path.join(good, 'many', `${i}.png`), i);
        const child = spawn(
          process.execPath,
          [cli, 'calibrate', '--good', good, '--model', bundle, '--target-fpr', '0.4'],
          { cwd: root },
        );
        let said = '';
        child.stderr.setEncoding('utf8').on('data', (part: string) => (said += part));
        while (!(await readFile(`/proc/${child.pid}/maps`, 'utf8')).includes('libtorch_cpu'))
          await setTimeout(20);
        child.kill('SIGINT');
        const [code] = (await once(child, 'close')) as [number | null];
        assert.deepEqual([code, said], [130, 'diad: interrupted\n']);
        await assert.rejects(readFile(path.join(bundle, 'calibration.json')), /ENOENT/);
      }),
    ));

  it('uses F1 on a validation set; rejects too few images and a set without defects', () =>
    withBundleCopy(async (plain) =>
      inFolder(async (folder) => {
        const good = await readGoodImages(await goodFolder(folder));
        const example = (name: string, defective: boolean) => ({
          file: path.join(root, 'examples', name),
          className: 'hard',
          defective,
        });
        const validation = [
          example('tile-crack.png', true),
          example('circuit_board-good.png', false),
          example('grass-thread.png', true),
        ];
        const diad = await Diad.load(plain);
        try {
          await rejects(
            calibrate(diad, { good }),
            'ERR_DIAD_INVALID_ARGUMENT',
            /at least 99 different normal images .* received 4: .*rate of at least 0\.200/,
          );
          await rejects(
            calibrate(diad, { good: [], targetFpr: 0.9 }),
            'ERR_DIAD_INVALID_ARGUMENT',
            /received 0/,
          );
          const harmless = validation.filter(({ defective }) => !defective);
          await rejects(
            calibrate(diad, { good, targetFpr: 0.4, validation: harmless }),
            'ERR_DIAD_INVALID_ARGUMENT',
            /defective images/,
          );
          const shared = [...validation, { ...good[0]!, defective: false }];
          await rejects(
            calibrate(diad, { good, targetFpr: 0.4, validation: shared }),
            'ERR_DIAD_INVALID_ARGUMENT',
            /validation set and the normal/,
          );
          const bad = path.join(folder, 'bad.png');
          await writeFile(bad, 'no image');
          const broken = [...good, { file: bad, className: 'hard' }];
          await rejects(
            calibrate(diad, { good: broken, targetFpr: 0.4 }),
            'ERR_DIAD_IMAGE_DECODE',
            /bad\.png: Expected PNG/,
          );

          const quantile = (await calibrate(diad, { good, targetFpr: 0.4 })).calibration;
          const ofGood = await Promise.all(
            good.map(async ({ file }) => (await diad.score(await readFile(file))).score),
          );
          const [, low, high] = ofGood.sort((a, b) => a - b) as [number, number, number, number];
          assert.ok(
            Math.abs(normalizedScore((low + high) / 2, quantile) - 0.05) < 1e-3,
            'the median normal image',
          );

          const { calibration, tooFew } = await calibrate(diad, {
            good,
            targetFpr: 0.25,
            perClass: true,
            validation,
          });
          assert.equal(calibration.method, 'f1max');
          assert.deepEqual(tooFew, [
            { className: 'hard', images: 2 },
            { className: 'soft', images: 2 },
          ]);
          assert.equal(calibration.classes, undefined);
          const scores = await Promise.all(
            validation.map(async ({ file, defective }) => ({
              score: (await diad.score(await readFile(file))).score,
              defective,
            })),
          );
          assert.ok(Math.abs(calibration.threshold - f1maxThreshold(scores)!) < 1e-5);
          await writeCalibration(path.join(folder, 'bundle'), calibration);
          const written = parseCalibration(
            await readFile(path.join(folder, 'bundle', 'calibration.json'), 'utf8'),
          );
          assert.deepEqual(written, calibration);
        } finally {
          await diad.close();
        }
      }),
    ));
});
