// Data set layouts with image lists: VisA as published (CSV) and Real-IAD (JSON).
import { access, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { parse } from 'csv-parse/sync';
import { list, problem, type Layout, type TestImage } from './layout.js';

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  );

const VISA_LIST = path.join('split_csv', '1cls.csv');

async function readVisaList(root: string): Promise<Record<string, string>[]> {
  const file = path.join(root, VISA_LIST);
  try {
    return parse(await readFile(file), { columns: true, skip_empty_lines: true, trim: true, bom: true });
  } catch (error) {
    throw problem(`${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`, error);
  }
}

/**
 * VisA as published: split_csv/1cls.csv with the columns object, split, label, image, mask; paths relative to
 * the root. Mask pixels contain the index of the kind of defect, not 255.
 */
export const visa: Layout = {
  detect: (root) => exists(path.join(root, VISA_LIST)),
  read: async (root) => {
    const rows = await readVisaList(root);
    return rows.flatMap((row, i): TestImage[] => {
      const { object, split, label, image, mask = '' } = row;
      if (
        object === undefined ||
        split === undefined ||
        label === undefined ||
        image === undefined ||
        image === ''
      ) {
        throw problem(
          `${path.join(root, VISA_LIST)}, row ${i + 2}: ` +
            `Expected object, split, label and image but received ${JSON.stringify(row)}`,
        );
      }
      if (split !== 'test') return [];
      const defective = label !== 'normal';
      return [
        {
          file: path.join(root, image),
          className: object,
          defect: defective ? label : 'good',
          defective,
          masks: defective && mask !== '' ? [path.join(root, mask)] : [],
        },
      ];
    });
  },
};

interface RealIadEntry {
  readonly category?: unknown;
  readonly anomaly_class?: unknown;
  readonly image_path?: unknown;
  readonly mask_path?: unknown;
}

const REAL_IAD_LISTS = [path.join('realiad_jsons', 'realiad_jsons'), 'realiad_jsons', '.'];
const REAL_IAD_IMAGES = ['realiad_1024', 'realiad_512', 'realiad_256', 'realiad_raw', '.'];

async function realIadLists(root: string): Promise<string[]> {
  for (const folder of REAL_IAD_LISTS) {
    const names = await readdir(path.join(root, folder)).catch(() => []);
    const lists = names.filter((name) => name.endsWith('.json') && !name.startsWith('.')).sort();
    if (lists.length > 0) return lists.map((name) => path.join(root, folder, name));
  }
  return [];
}

async function readRealIadList(root: string, file: string): Promise<TestImage[]> {
  let list: { meta?: { prefix?: unknown; normal_class?: unknown }; test?: unknown };
  try {
    list = JSON.parse(await readFile(file, 'utf8')) as typeof list;
  } catch (error) {
    throw problem(`${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`, error);
  }
  if (!Array.isArray(list.test)) throw problem(`${file}: Expected an array "test"`);
  const prefix = typeof list.meta?.prefix === 'string' ? list.meta.prefix : path.parse(file).name;
  const normal = typeof list.meta?.normal_class === 'string' ? list.meta.normal_class : 'OK';
  const bases = REAL_IAD_IMAGES.map((folder) => path.join(root, folder, prefix));
  const found = await Promise.all(bases.map(exists));
  const base = bases[found.indexOf(true)];
  if (base === undefined)
    throw problem(`${file}: Expected images in one of ${bases.join(', ')} but found none`);
  return (list.test as RealIadEntry[]).map((entry, i) => {
    const {
      category = path.parse(file).name,
      anomaly_class: kind,
      image_path: image,
      mask_path: mask,
    } = entry;
    if (typeof image !== 'string' || typeof kind !== 'string' || typeof category !== 'string') {
      throw problem(
        `${file}, test[${i}]: Expected the strings image_path and anomaly_class ` +
          `but received ${JSON.stringify(entry)}`,
      );
    }
    const defective = kind !== normal;
    return {
      file: path.join(base, image),
      className: category,
      defect: defective ? kind : 'good',
      defective,
      masks: defective && typeof mask === 'string' && mask !== '' ? [path.join(base, mask)] : [],
    };
  });
}

/**
 * Real-IAD: a list per class in realiad_jsons/; images in the first existing folder of realiad_1024/,
 * realiad_512/, realiad_256/ and realiad_raw/.
 */
export const realIad: Layout = {
  detect: async (root) => {
    const { folders } = await list(root);
    if (folders.some((name) => name.startsWith('realiad_'))) return true;
    const [first] = await realIadLists(root);
    if (first === undefined) return false;
    const start = await readFile(first, 'utf8').catch(() => '');
    return start.includes('"anomaly_class"');
  },
  read: async (root) => {
    const lists = await realIadLists(root);
    if (lists.length === 0)
      throw problem(`Expected lists of images (realiad_jsons/*.json) in ${root} but found none`);
    return (await Promise.all(lists.map((file) => readRealIadList(root, file)))).flat();
  },
};
