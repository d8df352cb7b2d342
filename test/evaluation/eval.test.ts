// diad eval: killed and resumed runs, comparison with the Python reference, and the report in Chromium.
import assert from 'node:assert/strict';
import { constants } from 'node:buffer';
import { spawn } from 'node:child_process';
import {
  cp,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  truncate,
  writeFile,
  type FileHandle,
} from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import sharp from 'sharp';
import { JsonLines, LineFile, type CompleteLine } from '../../lib/io/atomic-file.js';
import { METRIC_NAMES, type Metrics } from '../../lib/evaluation/metrics.js';
import { ScoredImages, type RunIdentity } from '../../lib/evaluation/scored-images.js';
import { withPage } from '../support/browser.js';
import { inFolder, python, rejects, root, runProgram, until } from '../support/support.js';

const cli = path.join(root, 'dist', 'cli', 'main.js');
const diad = (args: readonly string[]) => runProgram(process.execPath, [cli, ...args]);
const reference = { PYTHONPATH: path.join(root, 'python') };

const linesOf = async (file: string): Promise<string[]> =>
  (await readFile(file, 'utf8').catch(() => '')).split('\n').slice(0, -1);

/** Starts an evaluation and kills it (-9) once some images are on disk. */
async function killedRun(data: string, out: string, atLines: number): Promise<string[]> {
  const file = path.join(out, 'images.jsonl');
  const child = spawn(process.execPath, [cli, 'eval', '--data', data, '--out', out], { stdio: 'ignore' });
  const ended = new Promise<NodeJS.Signals | null>((resolve) => {
    child.once('exit', (_, signal) => {
      resolve(signal);
    });
  });
  await until(async () => (await linesOf(file)).length >= atLines, `${atLines} images on disk`);
  child.kill('SIGKILL');
  assert.equal(await ended, 'SIGKILL');
  return linesOf(file);
}

type Results = {
  classes: Record<string, Metrics & { images: number; defective: number }>;
  mean: Metrics;
  images: number;
  failed: unknown[];
};

const PER_CLASS = 10; // more than two batches in total, so that a run can be killed in between
const SHOWN = 6; // most worst misses, and most false alarms
const IMAGES = 2 * PER_CLASS + 1;

describe('diad eval', () => {
  let scratch = '';
  let data = '';
  let out = '';

  before(async () => {
    scratch = await mkdtemp(path.join(os.tmpdir(), 'diad-eval-'));
    data = path.join(scratch, 'parts');
    out = path.join(scratch, 'run');
    const options = [
      '--out',
      data,
      '--seed',
      '3',
      '--train-per-class',
      '1',
      '--test-per-class',
      String(PER_CLASS),
      '--classes',
      'gear,tile',
      '--jobs',
      '1',
    ];
    const made = await runProgram(python, ['-m', 'diad_reference', 'generate', ...options], reference);
    assert.equal(made.code, 0, made.stderr);
    // All normal gears are twice as wide as high, so the report shows at least one of them.
    const good = path.join(data, 'gear', 'test', 'good');
    await cp(path.join(good, '000.png'), path.join(good, '900.png'));
    for (const name of await readdir(good)) {
      const stretched = await sharp(path.join(good, name)).resize(300, 150, { fit: 'fill' }).png().toBuffer();
      await writeFile(path.join(good, name), stretched);
    }
  });
  after(() => rm(scratch, { recursive: true, force: true }));

  it('loses nothing and repeats nothing when killed with -9 and resumed', async () => {
    const before = await killedRun(data, out, 2);
    assert.ok(before.length >= 2 && before.length < IMAGES, `${before.length} lines`);
    const refused = await diad(['eval', '--data', data, '--out', out]);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /already contains a run: resume it \(--resume\)/);
    const { code, stdout, stderr } = await diad(['eval', '--data', data, '--out', out, '--resume']);
    assert.equal(code, 0, stderr);
    assert.match(
      stderr,
      new RegExp(`${before.length} of ${IMAGES} images, ${before.length} of them resumed`),
    );
    assert.match(stdout, /^class +image_auroc.*\ngear .*\ntile .*\nmean .*\n\n.*index\.html\n$/);
    const lines = await linesOf(path.join(out, 'images.jsonl'));
    assert.deepEqual(lines.slice(0, before.length), before);
    const indices = lines.map((line) => (JSON.parse(line) as { index: number }).index);
    assert.deepEqual(
      [...indices].sort((a, b) => a - b),
      Array.from({ length: IMAGES }, (_, i) => i),
    );
  });

  it('matches the Python reference with scikit-learn on the same maps to 1e-6', async () => {
    const judged = await runProgram(
      python,
      [path.join(root, 'test', 'support', 'reference_report.py'), data, out],
      reference,
    );
    assert.equal(judged.code, 0, judged.stderr);
    const expected = JSON.parse(judged.stdout) as Record<string, Metrics>;
    const { classes } = JSON.parse(await readFile(path.join(out, 'results.json'), 'utf8')) as Results;
    assert.deepEqual(Object.keys(classes), Object.keys(expected));
    for (const [name, metrics] of Object.entries(expected)) {
      assert.deepEqual(Object.keys(metrics).sort(), [
        'au_pro',
        'image_ap',
        'image_auroc',
        'pixel_ap',
        'pixel_auroc',
      ]);
      for (const [metric, value] of Object.entries(metrics)) {
        const actual = classes[name]![metric as keyof Metrics]!;
        assert.ok(Math.abs(actual - value!) < 1e-6, `${name} ${metric}: ${actual}, not ${value}`);
      }
    }
  });

  it('writes results and tables', async () => {
    const results = JSON.parse(await readFile(path.join(out, 'results.json'), 'utf8')) as Results;
    assert.deepEqual([results.images, results.failed], [IMAGES, []]);
    assert.deepEqual(
      Object.entries(results.classes).map(([name, { images, defective }]) => [name, images, defective]),
      [
        ['gear', PER_CLASS + 1, PER_CLASS / 2],
        ['tile', PER_CLASS, PER_CLASS / 2],
      ],
    );
    for (const name of METRIC_NAMES) {
      const values = Object.values(results.classes).map((metrics) => metrics[name]!);
      assert.ok(Math.abs(results.mean[name]! - (values[0]! + values[1]!) / 2) < 1e-12, name);
    }
    const classLines = await linesOf(path.join(out, 'per_class.csv'));
    assert.equal(classLines[0], `class,images,defective,without_mask,threshold,${METRIC_NAMES.join(',')}`);
    assert.deepEqual(
      classLines.slice(1).map((line) => line.split(',')[0]),
      ['gear', 'tile', 'mean'],
    );
    const imageLines = await linesOf(path.join(out, 'per_image.csv'));
    assert.equal(imageLines.length, IMAGES + 1);
    assert.match(
      imageLines[1]!,
      /^gear\/test\/good\/000\.png,gear,good,false,-?\d+\.\d+,\d\.\d+,\d\.\d+,(true|false),maps\/000000\.f32$/,
    );
  });

  it('computes another mode from the same scores, and rejects another model or set', async () => {
    const { code, stderr } = await diad([
      'eval',
      '--data',
      data,
      '--out',
      out,
      '--resume',
      '--metrics-mode',
      'diad',
    ]);
    assert.equal(code, 0, stderr);
    assert.match(stderr, new RegExp(`${IMAGES} of ${IMAGES} images, ${IMAGES} of them resumed`));
    assert.equal((await linesOf(path.join(out, 'images.jsonl'))).length, IMAGES);
    const other = await diad(['eval', '--data', data, '--out', out, '--resume', '--seed', '5']);
    assert.equal(other.code, 1);
    assert.match(other.stderr, /contains a run with seed "0", not "5"/);
  });

  it('opens the report in Chromium without errors or requests, with all classes and aspect ratios', () =>
    withPage(path.join(out, 'index.html'), async (page) => {
      assert.equal(await page.locator('h1').innerText(), 'parts');
      assert.deepEqual(await page.locator('h3').allInnerTexts(), ['gear', 'tile']);
      assert.equal(await page.locator('tbody tr').count(), 2);
      assert.equal(await page.locator('svg.chart').count(), 6);
      assert.equal(await page.locator('path.curve').count(), 8);
      assert.equal(await page.locator('.case').count(), 2 * SHOWN);
      const broken = await page.evaluate<[number, number]>(`(async () => {
        const sources = Array.from(document.querySelectorAll('image'), (image) => image.getAttribute('href'));
        const widths = await Promise.all(sources.map(async (source) => {
          const image = new Image();
          image.src = source;
          await image.decode();
          return image.naturalWidth;
        }));
        return [widths.length, widths.filter((width) => width === 0).length];
      })()`);
      assert.deepEqual(broken, [3 * 2 * SHOWN, 0]);
      const wide = page.locator('.case', { hasText: 'gear/test/good' }).locator('figure svg').first();
      const box = await wide.boundingBox();
      assert.ok(Math.abs(box!.width / box!.height - 2) < 0.02, JSON.stringify(box));
      assert.ok((await page.locator('.contour').count()) >= 4);
      const overflow = await page.evaluate<boolean>(
        'document.documentElement.scrollWidth > document.documentElement.clientWidth',
      );
      assert.equal(overflow, false);
    }));

  it('reports and skips an image that cannot be scored, and retries it later', () =>
    inFolder(async (folder) => {
      const set = path.join(folder, 'set');
      for (const [kind, name] of [
        ['good', 'a.png'],
        ['bad', 'b.png'],
      ] as const) {
        await cp(path.join(data, 'gear', 'test', 'good', '000.png'), path.join(set, kind, name));
      }
      const file = path.join(set, 'good', 'c.png');
      await writeFile(file, 'no image');
      const first = await diad(['eval', '--data', set, '--out', path.join(folder, 'out')]);
      assert.equal(first.code, 1, first.stderr);
      assert.match(first.stderr, /c\.png: Expected PNG, JPEG/);
      const results = JSON.parse(await readFile(path.join(folder, 'out', 'results.json'), 'utf8')) as Results;
      assert.deepEqual([results.images, results.failed.length], [2, 1]);
      assert.equal(results.mean.pixel_auroc, null); // the defective image has no mask
      assert.equal(results.mean.image_auroc, 0.5); // the same image twice
      await cp(path.join(set, 'good', 'a.png'), file);
      const second = await diad(['eval', '--data', set, '--out', path.join(folder, 'out'), '--resume']);
      assert.equal(second.code, 0, second.stderr);
    }));
});

describe('files on disk', () => {
  it('removes a truncated last line and keeps the others', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'lines.jsonl');
      await writeFile(file, '{"a":1}\n{"a":2}\n{"a":');
      const { file: lines, lines: found } = await JsonLines.open<{ a: number }>(file);
      assert.deepEqual(found, [{ a: 1 }, { a: 2 }]);
      await lines.append({ a: 3 });
      await lines.close();
      assert.equal(await readFile(file, 'utf8'), '{"a":1}\n{"a":2}\n{"a":3}\n');
    }));

  it('reads a file longer than the longest string line by line, and removes garbage after a crash', () => {
    return inFolder(async (folder) => {
      const file = path.join(folder, 'lines.jsonl');
      await writeFile(file, '{"a":1}\n{"a":2}\n');
      await truncate(file, constants.MAX_STRING_LENGTH + 1); // a hole of zeros without disk space
      const { file: lines, lines: found } = await JsonLines.open<{ a: number }>(file);
      await lines.close();
      assert.deepEqual(found, [{ a: 1 }, { a: 2 }]);
      assert.equal((await stat(file)).size, 16);
    });
  });

  it('reads long lines and multi-byte characters; returns an empty line for more than 1 MiB', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'lines.jsonl');
      const texts = ['', 'ü'.repeat(200_000), 'short', '€'.repeat(300_000), 'x'.repeat(2 ** 21), 'last'];
      await writeFile(file, `${texts.join('\n')}\nwithout newline`);
      const lines = await LineFile.open(file);
      const found: CompleteLine[] = [];
      for await (const line of lines.lines()) found.push(line);
      await lines.close();
      assert.deepEqual(
        found.map(({ text }) => text),
        texts.map((text) => (text.startsWith('x') ? '' : text)),
      );
      let end = 0;
      for (const [i, text] of texts.entries())
        assert.equal(found[i]!.end, (end += Buffer.byteLength(text) + 1));
    }));

  it('removes a partly written line before the next one', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'lines.jsonl');
      const { file: lines } = await JsonLines.open<{ a: number }>(file);
      await lines.append({ a: 1 });
      const handle = await open(file);
      const prototype = Object.getPrototypeOf(handle) as FileHandle;
      await handle.close();
      const { appendFile } = prototype;
      prototype.appendFile = async function (text) {
        await appendFile.call(this, (text as string).slice(0, 4));
        throw new Error('no space');
      };
      try {
        await assert.rejects(lines.append({ a: 2 }), /no space/);
      } finally {
        prototype.appendFile = appendFile;
      }
      assert.equal(await readFile(file, 'utf8'), '{"a":1}\n');
      await lines.append({ a: 3 });
      await lines.close();
      assert.equal(await readFile(file, 'utf8'), '{"a":1}\n{"a":3}\n');
    }));

  it('treats an image with a short map as not done', () =>
    inFolder(async (folder) => {
      const identity: RunIdentity = {
        version: 1,
        data: '/d',
        layout: 'mvtec',
        images: 2,
        list: '',
        model: '',
        precision: 'float32',
        seed: '0',
        side: 2,
      };
      const scored = (index: number) => ({
        index,
        file: `${index}.png`,
        score: index,
        width: 2,
        height: 2,
        computeMs: 1,
      });
      const run = await ScoredImages.open(folder, identity, false);
      await run.add(scored(0), Float32Array.of(1, 2, 3, 4));
      await run.add(scored(1), Float32Array.of(5, 6, 7, 8));
      await run.close();
      await writeFile(path.join(folder, 'maps', '000001.f32'), 'short');
      await rejects(
        ScoredImages.open(folder, { ...identity, model: 'other' }, true),
        'ERR_DIAD_INVALID_ARGUMENT',
        /run with model ""/,
      );
      const again = await ScoredImages.open(folder, identity, true);
      assert.deepEqual([...again.done.keys()], [0]);
      assert.deepEqual([...(await again.map(0))], [1, 2, 3, 4]);
      await again.close();
    }));
});
