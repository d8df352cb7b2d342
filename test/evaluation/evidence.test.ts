// Calibration of bundles with evidence, with a fake engine: roles, thresholds from few images, classes,
// files.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { normalityOf, parseCalibration, type Calibration } from '../../lib/calibration/calibration.js';
import { openCalibrator } from '../../lib/diad.js';
import { writeTogether } from '../../lib/io/atomic-file.js';
import { calibrate } from '../../lib/evaluation/calibrate.js';
import type { CalibrationImage } from '../../lib/evaluation/calibration-types.js';
import { copyBundle, writeCalibration } from '../../lib/evaluation/calibration-files.js';
import { readGoodImages } from '../../lib/evaluation/datasets/good.js';
import { thresholdsLearned } from '../../lib/evaluation/evidence-thresholds.js';
import { chosenImages, type NormalImage } from '../../lib/evaluation/learn-normality.js';
import { defaultTarget } from '../../lib/evaluation/thresholds.js';
import { rateNotes, summaryTable } from '../../lib/cli/summary.js';
import { writeImage } from '../support/dataset-trees.js';
import { DIGEST, fakeEngine } from '../support/fake-engine.js';
import { inFolder, rejects } from '../support/support.js';

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Creates different images of a class. */
async function images(
  folder: string,
  className: string,
  count: number,
  start = 0,
): Promise<CalibrationImage[]> {
  const files = Array.from({ length: count }, (_, i) =>
    path.join(folder, className, `${String(i).padStart(3, '0')}.png`),
  );
  for (const [i, file] of files.entries()) await writeImage(file, start + i);
  return files.map((file) => ({ file, className }));
}

const numbers = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

describe('calibration with evidence', () => {
  it('uses the lowest rate that few images support; the threshold is then the largest score', () =>
    inFolder(async (folder) => {
      assert.deepEqual([9, 98, 99, 500].map(defaultTarget), [0.1, 1 / 99, 0.01, 0.01]);
      const { diad, submitted, calls } = fakeEngine();
      const good = await images(folder, 'gear', 12);
      const { calibration, normality, summary, tooFew } = await calibrate(diad, { good });
      assert.equal(calibration.threshold, 11);
      assert.equal(calibration.pixelThreshold, 22);
      assert.equal(calibration.targetFpr, 1 / 13);
      assert.equal(calibration.classes, undefined);
      assert.deepEqual(calibration.normality, {
        file: 'normality.safetensors',
        sha256: sha256(normality!),
        size: 3,
      });
      assert.equal(calibration.model, DIGEST);
      assert.equal(calibration.imageDigests?.length, 12);
      assert.deepEqual(tooFew, []);
      const expected = {
        className: '',
        images: 12,
        training: 0,
        threshold: 11,
        targetFpr: 1 / 13,
        falseAlarms: 0,
        medianScore: 5.5,
      };
      assert.deepEqual(summary, [expected]);
      assert.deepEqual(calls, ['create', 'finish 7', 'drop 7']);
      const roles = submitted.map((options) => options.calibration!).sort((a, b) => a.index - b.index);
      assert.deepEqual(
        roles,
        numbers(12).map((index) => ({ calibrator: 7, index, inMemory: true, inStatistics: true })),
      );
      assert.ok(
        submitted.every(({ className, map, reconstruction }) => className === '' && !map && !reconstruction),
      );
    }));

  it('calibrates classes separately unless they have too few images or perClass is false', () =>
    inFolder(async (folder) => {
      const good = [
        ...(await images(folder, 'gear', 10)),
        ...(await images(folder, 'nut', 11, 100)),
        ...(await images(folder, 'pin', 3, 200)),
      ];
      const { diad, submitted } = fakeEngine();
      const { calibration, tooFew, summary } = await calibrate(diad, { good });
      assert.deepEqual(tooFew, [{ className: 'pin', images: 3 }]);
      assert.deepEqual(Object.keys(calibration.classes ?? {}), ['gear', 'nut']);
      assert.deepEqual(
        [
          calibration.classes!['gear']!.threshold,
          calibration.classes!['nut']!.threshold,
          calibration.threshold,
        ],
        [9, 20, 23],
      );
      assert.equal(calibration.classes!['gear']!.targetFpr, 1 / 11);
      assert.deepEqual(
        summary.map(({ className, images: count }) => [className, count]),
        [
          ['', 24],
          ['gear', 10],
          ['nut', 11],
        ],
      );
      assert.deepEqual([...new Set(submitted.map(({ className }) => className))], ['gear', 'nut', '']);
      const together = fakeEngine();
      const one = await calibrate(together.diad, { good, perClass: false });
      assert.equal(one.calibration.classes, undefined);
      assert.ok(together.submitted.every(({ className }) => className === ''));
    }));

  it('finds a threshold of all images and one of each class', () => {
    const list: NormalImage[] = numbers(20).map((i) => ({
      file: `${i}`,
      className: i < 10 ? 'a' : 'b',
      role: 'calibration',
    }));
    const rows = (scores: number[]) => {
      const values = Float64Array.from(scores);
      return {
        indices: Uint32Array.from(scores.keys()),
        scores: values,
        peaks: values,
        reconstruction: values,
        memory: values,
      };
    };
    const { all, classes } = thresholdsLearned(list, rows(numbers(20)), undefined);
    assert.deepEqual([all.threshold, classes['a']!.threshold, classes['b']!.threshold], [19, 9, 19]);
  });

  it('computes statistics from training images, and thresholds from held-out ones', () =>
    inFolder(async (folder) => {
      const good = (await images(folder, 'gear', 20)).map((image, i) => ({
        ...image,
        role: i % 5 === 0 ? ('held-out' as const) : ('training' as const),
      }));
      const { diad, submitted } = fakeEngine();
      const { calibration, summary } = await calibrate(diad, { good });
      assert.equal(calibration.threshold, 15);
      assert.equal(calibration.images, 4);
      assert.equal(calibration.targetFpr, 1 / 5);
      assert.equal(summary[0]!.training, 16);
      assert.ok(submitted.every((options) => options.calibration!.inMemory));
      assert.deepEqual(
        submitted
          .flatMap((options) => (options.calibration!.inStatistics ? [options.calibration!.index] : []))
          .sort((a, b) => a - b),
        [0, 5, 10, 15],
      );
      const trained = good.map((image) => ({ ...image, role: 'training' as const }));
      await rejects(
        calibrate(diad, { good: trained }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /at least 2 normal images that the model was not trained on/,
      );
    }));

  it('uses at most 1,000 images per class: first those for thresholds, then evenly spaced ones', () => {
    const of = (className: string, count: number, held: number): NormalImage[] =>
      numbers(count).map((i) => ({
        file: `${className}${i}`,
        className,
        role: i < held ? 'held-out' : 'training',
      }));
    const chosen = chosenImages([...of('a', 2060, 60), ...of('b', 30, 3)]);
    const a = chosen.filter(({ className }) => className === 'a');
    assert.deepEqual(
      [a.length, a.filter(({ role }) => role === 'held-out').length, chosen.length],
      [1000, 60, 1030],
    );
    assert.deepEqual(
      chosenImages(numbers(2000).map((i) => ({ file: `${i}`, className: undefined, role: 'calibration' })))
        .map(({ file }) => Number(file))
        .slice(0, 3),
      [0, 2, 4],
    );
  });

  it('rejects too few images, an unsupported rate, a validation set, and tiles', () =>
    inFolder(async (folder) => {
      const { diad, calls } = fakeEngine();
      const good = await images(folder, 'gear', 12);
      const copies = good.map(({ className }) => ({ file: good[0]!.file, className }));
      await rejects(
        calibrate(diad, { good: good.slice(0, 9) }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /at least 10 different normal images but received 9/,
      );
      await rejects(
        calibrate(diad, { good: copies }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /at least 10 different normal images but received 1/,
      );
      await rejects(
        calibrate(diad, { good, targetFpr: 0.01 }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /at least 99 .* received 12.* at least 0\.0769/,
      );
      const validation = [{ file: good[0]!.file, className: 'gear', defective: true }];
      await rejects(
        calibrate(diad, { good, validation }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /no validation set for a bundle with evidence/,
      );
      await rejects(
        calibrate(diad, { good, tile: { size: 64 } }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /no tile for a bundle with evidence/,
      );
      const wrong = good.map((image) => ({ ...image, role: 'test' as never }));
      await rejects(
        calibrate(diad, { good: wrong }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /one of training, held-out, calibration for good\[0\]\.role/,
      );
      assert.deepEqual(calls, []);
      const asked = await calibrate(diad, { good, targetFpr: 0.25 });
      assert.deepEqual(
        [asked.calibration.threshold, asked.calibration.targetFpr, asked.summary[0]!.falseAlarms],
        [9, 0.25, 2],
      );
    }));

  it('names the file that fails, and always frees the calibrator', () =>
    inFolder(async (folder) => {
      const good = await images(folder, 'gear', 12);
      const small = path.join(folder, 'small.png');
      await writeImage(small, 1, 40, 4);
      const broken = path.join(folder, 'broken.png');
      await writeFile(broken, 'no image');
      for (const [file, code, message] of [
        [
          small,
          'ERR_DIAD_INVALID_ARGUMENT',
          /small\.png: Expected an image of at least 16 x 16 pixels but received 40 x 4/,
        ],
        [broken, 'ERR_DIAD_IMAGE_DECODE', /broken\.png: Expected PNG/],
      ] as const) {
        const { diad, calls } = fakeEngine();
        await rejects(calibrate(diad, { good: [...good, { file, className: 'gear' }] }), code, message);
        assert.deepEqual(calls, ['create', 'drop 7']);
      }
    }));

  it('ends when aborted while adding images and while computing', () =>
    inFolder(async (folder) => {
      const good = await images(folder, 'gear', 40);
      const adding = new AbortController();
      const first = fakeEngine();
      const stopped = calibrate(first.diad, {
        good,
        signal: adding.signal,
        onProgress: (done) => {
          if (done === 2) adding.abort(new Error('enough'));
        },
      });
      await assert.rejects(stopped, /enough/);
      assert.deepEqual(first.calls, ['create', 'drop 7']);
      assert.ok(first.submitted.length < 40);
      const learning = new AbortController();
      const second = fakeEngine({
        finish: () => {
          learning.abort(new Error('enough'));
          return new Promise(() => undefined);
        },
      });
      await assert.rejects(calibrate(second.diad, { good, signal: learning.signal }), /enough/);
      assert.deepEqual(second.calls, ['create', 'finish 7', 'drop 7']);
    }));

  it('cannot recalibrate or score tiles with a loaded calibration; results carry evidence and class', () =>
    inFolder(async (folder) => {
      const normality = { file: 'normality.safetensors', sha256: 'b'.repeat(64), size: 3 } as const;
      const { diad, submitted } = fakeEngine({ calibration: { threshold: 1, model: DIGEST, normality } });
      assert.throws(() => openCalibrator(diad), /loaded with \{ calibration: false \}/);
      const file = path.join(folder, 'a.png');
      await writeImage(file);
      const result = await diad.score(await readFile(file), { className: 'gear' });
      assert.deepEqual(result.evidence, { reconstruction: 0.25, memory: 1.25 });
      assert.equal(result.anomalous, true);
      await diad.reconstruct(await readFile(file), { className: 'nut' });
      await diad.score(await readFile(file));
      assert.deepEqual(
        submitted.map(({ className, calibration }) => [className, calibration]),
        [
          ['gear', null],
          ['nut', null],
          ['', null],
        ],
      );
      const tiled = diad.score(await readFile(file), { tile: { size: 16 } });
      await rejects(
        tiled,
        'ERR_DIAD_INVALID_ARGUMENT',
        /no tile because this bundle.*\{ calibration: false \}/,
      );
    }));
});

describe('calibration files', () => {
  const normality = Uint8Array.of(1, 2, 3);
  const calibration: Calibration = {
    threshold: 2,
    normality: { file: 'normality.safetensors', sha256: sha256(normality), size: 3 },
  };

  it('writes both files together, and rejects the normality of another calibration', () =>
    inFolder(async (folder) => {
      await writeCalibration(folder, calibration, normality);
      assert.deepEqual((await readdir(folder)).sort(), ['calibration.json', 'normality.safetensors']);
      assert.deepEqual(
        parseCalibration(await readFile(path.join(folder, 'calibration.json'), 'utf8')),
        calibration,
      );
      await rejects(writeCalibration(folder, calibration), 'ERR_DIAD_INVALID_ARGUMENT', /received none/);
      await rejects(
        writeCalibration(folder, calibration, Uint8Array.of(9)),
        'ERR_DIAD_INVALID_ARGUMENT',
        /1 bytes that are not/,
      );
      await writeCalibration(folder, { threshold: 1 });
      assert.deepEqual(await readdir(folder), ['calibration.json']);
    }));

  it('replaces no file when one of them cannot be written', () =>
    inFolder(async (folder) => {
      const [a, b] = [path.join(folder, 'a'), path.join(folder, 'b')];
      await writeFile(a, 'old');
      // eslint-disable-next-line @typescript-eslint/require-await -- stands for a full disk
      async function* full(): AsyncGenerator<string> {
        yield 'part';
        throw new Error('no space left');
      }
      await assert.rejects(
        writeTogether([
          [a, 'new'],
          [b, full()],
        ]),
        /no space left/,
      );
      assert.equal(await readFile(a, 'utf8'), 'old');
      assert.deepEqual(await readdir(folder), ['a']);
    }));

  it('names a missing, truncated or damaged normality file', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'normality.safetensors');
      assert.equal(await normalityOf(folder, { threshold: 1 }, true), undefined);
      await rejects(
        normalityOf(folder, calibration, true),
        'ERR_DIAD_BUNDLE_CORRUPT',
        /normality\.safetensors is missing: run `diad calibrate`/,
      );
      await writeFile(file, normality.subarray(1));
      await rejects(
        normalityOf(folder, calibration, true),
        'ERR_DIAD_BUNDLE_CORRUPT',
        /has 2 bytes but calibration\.json says 3/,
      );
      await writeFile(file, Uint8Array.of(1, 2, 4));
      await rejects(normalityOf(folder, calibration, true), 'ERR_DIAD_BUNDLE_CORRUPT', /is damaged/);
      assert.equal(await normalityOf(folder, calibration, false), file);
      await writeFile(file, normality);
      assert.equal(await normalityOf(folder, calibration, true), file);
      for (const wrong of [
        { file: '../x', sha256: 'b'.repeat(64), size: 3 },
        { file: 'normality.safetensors', sha256: 'x', size: 3 },
        'x',
      ]) {
        assert.throws(
          () => parseCalibration(JSON.stringify({ threshold: 1, normality: wrong })),
          /Expected "normality" to name/,
        );
      }
    }));

  it('copies a bundle with hard links and without calibration, and never replaces another model', () =>
    inFolder(async (folder) => {
      const [from, to] = [path.join(folder, 'model'), path.join(folder, 'copies', 'mine')];
      await mkdir(path.join(from, 'golden'), { recursive: true });
      for (const name of [
        'manifest.json',
        'encoder.pt',
        'golden/golden.json',
        'calibration.json',
        'normality.safetensors',
      ]) {
        await writeFile(path.join(from, name), name);
      }
      await copyBundle(from, to);
      assert.deepEqual((await readdir(to, { recursive: true })).sort(), [
        'encoder.pt',
        'golden',
        'golden/golden.json',
        'manifest.json',
      ]);
      assert.equal(
        (await stat(path.join(to, 'encoder.pt'))).ino,
        (await stat(path.join(from, 'encoder.pt'))).ino,
      );
      assert.deepEqual(await readdir(path.dirname(to)), ['mine']);
      await writeFile(path.join(to, 'calibration.json'), 'mine');
      await copyBundle(from, to);
      assert.equal(await readFile(path.join(to, 'calibration.json'), 'utf8'), 'mine');
      const other = path.join(folder, 'other');
      await mkdir(other);
      await writeFile(path.join(other, 'notes.txt'), 'mine');
      await rejects(
        copyBundle(from, other),
        'ERR_DIAD_INVALID_ARGUMENT',
        /other is not empty: choose another, or remove it/,
      );
      await writeFile(path.join(other, 'manifest.json'), 'another');
      await rejects(copyBundle(from, other), 'ERR_DIAD_INVALID_ARGUMENT', /other contains another model/);
      await rejects(
        copyBundle(from, path.join(other, 'notes.txt')),
        'ERR_DIAD_INVALID_ARGUMENT',
        /notes\.txt is a file/,
      );
      await rejects(copyBundle(path.join(folder, 'none'), to), 'ERR_DIAD_BUNDLE_NOT_FOUND');
    }));
});

describe('normal images of a folder', () => {
  it('reads train/good for one class of a data set, never its test images', () =>
    inFolder(async (folder) => {
      for (const file of ['train/good/a.png', 'test/good/b.png', 'test/crack/c.png'])
        await writeImage(path.join(folder, 'gear', file));
      const expected = [{ file: path.join(folder, 'gear', 'train', 'good', 'a.png'), className: 'gear' }];
      assert.deepEqual(await readGoodImages(path.join(folder, 'gear')), expected);
      assert.deepEqual(await readGoodImages(folder), expected);
    }));

  it('reports a class without normal images', () =>
    inFolder(async (folder) => {
      await writeImage(path.join(folder, 'gear', 'train', 'good', 'a.png'));
      await writeImage(path.join(folder, 'nut', 'train', 'crack', 'a.png'));
      await rejects(
        readGoodImages(folder),
        'ERR_DIAD_INVALID_ARGUMENT',
        /normal images in .*nut.train.good but the folder does not exist/,
      );
      await mkdir(path.join(folder, 'pin', 'train', 'good'), { recursive: true });
      await rejects(
        readGoodImages(path.join(folder, 'pin')),
        'ERR_DIAD_INVALID_ARGUMENT',
        /in train\/good of .*pin but found none/,
      );
    }));
});

describe('summary of a calibration', () => {
  const all = {
    className: '',
    images: 8,
    training: 0,
    threshold: 4.5,
    targetFpr: 1 / 9,
    falseAlarms: 0,
    medianScore: 1.25,
  };
  const gear = { ...all, className: 'gear', images: 5, training: 30, targetFpr: 1 / 6, falseAlarms: 1 };

  it('has a line per class and states the rate that few images support', () => {
    assert.equal(
      summaryTable([all]),
      [
        'class  images  threshold  false alarms  median score',
        'all         8      4.500        0 of 8         1.250',
      ].join('\n'),
    );
    assert.deepEqual(
      summaryTable([all, gear])
        .split('\n')
        .map((line) => line.split(/ {2,}/)),
      [
        ['class', 'trained on', 'held out', 'threshold', 'false alarms', 'median score'],
        ['gear', '30', '5', '4.500', '1 of 5', '1.250'],
        ['all', '0', '8', '4.500', '0 of 8', '1.250'],
      ],
    );
    assert.match(
      rateNotes([all, gear], undefined).join('\n'),
      /^gear: with 5 images .* at most 16\.7 % false alarms, and add images for fewer$/,
    );
    assert.match(rateNotes([all], undefined)[0]!, /^with 8 images .* 11\.1 %/);
    assert.deepEqual(rateNotes([all], 0.2), []);
    assert.deepEqual(rateNotes([{ ...all, targetFpr: 0.01 }], undefined), []);
  });
});
