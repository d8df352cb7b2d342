// Data set layouts defined by folder names: MVTec-AD and similar ones, and plain folders.
import path from 'node:path';
import { foldersWith, isGoodName, list, masksFor, problem, type Layout, type TestImage } from './layout.js';

interface Names {
  /** Folder of test images within a class. */
  readonly test: string;
  /** Folder of masks within a class, by defect. */
  readonly masks: (classFolder: string, defect: string) => string;
  /** Folder with the images inside the folder of a defect; '' for none. */
  readonly inner: string;
}

const MVTEC: Names = {
  test: 'test',
  masks: (folder, defect) => path.join(folder, 'ground_truth', defect),
  inner: '',
};

async function readClass(root: string, className: string, names: Names): Promise<TestImage[]> {
  const classFolder = path.join(root, className);
  const testFolder = path.join(classFolder, names.test);
  const { folders } = await list(testFolder);
  const found: TestImage[] = [];
  for (const defect of folders.filter((name) => name !== 'ground_truth')) {
    const folder = path.join(testFolder, defect, names.inner);
    const maskFolder = names.masks(classFolder, defect);
    const masks = await list(maskFolder);
    for (const image of (await list(folder)).images) {
      const defective = !isGoodName(defect);
      found.push({
        file: path.join(folder, image),
        className,
        defect: defective ? defect : 'good',
        defective,
        masks: defective ? await masksFor(image, maskFolder, masks) : [],
      });
    }
  }
  if (found.length === 0) throw problem(`Expected images below ${testFolder} but found none`);
  return found;
}

async function readClasses(root: string, names: Names, only: string | undefined): Promise<TestImage[]> {
  const classes = only === undefined ? await foldersWith(root, names.test) : [only];
  if (classes.length === 0) throw problem(`Expected folders CLASS/${names.test} in ${root} but found none`);
  return (await Promise.all(classes.map((name) => readClass(root, name, names)))).flat();
}

/** Lists the folders in CLASS/test of the first class, or of `only`; undefined if there is no class. */
async function testFolders(
  root: string,
  only: string | undefined,
): Promise<{ classFolder: string; defects: readonly string[] } | undefined> {
  const [first] = only === undefined ? await foldersWith(root, 'test') : [only];
  if (first === undefined) return undefined;
  const classFolder = path.join(root, first);
  return { classFolder, defects: (await list(path.join(classFolder, 'test'))).folders };
}

const detectDefects =
  (fits: (defects: readonly string[], classFolder: string) => boolean | Promise<boolean>) =>
  async (root: string, only?: string) => {
    const found = await testFolders(root, only);
    return found !== undefined && (await fits(found.defects, found.classFolder));
  };

/** MVTec-AD: CLASS/test/{good,DEFECT}/NNN.png, CLASS/ground_truth/DEFECT/NNN_mask.png. */
export const mvtec: Layout = {
  detect: detectDefects((defects) => defects.length > 0),
  read: (root, only) => readClasses(root, MVTEC, only),
};

/** MPDD: folders as in MVTec-AD. Never detected, because nothing distinguishes it from MVTec-AD. */
export const mpdd: Layout = { detect: () => Promise.resolve(false), read: mvtec.read };

/** VisA reorganized by its authors' script: CLASS/test/{good,bad}/NNN.JPG, CLASS/ground_truth/bad/NNN.png. */
export const visaReorganized: Layout = {
  detect: detectDefects(async (defects, classFolder) => {
    const only = [...defects].sort().join() === 'bad,good';
    const { images } = await list(path.join(classFolder, 'ground_truth', 'bad'));
    return only && images.length > 0 && images.every((name) => !name.includes('_mask'));
  }),
  read: mvtec.read,
};

/**
 * MVTec LOCO: CLASS/test/{good,logical_anomalies,structural_anomalies}. The mask is the union of the files in
 * CLASS/ground_truth/DEFECT/NNN/.
 */
export const loco: Layout = {
  detect: detectDefects(
    (defects) => defects.includes('logical_anomalies') || defects.includes('structural_anomalies'),
  ),
  read: mvtec.read,
};

/** BTAD: CLASS/test/{ok,ko}/NNN.bmp, CLASS/ground_truth/ko/NNN.png. */
export const btad: Layout = {
  detect: detectDefects((defects) => defects.includes('ok') && defects.includes('ko')),
  read: mvtec.read,
};

/** MVTec-3D, color images only: CLASS/test/DEFECT/rgb/NNN.png, CLASS/test/DEFECT/gt/NNN.png. */
export const mvtec3d: Layout = {
  detect: detectDefects(async (defects, classFolder) => {
    const [first] = defects;
    return first !== undefined && (await list(path.join(classFolder, 'test', first))).folders.includes('rgb');
  }),
  read: (root, only) =>
    readClasses(
      root,
      { test: 'test', masks: (folder, defect) => path.join(folder, 'test', defect, 'gt'), inner: 'rgb' },
      only,
    ),
};

const MVTEC2: Names = {
  test: 'test_public',
  masks: (folder, defect) => path.join(folder, 'test_public', 'ground_truth', defect),
  inner: '',
};

/**
 * MVTec AD 2, public test set: CLASS/test_public/{good,bad}/,
 * CLASS/test_public/ground_truth/bad/NNN_mask.png.
 */
export const mvtec2: Layout = {
  detect: async (root, only) => {
    const classes = await foldersWith(root, MVTEC2.test);
    return only === undefined ? classes.length > 0 : classes.includes(only);
  },
  read: (root, only) => readClasses(root, MVTEC2, only),
};

const MASK_FOLDERS = ['masks', 'mask', 'ground_truth'];

async function readPlain(folder: string, className: string): Promise<TestImage[]> {
  const { folders } = await list(folder);
  const maskRoot = folders.find((name) => MASK_FOLDERS.includes(name.toLowerCase()));
  const found: TestImage[] = [];
  for (const defect of folders.filter((name) => name !== maskRoot)) {
    const defective = !isGoodName(defect);
    // Masks are in masks/ or in masks/DEFECT/.
    const maskFolders =
      maskRoot === undefined || !defective
        ? []
        : [path.join(folder, maskRoot, defect), path.join(folder, maskRoot)];
    const listings = await Promise.all(maskFolders.map(list));
    for (const image of (await list(path.join(folder, defect))).images) {
      let masks: readonly string[] = [];
      for (const [i, listing] of listings.entries())
        if (masks.length === 0) masks = await masksFor(image, maskFolders[i]!, listing);
      found.push({
        file: path.join(folder, defect, image),
        className,
        defect: defective ? defect : 'good',
        defective,
        masks,
      });
    }
  }
  return found;
}

/**
 * Plain folders: good/, one or more others (bad/), optionally masks/; at the root or in a folder per class.
 */
export const folder: Layout = {
  detect: async (root) => {
    const { folders } = await list(root);
    if (folders.some(isGoodName)) return true;
    const below = await Promise.all(folders.map((name) => list(path.join(root, name))));
    return below.some((listing) => listing.folders.some(isGoodName));
  },
  read: async (root) => {
    const { folders } = await list(root);
    if (folders.some(isGoodName)) return readPlain(root, path.basename(root));
    const classes = await Promise.all(folders.map((name) => readPlain(path.join(root, name), name)));
    return classes.flat();
  },
};
