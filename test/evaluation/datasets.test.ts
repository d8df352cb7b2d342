// Data set layouts: detection, reading, and errors of invalid files.
import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import sharp from 'sharp';
import {
  LAYOUT_NAMES,
  readDataSet,
  type LayoutName,
  type TestImage,
} from '../../lib/evaluation/datasets/index.js';
import { maskOf, readImage } from '../../lib/evaluation/images.js';
import { pillowResize } from '../../lib/image/pillow-resize.js';
import { writeMask, writeImage, writeTree } from '../support/dataset-trees.js';
import { bmp } from '../support/bmp.js';
import { inFolder, python, rejects, runProgram } from '../support/support.js';

const size = { width: 16, height: 16 };

/** Counts class, defect and number of masks over the images. */
const summary = (images: readonly TestImage[]): string[] =>
  images.map(
    ({ className, defect, defective, masks }) =>
      `${className} ${defect}${defective ? '!' : ''} ${masks.length}`,
  );

const EXPECTED: Readonly<Record<LayoutName, readonly string[]>> = {
  mvtec: ['bolt good 0', 'bolt crack! 1', 'bolt crack! 0', 'nut good 0', 'nut crack! 1', 'nut crack! 0'],
  mpdd: ['bolt good 0', 'bolt crack! 1', 'bolt crack! 0', 'nut good 0', 'nut crack! 1', 'nut crack! 0'],
  loco: [
    ...['bolt good 0', 'bolt logical_anomalies! 2', 'bolt structural_anomalies! 2'],
    ...['nut good 0', 'nut logical_anomalies! 2', 'nut structural_anomalies! 2'],
  ],
  btad: ['01 good 0', '01 ko! 1', '02 good 0', '02 ko! 1'],
  'visa-reorganized': ['bolt good 0', 'bolt bad! 1', 'nut good 0', 'nut bad! 1'],
  visa: ['candle good 0', 'candle anomaly! 1', 'pcb1 good 0', 'pcb1 anomaly! 1'],
  mvtec3d: ['bolt good 0', 'bolt hole! 1', 'nut good 0', 'nut hole! 1'],
  mvtec2: ['bolt good 0', 'bolt bad! 1', 'nut good 0', 'nut bad! 1'],
  'real-iad': ['toy good 0', 'toy HS! 1', 'usb good 0', 'usb HS! 1'],
  folder: ['set good 0', 'set bad! 1', 'set bad! 0'],
};

const withTree = (layout: LayoutName, use: (root: string) => Promise<void>): Promise<void> =>
  inFolder(async (folder) => {
    const root = path.join(folder, 'set');
    await writeTree(layout, root);
    await use(root);
  });

describe('data sets', () => {
  for (const layout of LAYOUT_NAMES) {
    it(`${layout}: detects or reads the layout by name, with readable images and masks`, () =>
      withTree(layout, async (root) => {
        const found = await readDataSet(root);
        assert.equal(found.layout, layout === 'mpdd' ? 'mvtec' : layout);
        assert.deepEqual(summary(found.images), EXPECTED[layout]);
        const named = await readDataSet(root, layout);
        assert.deepEqual(named.images, found.images);
        for (const image of found.images) {
          await readImage(image.file);
          const mask = await maskOf(image, size, 8, 'half');
          if (!image.defective) assert.deepEqual(new Set(mask), new Set([0]));
          else if (image.masks.length > 0) {
            // Half of the image is masked; MVTec LOCO's two masks cover a quarter each.
            assert.equal(
              mask!.reduce((sum, value) => sum + value, 0),
              32,
              image.file,
            );
          } else assert.equal(mask, undefined);
        }
      }));
  }

  it('reads one class of a data set, regardless of other folders', () =>
    withTree('mvtec', async (root) => {
      await mkdir(path.join(root, 'broken', 'test', 'good'), { recursive: true });
      const { layout, images } = await readDataSet(path.join(root, 'nut'));
      assert.equal(layout, 'mvtec');
      assert.deepEqual(summary(images), EXPECTED.mvtec.slice(3));
      await rejects(
        readDataSet(root),
        'ERR_DIAD_INVALID_ARGUMENT',
        /images below .*broken\/test but found none/,
      );
    }));

  it('reads plain folders by class and masks by defect', () =>
    inFolder(async (root) => {
      await writeImage(path.join(root, 'bolt', 'OK', 'a.png'));
      await writeImage(path.join(root, 'bolt', 'bent', 'a.png'));
      await writeMask(path.join(root, 'bolt', 'masks', 'bent', 'a.png'));
      const { layout, images } = await readDataSet(root);
      assert.equal(layout, 'folder');
      assert.deepEqual(summary(images), ['bolt good 0', 'bolt bent! 1']);
    }));

  it('reads lists with another name for normal, two sets of images, and a byte order mark', () =>
    inFolder(async (root) => {
      const [iad, visa] = [path.join(root, 'iad'), path.join(root, 'visa')];
      await mkdir(path.join(iad, 'realiad_jsons'), { recursive: true });
      for (const size of ['realiad_1024', 'realiad_256'])
        await mkdir(path.join(iad, size, 'toy'), { recursive: true });
      const entry = (kind: string) => ({ category: 'toy', anomaly_class: kind, image_path: `${kind}.png` });
      const list = { meta: { prefix: 'toy', normal_class: 'FINE' }, test: [entry('FINE'), entry('OK')] };
      await writeFile(path.join(iad, 'realiad_jsons', 'toy.json'), JSON.stringify(list));
      const { images } = await readDataSet(iad, 'real-iad');
      assert.deepEqual(summary(images), ['toy good 0', 'toy OK! 0']);
      assert.equal(images[0]!.file, path.join(iad, 'realiad_1024', 'toy', 'FINE.png'));

      await mkdir(path.join(visa, 'split_csv'), { recursive: true });
      // Spreadsheets write a byte order mark, which also distinguishes UTF-16 from UTF-8.
      const table = '\uFEFFobject,split,label,image,mask\ncandle,test,normal,a.png,\n';
      for (const encoding of ['utf8', 'utf16le'] as const) {
        await writeFile(path.join(visa, 'split_csv', '1cls.csv'), table, encoding);
        assert.deepEqual(summary((await readDataSet(visa)).images), ['candle good 0'], encoding);
      }
    }));

  it('rejects folders that are not data sets with the reason', () =>
    inFolder(async (root) => {
      await rejects(
        readDataSet(path.join(root, 'gone')),
        'ERR_DIAD_INVALID_ARGUMENT',
        /Folder not found: .*gone/,
      );
      await rejects(readDataSet(root), 'ERR_DIAD_INVALID_ARGUMENT', /none of the layouts visa, real-iad/);
      await rejects(readDataSet(root, 'mvtec'), 'ERR_DIAD_INVALID_ARGUMENT', /folders CLASS\/test in/);
      await rejects(readDataSet(root, 'coco' as never), 'ERR_DIAD_INVALID_ARGUMENT', /one of visa/);
      await writeFile(path.join(root, 'file'), '');
      await rejects(readDataSet(path.join(root, 'file')), 'ERR_DIAD_INVALID_ARGUMENT', /is a file/);
      await mkdir(path.join(root, 'split_csv'));
      await writeFile(path.join(root, 'split_csv', '1cls.csv'), 'object,split,label\ncandle,test,normal\n');
      await rejects(readDataSet(root), 'ERR_DIAD_INVALID_ARGUMENT', /1cls\.csv, row 2: Expected object/);
      await rm(path.join(root, 'split_csv'), { recursive: true });
      await mkdir(path.join(root, 'realiad_jsons'));
      await writeFile(path.join(root, 'realiad_jsons', 'toy.json'), '{"test": [}');
      await rejects(readDataSet(root), 'ERR_DIAD_INVALID_ARGUMENT', /toy\.json cannot be read/);
    }));

  it('reads gray, RGBA, 16-bit, indexed and resized masks, and rejects another aspect ratio', () =>
    inFolder(async (root) => {
      const image = (mask: string): TestImage => ({
        file: 'p.png',
        className: 'c',
        defect: 'd',
        defective: true,
        masks: [mask],
      });
      const left = Uint8Array.from({ length: 64 }, (_, i) => (i % 8 < 4 ? 1 : 0));
      const file = (name: string): string => path.join(root, name);
      await writeMask(file('gray.png'), 1);
      await writeMask(file('large.png'), 255, [0, 0, 32, 64], 64, 64);
      await sharp(file('large.png')).ensureAlpha().toColorspace('srgb').png().toFile(file('rgba.png'));
      await sharp(file('large.png')).jpeg({ quality: 60 }).toFile(file('lossy.jpg'));
      const deep = Uint16Array.from({ length: 256 }, (_, i) => (i % 16 < 8 ? 1 : 0));
      await sharp(deep, { raw: { width: 16, height: 16, channels: 1 } })
        .toColorspace('grey16')
        .png()
        .toFile(file('deep.png'));
      const palette = [0, 255].map((level) => [level, level, level] as const);
      await writeFile(
        file('bit.bmp'),
        bmp({
          width: 16,
          height: 16,
          bits: 1,
          palette,
          pixels: Array<number[]>(16).fill([0xff, 0, 0, 0]).flat(),
        }),
      );
      for (const name of ['gray.png', 'large.png', 'rgba.png', 'lossy.jpg', 'deep.png', 'bit.bmp']) {
        assert.deepEqual(await maskOf(image(file(name)), size, 8, 'half'), left, name);
      }
      await writeMask(file('wide.png'), 255, [0, 0, 1, 1], 32, 16);
      await rejects(
        maskOf(image(file('wide.png')), size, 8, 'half'),
        'ERR_DIAD_INVALID_ARGUMENT',
        /wide\.png is 32 x 16 but its image p\.png/,
      );
      await writeFile(file('bad.png'), 'no image');
      await rejects(
        maskOf(image(file('bad.png')), size, 8, 'half'),
        'ERR_DIAD_IMAGE_DECODE',
        /bad\.png cannot be read/,
      );
      await rejects(
        maskOf(image(file('gone.png')), size, 8, 'half'),
        'ERR_DIAD_IMAGE_DECODE',
        /gone\.png cannot be read/,
      );
      await rejects(readImage(file('gone.bmp')), 'ERR_DIAD_IMAGE_DECODE', /gone\.bmp/);
      const two = { ...image(file('gray.png')), masks: [file('gray.png'), file('large.png')] };
      await rejects(
        maskOf(two, size, 8, 'half'),
        'ERR_DIAD_INVALID_ARGUMENT',
        /large\.png is 64 x 64 but .*gray\.png is 16 x 16/,
      );
    }));

  it('published rule: any gray left after the resize counts, and no mask means everywhere', () =>
    inFolder(async (root) => {
      const mask = path.join(root, 'm.png');
      await writeMask(mask); // left half; the filter reaches one eighth into the next column
      const image: TestImage = { file: 'p.png', className: 'c', defect: 'd', defective: true, masks: [mask] };
      const count = (found: Uint8Array | undefined): number => found!.reduce((sum, value) => sum + value, 0);
      assert.equal(count(await maskOf(image, size, 8, 'half')), 32);
      assert.equal(count(await maskOf(image, size, 8, 'any')), 40);
      assert.equal(count(await maskOf({ ...image, masks: [] }, size, 8, 'any')), 64);
    }));

  it('resizes exactly like Pillow', async () => {
    const script = `
import sys, json, numpy as np
from PIL import Image
r = np.random.default_rng(5)
out = []
for w, h, tw, th in [(31, 17, 8, 8), (8, 8, 21, 13), (64, 5, 64, 3), (1, 1, 4, 4), (100, 70, 33, 70)]:
    a = r.integers(0, 256, (h, w), dtype=np.uint8)
    b = np.asarray(Image.fromarray(a).resize((tw, th), Image.Resampling.BILINEAR))
    out.append([w, h, tw, th, a.ravel().tolist(), b.ravel().tolist()])
json.dump(out, sys.stdout)`;
    const { code, stdout, stderr } = await runProgram(python, ['-c', script]);
    assert.equal(code, 0, stderr);
    for (const [w, h, tw, th, from, to] of JSON.parse(stdout) as [
      number,
      number,
      number,
      number,
      number[],
      number[],
    ][]) {
      assert.deepEqual(
        [...pillowResize(Uint8Array.from(from), w, h, tw, th)],
        to,
        `${w} x ${h} to ${tw} x ${th}`,
      );
    }
  });
});
