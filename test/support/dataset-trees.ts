// Writes a miniature of each data set layout, including the peculiarities of the real ones.
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import sharp from 'sharp';
import type { LayoutName } from '../../lib/evaluation/datasets/index.js';
import { bmp } from './bmp.js';

const SIDE = 16;

/** Writes a flat color image in the format of the file extension. */
export async function writeImage(file: string, level = 100, width = SIDE, height = SIDE): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  if (/\.bmp$/i.test(file)) {
    const pixels = Array<number>(4 * Math.ceil(width / 4) * height).fill(level);
    await writeFile(
      file,
      bmp({
        width,
        height,
        bits: 8,
        palette: Array.from({ length: 256 }, (_, i) => [i, i, i] as const),
        pixels,
      }),
    );
    return;
  }
  const image = sharp({
    create: { width, height, channels: 3, background: { r: level, g: level, b: level } },
  });
  await writeFile(file, await (/\.jpe?g$/i.test(file) ? image.jpeg() : image.png()).toBuffer());
}

/** Writes a gray mask whose pixels [x0, x1) x [y0, y1) have a value, the others 0. */
export async function writeMask(
  file: string,
  value = 255,
  box: readonly [x0: number, y0: number, x1: number, y1: number] = [0, 0, SIDE / 2, SIDE],
  width = SIDE,
  height = SIDE,
): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  const [x0, y0, x1, y1] = box;
  const data = Uint8Array.from({ length: width * height }, (_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return x >= x0 && x < x1 && y >= y0 && y < y1 ? value : 0;
  });
  await sharp(data, { raw: { width, height, channels: 1 } })
    .png()
    .toFile(file);
}

/** Writes CLASS/test/... as in MVTec-AD, two classes. */
async function classes(
  root: string,
  write: (classFolder: string) => Promise<void>,
  names = ['bolt', 'nut'],
): Promise<void> {
  for (const name of names) {
    await writeImage(path.join(root, name, 'train', 'good', '000.png'));
    await write(path.join(root, name));
  }
}

const TREES: Readonly<Record<LayoutName, (root: string) => Promise<void>>> = {
  mvtec: (root) =>
    classes(root, async (folder) => {
      await writeImage(path.join(folder, 'test', 'good', '000.png'));
      await writeImage(path.join(folder, 'test', 'crack', '000.png'));
      await writeImage(path.join(folder, 'test', 'crack', '001.PNG'));
      await writeMask(path.join(folder, 'ground_truth', 'crack', '000_mask.png'));
      await writeFile(path.join(folder, 'test', 'good', '._000.png'), 'a companion that macOS leaves');
      await writeFile(path.join(folder, 'test', 'crack', 'Thumbs.db'), 'no image');
    }),
  mpdd: (root) => TREES.mvtec(root),
  loco: (root) =>
    classes(root, async (folder) => {
      await writeImage(path.join(folder, 'test', 'good', '000.png'));
      for (const kind of ['logical_anomalies', 'structural_anomalies']) {
        await writeImage(path.join(folder, 'test', kind, '000.png'));
        await writeMask(path.join(folder, 'ground_truth', kind, '000', '000.png'), 251, [0, 0, 4, SIDE]);
        await writeMask(path.join(folder, 'ground_truth', kind, '000', '001.png'), 1, [12, 0, SIDE, SIDE]);
      }
    }),
  btad: (root) =>
    classes(
      root,
      async (folder) => {
        await writeImage(path.join(folder, 'test', 'ok', '0000.bmp'));
        await writeImage(path.join(folder, 'test', 'ko', '0001.bmp'));
        await writeMask(path.join(folder, 'ground_truth', 'ko', '0001.png'));
      },
      ['01', '02'],
    ),
  'visa-reorganized': (root) =>
    classes(root, async (folder) => {
      await writeImage(path.join(folder, 'test', 'good', '000.JPG'));
      await writeImage(path.join(folder, 'test', 'bad', '000.JPG'));
      await writeMask(path.join(folder, 'ground_truth', 'bad', '000.png'));
    }),
  visa: async (root) => {
    const rows = ['object,split,label,image,mask'];
    for (const name of ['candle', 'pcb1']) {
      for (const [split, label, image, mask] of [
        ['train', 'normal', `${name}/Data/Images/Normal/0000.JPG`, ''],
        ['test', 'normal', `${name}/Data/Images/Normal/0001.JPG`, ''],
        ['test', 'anomaly', `${name}/Data/Images/Anomaly/000.JPG`, `${name}/Data/Masks/Anomaly/000.png`],
      ] as const) {
        await writeImage(path.join(root, image));
        if (mask !== '') await writeMask(path.join(root, mask), 2);
        rows.push([name, split, label, image, mask].join(','));
      }
    }
    await mkdir(path.join(root, 'split_csv'));
    await writeFile(path.join(root, 'split_csv', '1cls.csv'), `${rows.join('\n')}\n`);
  },
  mvtec3d: (root) =>
    classes(root, async (folder) => {
      for (const kind of ['good', 'hole']) {
        await writeImage(path.join(folder, 'test', kind, 'rgb', '000.png'));
        await writeMask(path.join(folder, 'test', kind, 'gt', '000.png'), kind === 'good' ? 0 : 255);
        await writeMask(path.join(folder, 'test', kind, 'xyz', '000.tiff.png'));
      }
    }),
  mvtec2: (root) =>
    classes(root, async (folder) => {
      await writeImage(path.join(folder, 'test_public', 'good', '000_regular.png'));
      await writeImage(path.join(folder, 'test_public', 'bad', '000_regular.png'));
      await writeMask(path.join(folder, 'test_public', 'ground_truth', 'bad', '000_regular_mask.png'));
      await writeImage(path.join(folder, 'test_private', '000.png'));
    }),
  'real-iad': async (root) => {
    for (const name of ['toy', 'usb']) {
      const entry = (kind: string, image: string, mask: string | null) => ({
        category: name,
        anomaly_class: kind,
        image_path: image,
        mask_path: mask,
      });
      const ok = `OK/S0001/${name}_0001_OK_C1.jpg`;
      const bad = `NG/HS/S0002/${name}_0002_NG_HS_C1.jpg`;
      await writeImage(path.join(root, 'realiad_256', name, ok));
      await writeImage(path.join(root, 'realiad_256', name, bad));
      await writeMask(path.join(root, 'realiad_256', name, bad.replace('.jpg', '.png')));
      const lists = path.join(root, 'realiad_jsons', 'realiad_jsons');
      await mkdir(lists, { recursive: true });
      const list = {
        meta: { prefix: `${name}/`, normal_class: 'OK' },
        train: [entry('OK', ok, null)],
        test: [entry('OK', ok, null), entry('HS', bad, bad.replace('.jpg', '.png'))],
      };
      await writeFile(path.join(lists, `${name}.json`), JSON.stringify(list));
    }
  },
  folder: async (root) => {
    await writeImage(path.join(root, 'good', 'a.png'));
    await writeImage(path.join(root, 'bad', 'b.jpeg'));
    await writeImage(path.join(root, 'bad', 'c.png'));
    await writeMask(path.join(root, 'masks', 'b.png'));
  },
};

/** Writes the miniature of a layout. */
export const writeTree = (layout: LayoutName, root: string): Promise<void> => TREES[layout](root);
