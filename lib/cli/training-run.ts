// State of a `diad train` run: the split into training and held-out images, and whether training has
// finished.
import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import Type, { type Static } from 'typebox';
import { Check } from 'typebox/value';
import { bundleDigest } from '../calibration/bundle-digest.js';
import { writeAtomic } from '../io/atomic-file.js';
import { codeOf, DiadError, invalidArgument } from '../errors.js';
import type { CalibrationImage } from '../evaluation/calibration-types.js';
import { readGoodImages } from '../evaluation/datasets/good.js';
import type { BundleEvidence } from '../scoring/info.js';

const FINISHED = 'trained.json';
export const SPLIT = 'split.json';

const splitFile = Type.Array(
  Type.Object({ file: Type.String(), class_name: Type.String(), held_out: Type.Boolean() }),
);

/** Inputs of a finished training. With the same inputs, the command only repeats the calibration. */
const finishedFile = Type.Object({
  /** Digest of the trained model. */
  model: Type.String(),
  out: Type.String(),
  base: Type.String(),
  data: Type.String(),
  /** SHA-256 over names and sizes of the normal images. */
  images: Type.String(),
  /** Other options, as text. */
  options: Type.String(),
});

export type TrainingKey = Omit<Static<typeof finishedFile>, 'model'>;

/** Collects the inputs of a training. Unreadable images are ignored here; the training reports them. */
export async function trainingKey(
  data: string,
  base: string,
  out: string,
  options: readonly string[],
): Promise<TrainingKey> {
  const hash = createHash('sha256');
  const root = path.resolve(data);
  for (const { file, className } of await readGoodImages(data).catch(() => [])) {
    hash.update(`${className}\0${path.relative(root, file)}\0${(await stat(file)).size}\n`);
  }
  return {
    out: path.resolve(out),
    base: path.resolve(base),
    data: root,
    images: hash.digest('hex'),
    options: options.join(' '),
  };
}

async function readJson(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${file} cannot be read; remove ${path.dirname(file)} to train from the beginning`,
      {
        cause: error,
      },
    );
  }
}

/** Checks whether the run has written the existing bundle from the same images with the same options. */
export async function isTrained(run: string, key: TrainingKey): Promise<boolean> {
  const before = await readJson(path.join(run, FINISHED));
  if (!Check(finishedFile, before)) return false;
  const digest = await bundleDigest(key.out).catch(() => undefined);
  return (
    digest === before.model &&
    Object.entries(key).every(([name, value]) => before[name as keyof TrainingKey] === value)
  );
}

/** Records that training has finished. */
export async function noteTrained(run: string, key: TrainingKey): Promise<void> {
  await writeAtomic(
    path.join(run, FINISHED),
    `${JSON.stringify({ model: await bundleDigest(key.out), ...key }, null, 2)}\n`,
  );
}

/**
 * Reads the images of a training and their roles in the calibration.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the file is missing or invalid
 */
export async function readSplit(file: string): Promise<readonly CalibrationImage[]> {
  const split = await readJson(file);
  if (!Check(splitFile, split) || split.length === 0) {
    throw invalidArgument(
      `Expected a list of images with file, class_name and held_out in ${file}; ` +
        `remove ${path.dirname(file)} to train from the beginning`,
    );
  }
  return split.map(({ file: image, class_name: className, held_out: heldOut }) => ({
    file: image,
    className,
    role: heldOut ? 'held-out' : 'training',
  }));
}

/**
 * Returns the images for calibrating a trained bundle. For a class whose reconstruction has no weight, it does
 * not matter which images the denoiser has seen: all of them count for statistics and thresholds.
 */
export function calibrationImages(
  split: readonly CalibrationImage[],
  evidence: BundleEvidence,
): readonly CalibrationImage[] {
  const weights = (name: string): BundleEvidence['weights'] =>
    evidence.classWeights?.[name] ?? evidence.weights;
  return split.map((image) =>
    weights(image.className).reconstruction === 0 ? { ...image, role: 'calibration' } : image,
  );
}
