// Data sets: detects the layout of a folder and lists its test images.
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { oneOf, requiredText } from '../../validate.js';
import { btad, folder, loco, mpdd, mvtec, mvtec2, mvtec3d, visaReorganized } from './folders.js';
import {
  LAYOUT_NAMES,
  list,
  problem,
  type DataSet,
  type Layout,
  type LayoutName,
  type TestImage,
} from './layout.js';
import { realIad, visa } from './listed.js';

export { LAYOUT_NAMES, type DataSet, type LayoutName, type TestImage } from './layout.js';

const LAYOUTS: Readonly<Record<LayoutName, Layout>> = {
  visa,
  'real-iad': realIad,
  mvtec2,
  mvtec3d,
  loco,
  btad,
  'visa-reorganized': visaReorganized,
  mvtec,
  mpdd,
  folder,
};

/** Checks whether a folder is a single class of a layout with class folders. */
const isClass = async (root: string): Promise<boolean> => {
  const { folders } = await list(root);
  return folders.includes('test') || folders.includes('test_public');
};

async function detect(root: string, only: string | undefined): Promise<LayoutName> {
  for (const name of LAYOUT_NAMES) if (await LAYOUTS[name].detect(root, only)) return name;
  throw problem(
    `${root} has none of the layouts ${LAYOUT_NAMES.join(', ')}; ` +
      'the simplest are CLASS/test/good and CLASS/test/DEFECT, or good/ and bad/',
  );
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

const inOrder = (a: TestImage, b: TestImage): number =>
  order(a.className, b.className) ||
  Number(a.defective) - Number(b.defective) ||
  order(a.defect, b.defect) ||
  order(a.file, b.file);

/**
 * Lists the test images of a data set.
 *
 * @param folderOfSet - the data set, or one class of it
 * @param layout - default: detected
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the folder is missing, its layout is unknown, or a file is
 *   invalid; names the file
 */
export async function readDataSet(folderOfSet: string, layout?: LayoutName): Promise<DataSet> {
  const root = path.resolve(requiredText(folderOfSet, 'folderOfSet'));
  const status = await stat(root).catch((error: unknown) => {
    throw problem(`Folder not found: ${folderOfSet}`, error);
  });
  if (!status.isDirectory()) throw problem(`Expected a folder but ${folderOfSet} is a file`);
  const [base, only] = (await isClass(root)) ? [path.dirname(root), path.basename(root)] : [root, undefined];
  const name =
    layout === undefined ? await detect(base, only) : oneOf(layout, 'layout', LAYOUT_NAMES, 'mvtec');
  const images = [...(await LAYOUTS[name].read(base, only))].sort(inOrder);
  if (images.length === 0)
    throw problem(`Expected test images in ${folderOfSet} (layout ${name}) but found none`);
  return { layout: name, root, images };
}
