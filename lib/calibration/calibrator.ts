// Collects normal images for calibration with the engine's calibrator. Used by lib/evaluation/calibrate.
import { fromNative } from '../errors.js';
import type { ImageInput } from '../image/types.js';
import type { NativeCalibration, NativeEngine, NativeSubmitOptions } from '../native/addon.js';
import { validateCallOptions, type ValidatedCall } from '../scoring/options.js';

/** A normal image and its roles in the calibration (docs/design/evidence.md, "Calibration"). */
export interface CalibrationCall {
  readonly index: number;
  /** undefined: no class. */
  readonly className: string | undefined;
  readonly inMemory: boolean;
  readonly inStatistics: boolean;
  readonly seed: number | bigint;
  readonly signal: AbortSignal | undefined;
}

/** Collects normal images. Call `drop` when done. */
export interface Calibrator {
  /** Recommended number of concurrent `add` calls. */
  readonly concurrency: number;
  /**
   * Adds an image.
   *
   * @returns its size, pixels
   * @throws as `Diad.score`
   */
  add(image: ImageInput, call: CalibrationCall): Promise<{ readonly width: number; readonly height: number }>;
  /** Computes the calibration from the added images. Takes seconds; `drop` cancels it. */
  finish(): Promise<NativeCalibration>;
  /** Frees the added images. Can be called at any time, and repeatedly. */
  drop(): void;
}

/** Decodes an image and submits it with its roles in the calibration. */
export type SubmitToCalibrator = (
  image: ImageInput,
  call: ValidatedCall,
  calibration: NativeSubmitOptions['calibration'],
) => Promise<{ readonly frame: { readonly width: number; readonly height: number } }>;

/**
 * Opens a calibrator.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the bundle has no evidence; ERR_DIAD_CLOSED
 */
export function createCalibrator(
  engine: NativeEngine,
  concurrency: number,
  submit: SubmitToCalibrator,
): Calibrator {
  let calibrator: number;
  try {
    calibrator = engine.createCalibrator();
  } catch (error) {
    throw fromNative(error);
  }
  let dropped = false;
  return {
    concurrency,
    add: async (image, { index, className, inMemory, inStatistics, seed, signal }) => {
      const optional = {
        ...(className === undefined ? {} : { className }),
        ...(signal === undefined ? {} : { signal }),
      };
      const call = validateCallOptions({ seed, ...optional }, true);
      const { frame } = await submit(image, call, { calibrator, index, inMemory, inStatistics });
      return { width: frame.width, height: frame.height };
    },
    finish: async () => {
      try {
        return await engine.finishCalibrator(calibrator);
      } catch (error) {
        throw fromNative(error);
      }
    },
    drop: () => {
      if (!dropped) engine.dropCalibrator(calibrator);
      dropped = true;
    },
  };
}
