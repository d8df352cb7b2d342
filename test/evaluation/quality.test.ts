// bench/quality: bundles with one kind of evidence, and the tables.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { markdown, type VariantResult } from '../../bench/quality/tables.js';
import { deriveBundle } from '../../bench/quality/variants.js';
import { inFolder } from '../support/support.js';

describe('bench:quality', () => {
  it('derives a bundle with other weights and a valid manifest that shares the other files', () =>
    inFolder(async (folder) => {
      const [from, to] = [path.join(folder, 'trained'), path.join(folder, 'memory')];
      await mkdir(from);
      const manifest = { name: 'm', evidence: { grid: 32, weights: { reconstruction: 0.5, memory: 1 } } };
      for (const [name, text] of [
        ['manifest.json', JSON.stringify(manifest)],
        ['manifest.sha256', 'seal'],
        ['encoder.pt', 'weights'],
        ['calibration.json', '{}'],
      ] as const) {
        await writeFile(path.join(from, name), text);
      }
      for (let i = 0; i < 2; i++) await deriveBundle(from, to, { reconstruction: 0, memory: 1 });
      const text = await readFile(path.join(to, 'manifest.json'), 'utf8');
      assert.deepEqual(JSON.parse(text), {
        name: 'm',
        evidence: { grid: 32, weights: { reconstruction: 0, memory: 1 } },
      });
      assert.equal(
        await readFile(path.join(to, 'manifest.sha256'), 'utf8'),
        `${createHash('sha256').update(text).digest('hex')}\n`,
      );
      assert.equal(
        (await stat(path.join(to, 'encoder.pt'))).ino,
        (await stat(path.join(from, 'encoder.pt'))).ino,
      );
      assert.deepEqual(JSON.parse(await readFile(path.join(from, 'manifest.json'), 'utf8')), manifest);
      assert.equal(await readFile(path.join(from, 'manifest.sha256'), 'utf8'), 'seal');
      await assert.rejects(stat(path.join(to, 'calibration.json')), /ENOENT/);
      await writeFile(path.join(from, 'manifest.json'), '{}');
      await assert.rejects(
        deriveBundle(from, to, { reconstruction: 0, memory: 1 }),
        /a bundle with evidence but .*trained has none/,
      );
    }));

  it('prints a table per metric and one of timings', () => {
    const metrics = {
      image_auroc: 0.9,
      image_ap: 0.8,
      image_f1max: 0.7,
      pixel_auroc: null,
      pixel_ap: 0.5,
      pixel_f1max: 0.4,
      au_pro: 0.3,
    };
    const result: VariantResult = {
      name: 'trained',
      trainingMinutes: 59.94,
      calibrationSeconds: 12.4,
      msPerImage: 81.6,
      classes: { screw: metrics },
      mean: { ...metrics, image_auroc: 0.95 },
    };
    const text = markdown([result, { ...result, name: 'calibrated base', trainingMinutes: null }]);
    assert.ok(
      text.startsWith(
        '| image AUROC | trained | calibrated base |\n| --- | --: | --: |\n| screw | 0.900 | 0.900 |\n| mean | 0.950 | 0.950 |\n',
      ),
    );
    assert.ok(
      text.includes('| pixel AUROC | trained | calibrated base |\n| --- | --: | --: |\n| screw | - | - |'),
    );
    assert.ok(
      text.endsWith(
        '| training, minutes | 59.9 | - |\n| calibration, seconds | 12 | 12 |\n| one image, ms | 82 | 82 |',
      ),
    );
  });
});
