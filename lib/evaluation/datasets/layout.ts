// What every data set layout yields, and the file listing that they share.
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, DiadError } from '../../errors.js';
import { isImageName } from '../../image.js';

/** A test image. Its label comes from the data set, never from a mask. */
export interface TestImage {
  /** Path of the image. */
  readonly file: string;
  readonly className: string;
  /** "good", or what the data set calls the defect. */
  readonly defect: string;
  readonly defective: boolean;
  /** Files whose union is the defect's mask; empty for good images and where there is none. */
  readonly masks: readonly string[];
}

/** A data set as a whole. */
export interface DataSet {
  readonly layout: LayoutName;
  /** Absolute path. */
  readonly root: string;
  /** Sorted by class, defect and file. */
  readonly images: readonly TestImage[];
}

/** Layouts by name, in the order in which they are tried. */
export const LAYOUT_NAMES = [
  'visa',
  'real-iad',
  'mvtec2',
  'mvtec3d',
  'loco',
  'btad',
  'visa-reorganized',
  'mvtec',
  'mpdd',
  'folder',
] as const;

export type LayoutName = (typeof LAYOUT_NAMES)[number];

/** One way of laying out a data set. */
export interface Layout {
  /** Whether a folder looks like it; `only`: judged by this class. */
  detect(root: string, only?: string): Promise<boolean>;
  /** Its test images, or those of one class, in any order; throws ERR_DIAD_INVALID_ARGUMENT that names the file which does not fit. */
  read(root: string, only?: string): Promise<readonly TestImage[]>;
}

const GOOD = new Set(['good', 'ok', 'normal']);

/** Whether a folder of this name holds normal images. */
export const isGoodName = (name: string): boolean => GOOD.has(name.toLowerCase());

export const problem = (message: string, cause?: unknown): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', message, cause === undefined ? {} : { cause });

interface Listing {
  readonly folders: readonly string[];
  /** Images only. */
  readonly images: readonly string[];
}

/** Names in a folder, sorted, hidden ones (also macOS's "._" companions) left out; empty for a folder that does not exist. */
export async function list(folder: string): Promise<Listing> {
  try {
    const entries = (await readdir(folder, { withFileTypes: true })).filter(
      ({ name }) => !name.startsWith('.'),
    );
    const names = (wanted: typeof entries): string[] => wanted.map(({ name }) => name).sort();
    // Links count as what their name says: data sets are often linked together.
    return {
      folders: names(
        entries.filter(
          (entry) => entry.isDirectory() || (entry.isSymbolicLink() && !isImageName(entry.name)),
        ),
      ),
      images: names(entries.filter((entry) => !entry.isDirectory() && isImageName(entry.name))),
    };
  } catch (error) {
    if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return { folders: [], images: [] };
    throw problem(`${folder} cannot be listed`, error);
  }
}

/** Subfolders of a root that hold all of the named folders. */
export async function foldersWith(root: string, ...inside: readonly string[]): Promise<string[]> {
  const { folders } = await list(root);
  const found: string[] = [];
  for (const folder of folders) {
    const { folders: below } = await list(path.join(root, folder));
    if (inside.every((name) => below.includes(name))) found.push(folder);
  }
  return found;
}

/** Name without its ending. */
export const stem = (file: string): string => path.parse(file).name;

/**
 * Masks of an image in a folder of masks: NAME_mask.* or NAME.* beside the others, or all images of a folder NAME.
 *
 * @param masks - listing of the folder, made once per folder
 */
export async function masksFor(image: string, folder: string, masks: Listing): Promise<readonly string[]> {
  const name = stem(image);
  if (masks.folders.includes(name)) {
    const { images } = await list(path.join(folder, name));
    return images.map((mask) => path.join(folder, name, mask));
  }
  const fits = masks.images.find((mask) => [`${name}_mask`, name].includes(stem(mask)));
  return fits === undefined ? [] : [path.join(folder, fits)];
}
