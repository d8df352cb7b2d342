// Computes the statistics of normal images in one pass with the engine's calibrator.
import { setMaxListeners } from 'node:events';
import type { Calibrator } from '../calibration/calibrator.js';
import { DiadError } from '../errors.js';
import { inOrder } from '../async/map-ordered.js';
import type { NativeCalibration } from '../native/addon.js';
import { readImage } from './images.js';

/** Role of an image; 'training' and 'held-out' refer to the split of `diad train`. */
export type CalibrationRole = 'training' | 'held-out' | 'calibration';

export const CALIBRATION_ROLES: readonly CalibrationRole[] = ['training', 'held-out', 'calibration'];

/** A normal image. Without a class, it contributes only to the statistics of all images. */
export interface NormalImage {
  readonly file: string;
  readonly className: string | undefined;
  readonly role: CalibrationRole;
}

/** Most images per class; equals the engine's limit. */
export const MOST_IMAGES = 1000;
/** Pixels. Feature maps of smaller images would have too few elements. */
const SMALLEST_SIDE = 16;

/** Checks whether thresholds use images of this role. Training images are excluded. */
export const isJudged = (role: CalibrationRole): boolean => role !== 'training';

/** Returns `count` evenly spaced items. */
function spaced<T>(items: readonly T[], count: number): T[] {
  if (items.length <= count) return [...items];
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)]!);
}

/**
 * Selects at most 1,000 images per class and keeps their order. Prefers images that thresholds use, and
 * spaces the selection evenly.
 */
export function chosenImages(images: readonly NormalImage[]): NormalImage[] {
  const chosen = new Set<NormalImage>();
  for (const name of new Set(images.map(({ className }) => className))) {
    const own = images.filter(({ className }) => className === name);
    const judged = spaced(
      own.filter(({ role }) => isJudged(role)),
      MOST_IMAGES,
    );
    const others = own.filter(({ role }) => !isJudged(role));
    for (const image of [...judged, ...spaced(others, MOST_IMAGES - judged.length)]) chosen.add(image);
  }
  return images.filter((image) => chosen.has(image));
}

function failureOf(file: string, reason: unknown): DiadError {
  const code = reason instanceof DiadError ? reason.code : 'ERR_DIAD_INTERNAL';
  return new DiadError(code, `${file}: ${reason instanceof Error ? reason.message : String(reason)}`, {
    cause: reason,
  });
}

/** Returns a promise that rejects with the signal's reason when it aborts, and never resolves. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const abort = (): void => {
      reject(signal.reason as Error);
    };
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
}

/** Options of {@link learnNormality}. */
export interface LearnOptions {
  readonly seed: number | bigint;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: ((done: number, total: number) => void) | undefined;
}

/**
 * Adds images to a calibrator, several concurrently, and computes the statistics. Rows of the result refer to
 * images by their index in the list.
 *
 * @param calibrator - always dropped at the end
 * @throws DiadError ERR_DIAD_IMAGE_DECODE and other errors of `Diad.score`, ERR_DIAD_INVALID_ARGUMENT for an
 *   image that is too small; all name the file; the signal's reason
 */
export async function learnNormality(
  calibrator: Calibrator,
  images: readonly NormalImage[],
  { seed, signal, onProgress }: LearnOptions,
): Promise<NativeCalibration> {
  const left = new AbortController();
  const both = signal === undefined ? left.signal : AbortSignal.any([signal, left.signal]);
  setMaxListeners(0, both); // one listener per image in flight
  const add = async (
    { file, className, role }: NormalImage,
    index: number,
  ): Promise<DiadError | undefined> => {
    try {
      both.throwIfAborted();
      const call = { index, className, inMemory: true, inStatistics: isJudged(role), seed, signal: both };
      const { width, height } = await calibrator.add(await readImage(file), call);
      if (Math.min(width, height) >= SMALLEST_SIDE) return undefined;
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected an image of at least ${SMALLEST_SIDE} x ${SMALLEST_SIDE} pixels ` +
          `but received ${width} x ${height}`,
      );
    } catch (error) {
      return failureOf(file, error);
    }
  };
  try {
    let done = 0;
    const abandon = (): void => {
      left.abort(new DiadError('ERR_DIAD_CLOSED', 'Calibration ended'));
    };
    for await (const failure of inOrder(images, calibrator.concurrency, add, abandon)) {
      signal?.throwIfAborted();
      if (failure !== undefined) throw failure;
      done += 1;
      onProgress?.(done, images.length);
    }
    const learning = calibrator.finish();
    return await (signal === undefined ? learning : Promise.race([learning, aborted(signal)]));
  } finally {
    calibrator.drop();
  }
}
