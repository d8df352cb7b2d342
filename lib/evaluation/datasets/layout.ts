// Types and file listing shared by all data set layouts.
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, DiadError } from '../../errors.js';
import { isImageName } from '../../image/decode.js';

/** A test image. Its label comes from the data set, never from a mask. */
export interface TestImage {
  /** Path of the image. */
  readonly file: string;
  readonly className: string;
  /** "good", or the data set's name of the defect. */
  readonly defect: string;
  readonly defective: boolean;
  /** Mask files whose union marks the defect; empty for normal images and images without a mask. */
  readonly masks: readonly string[];
}

/** A data set. */
export interface DataSet {
  readonly layout: LayoutName;
  /** Absolute path. */
  readonly root: string;
  /** Sorted by class, defect and file. */
  readonly images: readonly TestImage[];
}

/** Names of the layouts, in the order of detection. */
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

/** A data set layout. */
export interface Layout {
  /** Checks whether a folder has this layout; `only`: checks just this class. */
  detect(root: string, only?: string): Promise<boolean>;
  /**
   * Lists its test images, or those of one class, in any order. Throws ERR_DIAD_INVALID_ARGUMENT that names
   * an invalid file.
   */
  read(root: string, only?: string): Promise<readonly TestImage[]>;
}

const GOOD = new Set(['good', 'ok', 'normal']);

/** Checks whether a folder of this name contains normal images. */
export const isGoodName = (name: string): boolean => GOOD.has(name.toLowerCase());

export const problem = (message: string, cause?: unknown): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', message, cause === undefined ? {} : { cause });

interface Listing {
  readonly folders: readonly string[];
  /** Images only. */
  readonly images: readonly string[];
}

/**
 * Lists a folder, sorted, without hidden files (including "._" files of macOS); empty if it does not exist.
 */
export async function list(folder: string): Promise<Listing> {
  try {
    const entries = (await readdir(folder, { withFileTypes: true })).filter(
      ({ name }) => !name.startsWith('.'),
    );
    const names = (wanted: typeof entries): string[] => wanted.map(({ name }) => name).sort();
    // Data sets are often assembled from symbolic links: classify links by name.
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

/** Lists the subfolders of a root that contain all of the named folders. */
export async function foldersWith(root: string, ...inside: readonly string[]): Promise<string[]> {
  const { folders } = await list(root);
  const found: string[] = [];
  for (const folder of folders) {
    const { folders: below } = await list(path.join(root, folder));
    if (inside.every((name) => below.includes(name))) found.push(folder);
  }
  return found;
}

/** Returns the file name without its extension. */
export const stem = (file: string): string => path.parse(file).name;

/**
 * Finds the masks of an image in a mask folder: NAME_mask.* or NAME.*, or all images in a folder NAME.
 *
 * @param masks - listing of the folder
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
