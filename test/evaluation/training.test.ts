// diad train, with a stub for Python that prints training events and writes a copy of the base bundle.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Readable } from 'node:stream';
import sharp from 'sharp';
import { sheetImages } from '../../lib/cli/contact-sheet.js';
import { duration, parseEvent, showTraining } from '../../lib/cli/training-progress.js';
import {
  calibrationImages,
  isTrained,
  noteTrained,
  readSplit,
  trainingKey,
} from '../../lib/cli/training-run.js';
import { parseCalibration } from '../../lib/calibration/calibration.js';
import { writeImage } from '../support/dataset-trees.js';
import { baseBundle, inFolder, rejects, root, runProgram, type Finished } from '../support/support.js';

const cli = path.join(root, 'dist', 'cli', 'main.js');
const LIMIT_MS = 300_000;
const stub = path.join(root, 'test', 'support', 'stub-python.mjs');
const diad = (args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Finished> =>
  runProgram(process.execPath, [cli, ...args], { DIAD_PYTHON: stub, ...env });

/** Creates two classes in MVTec-AD layout: 12 normal images each, two kinds of defects for one of them. */
async function dataSet(folder: string): Promise<string> {
  const data = path.join(folder, 'data');
  for (let i = 0; i < 12; i++) {
    for (const [name, level] of [
      ['gear', 60],
      ['nut', 160],
    ] as const) {
      await writeImage(
        path.join(data, name, 'train', 'good', `${String(i).padStart(2, '0')}.png`),
        level + i,
        64,
        64,
      );
    }
  }
  for (const kind of ['crack', 'stain'])
    await writeImage(path.join(data, 'gear', 'test', kind, '0.png'), 250, 64, 64);
  await writeImage(path.join(data, 'gear', 'test', 'good', '0.png'), 40, 64, 64);
  return data;
}

describe('training progress', () => {
  const lines = [
    'a line of a library',
    '{"event":"data","text":"1 class"}',
    '{"no event":1}',
    '{"event":"step","step":1,"steps":9,"seconds_left":5,"loss":0.5,"text":"denoiser 1/9"}',
    '{"event":"written","path":"/out","split":"/run/split.json","text":"/out"}',
  ];
  const shown = async (form: 'text' | 'json' | 'bar'): Promise<[string, unknown]> => {
    let output = '';
    const written = await showTraining(Readable.from(lines.map((line) => `${line}\n`)), {
      form,
      write: (text) => (output += text),
    });
    return [output, written];
  };

  it('prints text or the original JSON lines, and returns the written event', async () => {
    assert.equal(parseEvent('{'), undefined);
    const [text, written] = await shown('text');
    assert.equal(text, 'a line of a library\n1 class\n{"no event":1}\ndenoiser 1/9\n/out\n');
    assert.deepEqual(written, { event: 'written', path: '/out', split: '/run/split.json', text: '/out' });
    assert.equal((await shown('json'))[0], `${lines.join('\n')}\n`);
    assert.equal((await shown('bar'))[0], 'a line of a library\n1 class\n{"no event":1}\n/out\n');
  });

  it('formats durations', () => {
    assert.deepEqual([0.4, 59.4, 60, 200, 3599, 3900, -3].map(duration), [
      '0 s',
      '59 s',
      '1:00 min',
      '3:20 min',
      '59:59 min',
      '1:05 h',
      '0 s',
    ]);
  });
});

describe('training run', () => {
  it('has finished when its bundle exists for the same images and options', () =>
    inFolder(async (folder) => {
      const data = await dataSet(folder);
      const [out, run] = [path.join(folder, 'out'), path.join(folder, 'run')];
      const key = await trainingKey(data, 'base', out, ['--minutes', '1']);
      assert.equal(await isTrained(run, key), false);
      await writeImage(path.join(out, 'manifest.json.png'));
      await writeFile(path.join(out, 'manifest.json'), 'one');
      await noteTrained(run, key);
      assert.equal(await isTrained(run, key), true);
      assert.equal(await isTrained(run, await trainingKey(data, 'base', out, ['--minutes', '2'])), false);
      await writeImage(path.join(data, 'nut', 'train', 'good', 'new.png'), 99);
      assert.equal(await isTrained(run, await trainingKey(data, 'base', out, ['--minutes', '1'])), false);
      await writeFile(path.join(out, 'manifest.json'), 'another model');
      assert.equal(await isTrained(run, key), false);
      await writeFile(path.join(run, 'trained.json'), '{');
      await rejects(
        isTrained(run, key),
        'ERR_DIAD_INVALID_ARGUMENT',
        /trained\.json cannot be read; remove .*run to train from the beginning/,
      );
    }));

  it('calibrates on all images of a class whose reconstruction has no weight', () => {
    const split = (['gear', 'nut'] as const).flatMap((className) =>
      (['training', 'held-out'] as const).map((role) => ({ file: `${className}.png`, className, role })),
    );
    const evidence = {
      dimensions: 3,
      grid: 2,
      memoryVectors: 9,
      weights: { reconstruction: 0.1, memory: 1 },
      classWeights: { nut: { reconstruction: 0, memory: 1 } },
    };
    assert.deepEqual(
      calibrationImages(split, evidence).map(({ role }) => role),
      ['training', 'held-out', 'calibration', 'calibration'],
    );
  });

  it('reads the split into training and held-out images, and rejects a damaged one', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'split.json');
      await writeFile(
        file,
        JSON.stringify([
          { file: 'a.png', class_name: 'gear', held_out: true },
          { file: 'b.png', class_name: 'gear', held_out: false },
        ]),
      );
      assert.deepEqual(await readSplit(file), [
        { file: 'a.png', className: 'gear', role: 'held-out' },
        { file: 'b.png', className: 'gear', role: 'training' },
      ]);
      for (const content of ['[]', '[{"file":"a.png"}]', '{']) {
        await writeFile(file, content);
        await rejects(
          readSplit(file),
          'ERR_DIAD_INVALID_ARGUMENT',
          /split\.json.*to train from the beginning/,
        );
      }
      await rm(file);
      await rejects(readSplit(file), 'ERR_DIAD_INVALID_ARGUMENT', /Expected a list of images/);
    }));

  it('draws held-out images and every kind of defect on the contact sheet', () =>
    inFolder(async (folder) => {
      const data = await dataSet(folder);
      const good = path.join(data, 'gear', 'train', 'good');
      const split = (await readdir(good)).sort().map((name, i) => ({
        file: path.join(good, name),
        className: 'gear',
        role: i < 3 ? ('held-out' as const) : ('training' as const),
      }));
      const kinds = ['good', 'good', 'good', 'crack', 'stain'];
      assert.deepEqual(
        (await sheetImages(data, split)).map(({ kind }) => kind),
        kinds,
      );
      assert.deepEqual(
        (await sheetImages(path.join(data, 'gear'), split)).map(({ kind }) => kind),
        kinds,
      );
      assert.deepEqual(
        (await sheetImages(good, split)).map(({ kind }) => kind),
        ['good', 'good', 'good'],
      );
    }));
});

describe('diad train', function () {
  this.timeout(LIMIT_MS);

  it('explains the old usage, missing options, a missing base bundle and a missing Python', () =>
    inFolder(async (folder) => {
      for (const args of [['all', '--data', folder, '--run', 'r', '--config', 'tiny'], ['denoiser']]) {
        const { code, stderr } = await diad(['train', ...args]);
        assert.equal(code, 1);
        assert.match(
          stderr,
          new RegExp(`received the stage ${args[0]}: .*python -m diad_reference train-published ${args[0]}`),
        );
      }
      const out = path.join(folder, 'out');
      assert.match(
        (await diad(['train', '--data', folder, '--out', out, '--steps', '9'])).stderr,
        /options of diad train but received --steps/,
      );
      assert.match(
        (await diad(['train', '--data', folder])).stderr,
        /Expected --data and --out but received no --out/,
      );
      assert.match(
        (await diad(['train', '--data', folder, '--out', out, '--minutes', '0'])).stderr,
        /Expected a number above 0/,
      );
      const noBase = await diad([
        'train',
        '--data',
        folder,
        '--out',
        out,
        '--base',
        path.join(folder, 'none'),
      ]);
      assert.match(noBase.stderr, /ERR_DIAD_BUNDLE_NOT_FOUND: .*none holds no manifest\.json/);
      const noPython = await diad(['train', '--data', folder, '--out', out, '--base', baseBundle], {
        DIAD_PYTHON: path.join(folder, 'python'),
      });
      assert.equal(noPython.code, 1);
      assert.match(noPython.stderr, /diad train cannot start .*pip install .*python.*DIAD_PYTHON/s);
      assert.match((await diad(['train', '--help'])).stdout, /--minutes/);
    }));

  it('exits with the code of a failed training; reports a training without a bundle', () =>
    inFolder(async (folder) => {
      const args = [
        'train',
        '--data',
        await dataSet(folder),
        '--out',
        path.join(folder, 'out'),
        '--base',
        baseBundle,
      ];
      const failed = await diad(args, { STUB_TRAINING: 'fail' });
      assert.equal(failed.code, 1);
      assert.equal(
        failed.stderr,
        'diad_reference train: Expected at least 10 different normal images of gear but found 3\n',
      );
      const nothing = await diad(args, { STUB_TRAINING: 'nothing' });
      assert.equal(nothing.code, 1);
      assert.match(nothing.stderr, /ended without writing a bundle/);
    }));

  it('forwards Ctrl-C to the training, which saves; exits with 130 and explains how to resume', () =>
    inFolder(async (folder) => {
      const args = [
        'train',
        '--data',
        await dataSet(folder),
        '--out',
        path.join(folder, 'out'),
        '--base',
        baseBundle,
      ];
      const env = { ...process.env, DIAD_PYTHON: stub, STUB_TRAINING: 'wait' };
      const child = spawn(process.execPath, [cli, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
      let [stdout, stderr] = ['', ''];
      child.stdout.setEncoding('utf8').on('data', (part: string) => {
        stdout += part;
        if (part.includes('denoiser 10/20')) child.kill('SIGINT');
      });
      child.stderr.setEncoding('utf8').on('data', (part: string) => (stderr += part));
      const [code] = (await once(child, 'close')) as [number | null];
      assert.equal(code, 130);
      assert.equal(
        stderr,
        'diad_reference train: denoiser stopped after 11 steps; the same command resumes there\n' +
          'diad: interrupted; run the same command again to resume\n',
      );
      assert.match(stdout, /a line of a library\n10 perturbed images\nA step takes/);
    }));

  it('trains, calibrates and draws a contact sheet; a repeated command only calibrates', () =>
    inFolder(async (folder) => {
      const data = await dataSet(folder);
      const [out, run] = [path.join(folder, 'out'), path.join(folder, 'run')];
      const args = [
        'train',
        '--data',
        data,
        '--out',
        out,
        '--base',
        baseBundle,
        '--run',
        run,
        '--minutes',
        '1.5',
        '--name',
        'parts',
      ];
      const done = await diad(args);
      assert.equal(done.code, 0, done.stderr);
      assert.match(done.stdout, /class +.*threshold +false alarms +median score\n(.*\n)*all /);
      assert.match(
        done.stdout,
        /contact-sheet\.png: .*\n\nTry it: npx diad score new-part\.png --model .*out\n$/,
      );
      const { width, height } = await sharp(path.join(run, 'contact-sheet.png')).metadata();
      assert.ok(width > 900 && height > 900, `${width} x ${height}`);
      const calibration = parseCalibration(await readFile(path.join(out, 'calibration.json'), 'utf8'));
      assert.equal(calibration.images, 8);
      const calls = (await readFile(path.join(run, 'calls.txt'), 'utf8')).trim().split('\n');
      const expected = [
        '-m diad_reference train --data',
        data,
        '--out',
        out,
        '--base',
        baseBundle,
        '--run',
        run,
      ];
      const options = '--minutes 1.5 --seed 0 --device cpu --name parts --json';
      assert.deepEqual(calls, [`${expected.join(' ')} ${options}`]);

      await rm(path.join(out, 'calibration.json'));
      const again = await diad(args);
      assert.equal(again.code, 0, again.stderr);
      assert.match(again.stdout, /^The training of .*out has finished; calibrating it\n/);
      assert.equal((await readFile(path.join(run, 'calls.txt'), 'utf8')).trim().split('\n').length, 1);
      await readFile(path.join(out, 'calibration.json'));

      const json = await diad([...args, '--json']);
      const events = json.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as { event: string; classes?: { className: string }[] });
      assert.deepEqual(
        events.map(({ event }) => event),
        ['calibrated', 'finished'],
      );
      assert.equal(events[0]!.classes?.[0]?.className, '');
    }));
});
