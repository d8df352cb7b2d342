// .npz archives, and diad metrics on them.
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { METRIC_NAMES, type Metrics } from '../../lib/evaluation/metrics.js';
import { readEvaluationNpz } from '../../lib/evaluation/npz.js';
import { inFolder, python, rejects, root, runProgram } from '../support/support.js';

const metrics = (args: readonly string[]) =>
  runProgram(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), 'metrics', ...args]);

const MESSAGES: Readonly<Record<string, RegExp>> = {
  object: /array clsname: Object arrays/,
  complex: /array preds: .*dtype is c8/,
  structured: /array preds: .*structured arrays/,
  shape: /masks with the shape of preds, \[2, 2, 3\], but received \[2, 1, 3\]/,
  flat: /shape \[N, H, W\] for preds but it is \[12\]/,
  names: /2 values in clsname/,
  absent: /masks is missing/,
  text: /numbers in preds but found strings/,
  empty: /bad-empty\.npz cannot be read as an \.npz archive/,
  nothing: /bad-nothing\.npz cannot be read as an \.npz archive/,
  cut: /bad-cut\.npz cannot be read as an \.npz archive/,
  flipped: /bad-flipped\.npz is damaged: preds\.npy does not match its checksum/,
  member: /array preds: The \.npy header ends/,
};

describe('archives of arrays', () => {
  it('returns equal numbers for every dtype and order, and reports invalid archives', () =>
    inFolder(async (folder) => {
      const made = await runProgram(python, [
        path.join(root, 'test', 'support', 'metric_archives.py'),
        folder,
      ]);
      assert.equal(made.code, 0, made.stderr);
      const files = await readdir(folder);
      const good = files.filter((file) => !file.startsWith('bad-'));
      assert.equal(good.length, 21);
      const numbers = Array.from({ length: 12 }, (_, i) => i);
      for (const file of good) {
        const arrays = await readEvaluationNpz(path.join(folder, file));
        assert.deepEqual([...arrays.maps], numbers, file);
        assert.deepEqual(
          [...arrays.masks],
          numbers.map((i) => i % 2),
          file,
        );
        assert.deepEqual([arrays.height, arrays.width], [2, 3], file);
        assert.deepEqual(
          arrays.classNames,
          file === 'nameless.npz' ? ['all', 'all'] : ['bolt', 'grün'],
          file,
        );
      }
      const bad = files.filter((file) => file.startsWith('bad-'));
      assert.deepEqual(bad.map((file) => file.slice(4, -4)).sort(), Object.keys(MESSAGES).sort());
      for (const file of bad) {
        await rejects(
          readEvaluationNpz(path.join(folder, file)),
          'ERR_DIAD_INVALID_ARGUMENT',
          MESSAGES[file.slice(4, -4)],
        );
      }
      await rejects(
        readEvaluationNpz(path.join(folder, 'gone.npz')),
        'ERR_DIAD_INVALID_ARGUMENT',
        /gone\.npz/,
      );

      const file = path.join(folder, 'little-f4.npz');
      const { code, stdout } = await metrics([file, '--json']);
      assert.equal(code, 0);
      const report = JSON.parse(stdout) as { classes: Record<string, Metrics>; mean: Metrics };
      assert.deepEqual(Object.keys(report), ['classes', 'mean']);
      assert.deepEqual(Object.keys(report.classes), ['bolt', 'grün']);
      assert.deepEqual(Object.keys(report.classes['grün']!), [...METRIC_NAMES]);
      assert.deepEqual(Object.keys(report.mean), [...METRIC_NAMES]);
      const table = await metrics([file, '--mode', 'diad']);
      assert.match(table.stdout, /^class +image_auroc .*\nbolt .*\ngrün .*\nmean .*\n$/);
      assert.match(table.stderr, /maps are smaller than 57 pixels/);
      const refused = await metrics([path.join(folder, 'bad-object.npz')]);
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /ERR_DIAD_INVALID_ARGUMENT: .*Object arrays/);
      assert.match(
        (await metrics([file, '--mode', 'best'])).stderr,
        /Allowed choices are exact, diad, ader, anomalib, mvtec/,
      );
    }));
});
