// Lists the normal images of a folder with their classes.
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { requiredText } from '../../validate.js';
import { foldersWith, isGoodName, list, problem } from './layout.js';

/** A normal image and its class. */
export interface GoodImage {
  readonly file: string;
  readonly className: string;
}

async function imagesIn(folder: string, className: string): Promise<GoodImage[]> {
  const { images } = await list(folder);
  return images.map((name) => ({ file: path.join(folder, name), className }));
}

/** Lists the images in train/good (or train/ok and similar) of one class. */
async function trainImagesOf(folder: string, className: string): Promise<GoodImage[]> {
  const train = path.join(folder, 'train');
  const good = (await list(train)).folders.filter(isGoodName);
  if (good.length === 0)
    throw problem(`Expected normal images in ${path.join(train, 'good')} but the folder does not exist`);
  return (await Promise.all(good.map((name) => imagesIn(path.join(train, name), className)))).flat();
}

/** Lists CLASS/train/good of a data set, or train/good of a single class; undefined for other folders. */
async function trainImages(root: string): Promise<GoodImage[] | undefined> {
  if ((await list(root)).folders.includes('train')) return trainImagesOf(root, path.basename(root));
  const classes = await foldersWith(root, 'train');
  if (classes.length === 0) return undefined;
  return (await Promise.all(classes.map((name) => trainImagesOf(path.join(root, name), name)))).flat();
}

/**
 * Lists the normal images of a folder: CLASS/train/good of a data set, or train/good of a single class.
 * Otherwise, all images in the folder and, by class, in its folders CLASS/ and CLASS/good/.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there are no images, or a class of a data set has no
 * train/good
 */
export async function readGoodImages(folder: string): Promise<readonly GoodImage[]> {
  const root = path.resolve(requiredText(folder, 'folder'));
  const status = await stat(root).catch(() => undefined);
  if (status?.isDirectory() !== true) throw problem(`Folder not found: ${folder}`);
  const train = await trainImages(root);
  if (train !== undefined && train.length > 0) return train;
  if (train !== undefined) throw problem(`Expected images in train/good of ${folder} but found none`);
  const found = await imagesIn(root, path.basename(root));
  for (const name of (await list(root)).folders) {
    const className = isGoodName(name) ? path.basename(root) : name;
    found.push(...(await imagesIn(path.join(root, name), className)));
    for (const below of (await list(path.join(root, name))).folders.filter(isGoodName)) {
      found.push(...(await imagesIn(path.join(root, name, below), className)));
    }
  }
  if (found.length === 0) throw problem(`Expected images in ${folder} or in its folders but found none`);
  return found;
}
