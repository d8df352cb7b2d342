// Crash-safe store of the scores of a run.
//
//   run.json        inputs of the run; a run is resumed only if they are the same
//   images.jsonl    a line per image, appended once its map is on disk
//   maps/NNNNNN.f32 anomaly map of the image, float32, little-endian, row-major [side, side]
import { mkdir, open, readFile, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { JsonLines, writeAtomic } from '../io/atomic-file.js';
import { codeOf, DiadError } from '../errors.js';

/** Inputs of a run. */
export interface RunIdentity {
  readonly version: 1;
  readonly data: string;
  readonly layout: string;
  /** Number of test images. */
  readonly images: number;
  /** SHA-256 over the list of images and labels. */
  readonly list: string;
  /** Digest of the model. */
  readonly model: string;
  readonly precision: string;
  /** SHA-256 of the normality file that affects the scores; undefined without one. */
  readonly normality?: string | undefined;
  readonly seed: string;
  /** Side of the maps, pixels. */
  readonly side: number;
}

/** Stored result of an image. */
export interface ScoredImage {
  /** Index in the data set. */
  readonly index: number;
  /** Path relative to the data set. */
  readonly file: string;
  readonly score: number;
  /** Width of the image, pixels. */
  readonly width: number;
  /** Height of the image, pixels. */
  readonly height: number;
  readonly computeMs: number;
}

const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** Converts a map to little-endian bytes. */
function mapBytes(map: Float32Array): Buffer {
  const bytes = Buffer.from(map.buffer, map.byteOffset, map.byteLength);
  return littleEndian ? bytes : Buffer.from(bytes).swap32();
}

/** Folder of a run. */
export class ScoredImages {
  readonly folder: string;
  readonly #side: number;
  readonly #lines: JsonLines<ScoredImage>;
  readonly #done: Map<number, ScoredImage>;

  private constructor(
    folder: string,
    side: number,
    lines: JsonLines<ScoredImage>,
    done: Map<number, ScoredImage>,
  ) {
    this.folder = folder;
    this.#side = side;
    this.#lines = lines;
    this.#done = done;
  }

  /**
   * Opens the folder of a run.
   *
   * @param resume - continue an existing run; without it, a folder with a run is rejected
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the folder contains a run with other inputs
   */
  static async open(folder: string, identity: RunIdentity, resume: boolean): Promise<ScoredImages> {
    await mkdir(path.join(folder, 'maps'), { recursive: true });
    const file = path.join(folder, 'run.json');
    const before = await readFile(file, 'utf8').catch((error: unknown) => {
      if (codeOf(error) === 'ENOENT') return undefined;
      throw error;
    });
    if (before === undefined) {
      // Lines without run.json belong to an unknown run.
      await rm(path.join(folder, 'images.jsonl'), { force: true });
      await writeAtomic(file, `${JSON.stringify(identity, null, 2)}\n`);
    } else {
      if (!resume) {
        throw new DiadError(
          'ERR_DIAD_INVALID_ARGUMENT',
          `${folder} already contains a run: resume it (--resume), or choose another folder`,
        );
      }
      refuseOther(folder, before, identity);
    }
    const { file: lines, lines: found } = await JsonLines.open<ScoredImage>(
      path.join(folder, 'images.jsonl'),
    );
    const done = new Map<number, ScoredImage>();
    for (const line of found) {
      const size = await stat(mapFile(folder, line.index)).then(
        (status) => status.size,
        () => 0,
      );
      if (size === 4 * identity.side ** 2) done.set(line.index, line);
    }
    return new ScoredImages(folder, identity.side, lines, done);
  }

  /** Completed images by index. */
  get done(): ReadonlyMap<number, ScoredImage> {
    return this.#done;
  }

  /** Stores an image, first the map, then the line. Resolves when both are on disk. */
  async add(image: ScoredImage, map: Float32Array): Promise<void> {
    const handle = await open(mapFile(this.folder, image.index), 'w');
    try {
      await handle.writeFile(mapBytes(map));
      await handle.sync();
    } finally {
      await handle.close();
    }
    await this.#lines.append(image);
    this.#done.set(image.index, image);
  }

  /** Reads the map of an image, [side, side]. */
  async map(index: number): Promise<Float32Array> {
    const bytes = await readFile(mapFile(this.folder, index));
    const map = new Float32Array(this.#side ** 2);
    if (bytes.length !== map.byteLength) {
      throw new DiadError(
        'ERR_DIAD_INTERNAL',
        `${mapFile(this.folder, index)} has ${bytes.length} bytes, not ${map.byteLength}`,
      );
    }
    Buffer.from(map.buffer).set(littleEndian ? bytes : bytes.swap32());
    return map;
  }

  close(): Promise<void> {
    return this.#lines.close();
  }
}

const mapFile = (folder: string, index: number): string =>
  path.join(folder, 'maps', `${String(index).padStart(6, '0')}.f32`);

function refuseOther(folder: string, before: string, identity: RunIdentity): void {
  let found: Partial<Record<string, unknown>>;
  try {
    found = JSON.parse(before) as typeof found;
  } catch (error) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${folder}/run.json cannot be read; choose another folder`,
      { cause: error },
    );
  }
  const expected: Partial<Record<string, unknown>> = { ...identity };
  for (const key of new Set([...Object.keys(expected), ...Object.keys(found)])) {
    const value = expected[key];
    if (JSON.stringify(found[key]) !== JSON.stringify(value)) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `${folder} contains a run with ${key} ${JSON.stringify(found[key])}, ` +
          `not ${JSON.stringify(value)}: choose another folder`,
      );
    }
  }
}
