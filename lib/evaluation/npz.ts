// Reads .npz archives with preds, masks, clsname and optional arrays, as saved by other tools.
import { crc32 } from 'node:zlib';
import { promisify } from 'node:util';
import yauzl from 'yauzl';
import { DiadError } from '../errors.js';
import type { EvaluationArrays } from './metrics.js';
import { requiredText } from '../validate.js';
import { parseNpy, type NpyArray, type NumberArray } from '../io/npy.js';

const bad = (message: string, cause?: unknown): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', message, cause === undefined ? {} : { cause });

const openZip = promisify<string, yauzl.Options, yauzl.ZipFile>(yauzl.open);

async function readEntry(zip: yauzl.ZipFile, entry: yauzl.Entry): Promise<Buffer> {
  const open = promisify(zip.openReadStream.bind(zip)) as (
    entry: yauzl.Entry,
  ) => Promise<NodeJS.ReadableStream>;
  const bytes = Buffer.alloc(entry.uncompressedSize);
  let filled = 0;
  let checksum = 0;
  for await (const chunk of await open(entry)) {
    const part = chunk as Buffer;
    filled += part.copy(bytes, filled);
    checksum = crc32(part, checksum);
  }
  if (checksum !== entry.crc32) throw new Error(`${entry.fileName} does not match its checksum`);
  return bytes;
}

/**
 * Reads arrays of an .npz archive, compressed or uncompressed.
 *
 * @param file - path
 * @param names - arrays to read; missing ones are omitted from the result
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the file is not an archive, damaged, or an array is
 * unreadable
 */
export async function readNpz(
  file: string,
  names: readonly string[],
): Promise<ReadonlyMap<string, NpyArray>> {
  const arrays = new Map<string, NpyArray>();
  let zip: yauzl.ZipFile;
  try {
    zip = await openZip(file, { lazyEntries: true, autoClose: false });
  } catch (error) {
    throw bad(
      `${file} cannot be read as an .npz archive: ${error instanceof Error ? error.message : String(error)}`,
      error,
    );
  }
  try {
    await new Promise<void>((resolve, reject) => {
      zip.on('error', reject);
      zip.on('end', resolve);
      zip.on('entry', (entry: yauzl.Entry) => {
        const name = entry.fileName.replace(/\.npy$/, '');
        const read = names.includes(name) ? readEntry(zip, entry) : Promise.resolve(undefined);
        read
          .then((bytes) => {
            if (bytes !== undefined) arrays.set(name, parseNpy(bytes, `${file}, array ${name}`));
            zip.readEntry();
          })
          .catch(reject);
      });
      zip.readEntry();
    });
  } catch (error) {
    if (error instanceof DiadError) throw error;
    throw bad(`${file} is damaged: ${error instanceof Error ? error.message : String(error)}`, error);
  } finally {
    zip.close();
  }
  return arrays;
}

function numberArray(
  arrays: ReadonlyMap<string, NpyArray>,
  name: string,
  file: string,
): NumberArray | undefined {
  const array = arrays.get(name);
  if (array?.kind === 'text') throw bad(`${file}: Expected numbers in ${name} but found strings`);
  return array;
}

/** Returns [N, H, W] of an array. Drops a single channel ([N, 1, H, W] or [N, H, W, 1]). */
function imageShape(array: NumberArray, name: string, file: string): readonly [number, number, number] {
  const { shape } = array;
  const sides =
    shape.length === 4 && shape[1] === 1
      ? [shape[0]!, shape[2]!, shape[3]!]
      : shape.length === 4 && shape[3] === 1
        ? shape.slice(0, 3)
        : shape;
  const [count, height, width] = sides;
  if (
    sides.length !== 3 ||
    count === undefined ||
    height === undefined ||
    width === undefined ||
    count * height * width === 0
  ) {
    throw bad(`${file}: Expected the shape [N, H, W] for ${name} but it is [${shape.join(', ')}]`);
  }
  return [count, height, width];
}

function perImage(
  array: NumberArray | undefined,
  count: number,
  name: string,
  file: string,
): NumberArray['data'] | undefined {
  if (array === undefined) return undefined;
  if (array.data.length !== count)
    throw bad(`${file}: Expected ${count} values in ${name}, one per image, but found ${array.data.length}`);
  return array.data;
}

function classNames(array: NpyArray | undefined, count: number, file: string): readonly string[] {
  if (array === undefined) return Array.from({ length: count }, () => 'all');
  if (array.data.length !== count)
    throw bad(`${file}: Expected ${count} values in clsname, one per image, but found ${array.data.length}`);
  return Array.from(array.data as ArrayLike<string | number>, String);
}

/**
 * Reads the input of {@link evaluateArrays}: `preds` and `masks` [N, H, W], `clsname` [N] (default: one
 * class, "all"), and optionally `image_scores` and `image_labels` [N].
 *
 * @param maskAbove - mask values above it are defects
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names file and array
 */
export async function readEvaluationNpz(file: string, maskAbove = 0): Promise<EvaluationArrays> {
  requiredText(file, 'file');
  const arrays = await readNpz(file, ['preds', 'masks', 'clsname', 'image_scores', 'image_labels']);
  const preds = numberArray(arrays, 'preds', file);
  const masks = numberArray(arrays, 'masks', file);
  if (preds === undefined || masks === undefined)
    throw bad(
      `${file}: Expected the arrays preds and masks ` +
        `but ${preds === undefined ? 'preds' : 'masks'} is missing`,
    );
  const [count, height, width] = imageShape(preds, 'preds', file);
  const shape = imageShape(masks, 'masks', file);
  if (shape.some((side, d) => side !== [count, height, width][d])) {
    throw bad(
      `${file}: Expected masks with the shape of preds, [${[count, height, width].join(', ')}], ` +
        `but received [${shape.join(', ')}]`,
    );
  }
  const scores = perImage(numberArray(arrays, 'image_scores', file), count, 'image_scores', file);
  const labels = perImage(numberArray(arrays, 'image_labels', file), count, 'image_labels', file);
  const maps = preds.data instanceof Uint8Array ? Float32Array.from(preds.data) : preds.data;
  const defects =
    masks.data instanceof Uint8Array && maskAbove === 0
      ? masks.data
      : Uint8Array.from(masks.data, (value) => (value > maskAbove ? 1 : 0));
  return {
    maps,
    masks: defects,
    height,
    width,
    classNames: classNames(arrays.get('clsname'), count, file),
    ...(scores === undefined ? {} : { imageScores: scores }),
    ...(labels === undefined ? {} : { imageLabels: labels }),
  };
}
