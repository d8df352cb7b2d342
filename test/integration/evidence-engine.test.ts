// Calibration with evidence on the real engine: finds a defect that was not in the calibration images.
import assert from 'node:assert/strict';
import { cp, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import sharp from 'sharp';
import { parseCalibration } from '../../lib/calibration/calibration.js';
import { Diad } from '../../lib/index.js';
import { baseBundle, example, inFolder, rejects, root, runProgram } from '../support/support.js';

const cli = path.join(root, 'dist', 'cli', 'main.js');

/** Creates gears of increasing brightness, optionally with a dark square as a defect. */
async function gear(brightness: number, defective = false): Promise<Buffer> {
  const square = {
    input: { create: { width: 60, height: 60, channels: 3 as const, background: '#101010' } },
    left: 60,
    top: 70,
  };
  const image = sharp(await example('gear-good.png')).modulate({ brightness });
  return (defective ? image.composite([square]) : image).png().toBuffer();
}

describe('calibration with evidence on the engine', () => {
  it('calibrates on twelve images, scores others, and rejects a damaged file', () =>
    inFolder((folder) =>
      inFolder(async (good) => {
        const bundle = path.join(folder, 'bundle');
        await cp(baseBundle, bundle, { recursive: true });
        for (let i = 0; i < 12; i++)
          await writeFile(path.join(good, `${String(i).padStart(2, '0')}.png`), await gear(0.9 + 0.02 * i));
        const args = [cli, 'calibrate', '--good', good, '--model', bundle];
        const done = await runProgram(process.execPath, args);
        assert.equal(done.code, 0, done.stderr);
        assert.match(
          done.stdout,
          /^class +images +threshold .*\nall +12 .*0 of 12 .*\nwith 12 images .* 7\.7 % false alarms/,
        );
        const first = parseCalibration(await readFile(path.join(bundle, 'calibration.json'), 'utf8'));
        assert.equal((await runProgram(process.execPath, args)).code, 0);
        const second = parseCalibration(await readFile(path.join(bundle, 'calibration.json'), 'utf8'));
        assert.deepEqual([second.normality, second.threshold], [first.normality, first.threshold]);

        const diad = await Diad.load(bundle);
        assert.equal(diad.info.bundle.threshold, first.threshold);
        const [normal, defective] = await Promise.all([
          diad.score(await gear(1.01)),
          diad.score(await gear(1.01, true)),
        ]);
        assert.deepEqual([normal.anomalous, defective.anomalous], [false, true]);
        assert.ok(defective.evidence!.memory > normal.evidence!.memory);
        await rejects(
          diad.score(await gear(1), { tile: { size: 128 } }),
          'ERR_DIAD_INVALID_ARGUMENT',
          /no tile/,
        );
        await diad.close();
        const plain = await Diad.load(bundle, { calibration: false });
        assert.equal((await plain.score(await gear(1))).evidence, undefined);
        await plain.close();

        const file = path.join(bundle, 'normality.safetensors');
        const bytes = await readFile(file);
        bytes[bytes.length - 1]! ^= 1;
        await writeFile(file, bytes);
        await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_CORRUPT', /normality\.safetensors is damaged/);
      }),
    ));
});
