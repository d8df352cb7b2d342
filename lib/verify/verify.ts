// Verifies a bundle on this machine: compares the engine's results with the reference's golden results.
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { Diad, type ScoreResult } from '../diad.js';
import { codeOf, DiadError } from '../errors.js';
import { baseBundle } from '../native/addon.js';
import { readNpy } from '../io/npy.js';
import type { LoadOptions } from '../scoring/options.js';

/** Comparison of one stage over all golden images. */
export interface StageComparison {
  readonly stage: string;
  /** Largest absolute difference from the reference. */
  readonly maxAbsolute: number;
  /** Largest absolute difference divided by the largest absolute reference value. */
  readonly maxRelative: number;
  /**
   * Largest allowed difference: relative for the score, absolute otherwise. Undefined if there is no limit.
   */
  readonly tolerance?: number;
  readonly passed: boolean;
}

/** Result of {@link verifyBundle}. */
export interface VerifyReport {
  readonly bundle: string;
  readonly device: string;
  readonly precision: string;
  readonly libtorch: string;
  /** Number of compared golden images. */
  readonly images: number;
  readonly stages: readonly StageComparison[];
  readonly passed: boolean;
}

type Tolerances = Readonly<Record<string, number>>;

/** float32 on the CPU. Absolute for latents, reconstruction and maps; relative for the score. */
export const CPU_FLOAT32: Tolerances = {
  x: 0,
  moments: 1e-4,
  z: 2e-4,
  x_T: 2e-4,
  step_x: 2e-4,
  reconstruction: 1e-4,
  distance_layer1: 2e-5,
  distance_layer2: 2e-5,
  distance_layer3: 2e-5,
  map_raw: 4e-5,
  map: 2e-5,
  score: 1e-5,
};
/** float32 on CUDA without TF32, with different kernels and order of summation. */
export const CUDA_FLOAT32: Tolerances = { x: 0, map: 1e-3, score: 1e-3 };
/** bfloat16 and float16 on any device. */
export const HALF: Tolerances = { x: 0, map: 3e-2, score: 5e-3 };
/** int8, which runs only on the CPU. */
export const INT8: Tolerances = { x: 0, map: 5e-2, score: 2e-2 };

/** Returns the tolerances of a device ("cpu", "cuda:0") and precision. */
export function tolerancesFor(device: string, precision: string): Tolerances {
  if (precision === 'int8') return INT8;
  if (precision !== 'float32') return HALF;
  return device.startsWith('cuda') ? CUDA_FLOAT32 : CPU_FLOAT32;
}

interface GoldenCase {
  readonly image: string;
  readonly seed: number;
  readonly score: number;
  readonly stages: readonly string[];
}

async function readGolden(bundle: string): Promise<readonly GoldenCase[]> {
  const file = path.join(bundle, 'golden', 'golden.json');
  let source: string;
  try {
    source = await readFile(file, 'utf8');
  } catch (error) {
    if (codeOf(error) !== 'ENOENT' && codeOf(error) !== 'ENOTDIR') throw error;
    throw new DiadError(
      'ERR_DIAD_BUNDLE_INVALID',
      `${bundle} contains no golden/ to compare with; export or convert it again with this version of diad`,
      { cause: error },
    );
  }
  try {
    const { cases } = JSON.parse(source) as { readonly cases?: readonly GoldenCase[] };
    if (cases === undefined || cases.length === 0) throw new TypeError('no cases');
    return cases;
  } catch (error) {
    throw new DiadError('ERR_DIAD_BUNDLE_INVALID', `${file} is invalid`, { cause: error });
  }
}

interface Largest {
  absolute: number;
  magnitude: number;
}

/** Computes the largest absolute difference of two arrays. NaN counts as infinite. */
export function largestDifference(mine: Float32Array, expected: Float32Array): number {
  if (mine.length !== expected.length) return Infinity;
  let largest = 0;
  for (let i = 0; i < mine.length; i++) {
    const difference = Math.abs(mine[i]! - expected[i]!);
    if (!(difference <= largest)) largest = Number.isNaN(difference) ? Infinity : difference;
  }
  return largest;
}

async function compare(
  found: Map<string, Largest>,
  golden: GoldenCase,
  folder: string,
  result: ScoreResult,
): Promise<void> {
  const name = path.parse(golden.image).name;
  const note = (stage: string, absolute: number, magnitude: number): void => {
    const before = found.get(stage) ?? { absolute: 0, magnitude: 0 };
    found.set(stage, {
      absolute: Math.max(before.absolute, absolute),
      magnitude: Math.max(before.magnitude, magnitude),
    });
  };
  for (const stage of golden.stages) {
    const expected = await readNpy(path.join(folder, `${name}.${stage}.npy`));
    const mine = result.stages?.[stage];
    const fits = mine !== undefined && mine.shape.join() === expected.shape.join();
    const magnitude = expected.data.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
    note(stage, fits ? largestDifference(mine.data, expected.data) : Infinity, magnitude);
  }
  note('score', Math.abs(result.score - golden.score), Math.abs(golden.score));
}

/**
 * Scores a bundle's golden images and compares every stage with the reference results in the bundle.
 *
 * @param bundle - bundle folder; default: the base model
 * @param options - as for `Diad.load`; each device and precision has its own tolerances
 * @throws DiadError as `Diad.load`; ERR_DIAD_BUNDLE_INVALID for a bundle without golden results
 */
export async function verifyBundle(
  bundle: string = baseBundle,
  options?: LoadOptions,
): Promise<VerifyReport> {
  // Thresholds are not verified.
  const diad = await Diad.load(bundle, { ...options, calibration: false });
  try {
    const golden = await readGolden(bundle);
    const folder = path.join(bundle, 'golden');
    const found = new Map<string, Largest>();
    for (const one of golden) {
      const result = await diad.score(await readFile(path.join(folder, one.image)), {
        seed: one.seed,
        stages: true,
      });
      await compare(found, one, folder, result);
    }
    const { device, precision, libtorch } = diad.info;
    const tolerances = tolerancesFor(device, precision);
    const stages = [...found].map(([stage, { absolute, magnitude }]): StageComparison => {
      const maxRelative = absolute === 0 ? 0 : absolute / magnitude;
      const tolerance = tolerances[stage];
      const judged = stage === 'score' ? maxRelative : absolute;
      return {
        stage,
        maxAbsolute: absolute,
        maxRelative,
        ...(tolerance === undefined ? {} : { tolerance }),
        passed: judged <= (tolerance ?? Infinity),
      };
    });
    const passed = stages.every((stage) => stage.passed);
    return { bundle, device, precision, libtorch: libtorch.version, images: golden.length, stages, passed };
  } finally {
    await diad.close();
  }
}
