// Normal pictures of a folder, with their classes.
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { requiredText } from '../../validate.js';
import { foldersWith, isGoodName, list, problem } from './layout.js';

/** A normal picture and its class. */
export interface GoodPicture {
  readonly file: string;
  readonly className: string;
}

async function picturesIn(folder: string, className: string): Promise<GoodPicture[]> {
  const { pictures } = await list(folder);
  return pictures.map((name) => ({ file: path.join(folder, name), className }));
}

/** CLASS/train/good of a data set (or CLASS/train/ok and the like). */
async function trainPictures(root: string): Promise<GoodPicture[]> {
  const found: GoodPicture[] = [];
  for (const className of await foldersWith(root, 'train')) {
    const { folders } = await list(path.join(root, className, 'train'));
    for (const name of folders.filter(isGoodName)) found.push(...(await picturesIn(path.join(root, className, 'train', name), className)));
  }
  return found;
}

/**
 * Normal pictures of a folder: those of CLASS/train/good where the folder is a data set; otherwise every picture in it and, by class, in its
 * folders CLASS/ and CLASS/good/.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when there is none
 */
export async function readGoodPictures(folder: string): Promise<readonly GoodPicture[]> {
  const root = path.resolve(requiredText(folder, 'folder'));
  const status = await stat(root).catch(() => undefined);
  if (status?.isDirectory() !== true) throw problem(`There is no folder ${folder}`);
  const train = await trainPictures(root);
  if (train.length > 0) return train;
  const found = await picturesIn(root, path.basename(root));
  for (const name of (await list(root)).folders) {
    const className = isGoodName(name) ? path.basename(root) : name;
    found.push(...(await picturesIn(path.join(root, name), className)));
    for (const below of (await list(path.join(root, name))).folders.filter(isGoodName)) {
      found.push(...(await picturesIn(path.join(root, name, below), className)));
    }
  }
  if (found.length === 0) throw problem(`Expected pictures in ${folder} or in its folders but found none`);
  return found;
}
