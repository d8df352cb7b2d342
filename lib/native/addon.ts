// Interface to the native addon: locates it, opens LibTorch and the matching engine, loads bundles.
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { DiadError, fromNative } from '../errors.js';
import type { RawFrame } from '../image/types.js';
import { libraryNames } from './libtorch/platform.js';
import { findLibTorch, type LibTorch, type Miss } from './libtorch/search.js';
import { minorOf } from './libtorch/version.js';

/** Properties of the engine. */
export interface EngineVersion {
  readonly engine: string;
  readonly abi: number;
  /** LibTorch version that the engine was built for. */
  readonly libtorchBuilt: string;
  readonly cudaDevices: readonly string[];
  /** Instruction set that LibTorch uses, for example "AVX512". */
  readonly cpuCapability: string;
  /** Default number of intra-op threads. */
  readonly threads: number;
}

/** Milliseconds. `queueMs`: submission to start of the batch; `computeMs`: the batch; the others split it. */
export interface Timings {
  readonly queueMs: number;
  readonly computeMs: number;
  readonly resizeMs: number;
  readonly encodeMs: number;
  readonly denoiseMs: number;
  readonly decodeMs: number;
  readonly extractMs: number;
  readonly mapMs: number;
}

/** Percentiles and mean, milliseconds. */
export interface Distribution {
  readonly p50: number;
  readonly p99: number;
  readonly mean: number;
}

/** Statistics of the engine queue. Distributions cover the last 1,024 images. */
export interface QueueStats {
  readonly queued: number;
  readonly running: number;
  readonly completed: number;
  readonly failed: number;
  readonly cancelled: number;
  readonly batches: number;
  readonly meanBatch: number;
  readonly queueMs: Distribution;
  readonly computeMs: Distribution;
}

export interface NativeLoadOptions {
  readonly device: string;
  readonly precision: string;
  readonly threads: number;
  readonly maxBatch: number;
  readonly maxDelayMs: number;
  readonly queueLimit: number;
  readonly preferredBatches: readonly number[];
  readonly verify: boolean;
  readonly warmup: boolean;
  /** Normality file of the calibration; '' for none. */
  readonly normality: string;
}

export interface NativeSubmitOptions {
  readonly seed: bigint;
  readonly timeoutMs: number;
  readonly priority: number;
  readonly map: boolean;
  readonly reconstruction: boolean;
  readonly stages: boolean;
  /** Class whose normality entry is used; '' or unknown: the entry of the most similar class. */
  readonly className: string;
  /** Calibrator that receives the image's maps and vectors under `className`, and the roles of the image. */
  readonly calibration: {
    readonly calibrator: number;
    readonly index: number;
    readonly inMemory: boolean;
    readonly inStatistics: boolean;
  } | null;
}

/** Scores of calibration images, by index, each computed as for an unseen image. */
export interface NativeUnseenScores {
  readonly indices: Uint32Array;
  readonly scores: Float64Array;
  readonly reconstruction: Float64Array;
  readonly memory: Float64Array;
  /** Maxima of the maps. */
  readonly peaks: Float64Array;
}

export interface NativeCalibration {
  /** Bytes of the normality file. */
  readonly normality: Uint8Array;
  /** Scores with the normality entry of the class. */
  readonly images: NativeUnseenScores;
}

export interface NativeResult {
  readonly score: number;
  /** With a normality: separate scores of the two kinds of evidence. */
  readonly evidence?: { readonly reconstruction: number; readonly memory: number };
  /** Whose entry of the normality judged the image; absent where that is the entry of all images. */
  readonly className?: string;
  readonly size: number;
  readonly map?: Float32Array;
  readonly reconstruction?: Uint8Array;
  readonly stages?: Readonly<
    Record<string, { readonly shape: readonly number[]; readonly data: Float32Array }>
  >;
  readonly timings: Timings;
  readonly batchSize: number;
}

export interface NativeEngine {
  info(): string;
  stats(): QueueStats;
  submit(
    frame: RawFrame,
    options: NativeSubmitOptions,
    onStep: ((step: number, total: number) => void) | null,
  ): { readonly id: number; readonly result: Promise<NativeResult> };
  cancel(id: number): boolean;
  /** @throws ERR_DIAD_INVALID_ARGUMENT when the bundle has no evidence */
  createCalibrator(): number;
  finishCalibrator(id: number): Promise<NativeCalibration>;
  dropCalibrator(id: number): void;
  close(): Promise<void>;
}

/** Arrays of one class and metric options. The call copies the images of the class from the arrays. */
export interface NativeClassRequest {
  readonly maps: Float32Array | Float64Array;
  readonly masks: Uint8Array;
  readonly height: number;
  readonly width: number;
  readonly indices: Uint32Array;
  readonly imageScores: Float64Array;
  readonly imageLabels: Uint8Array;
  readonly mode: string;
  readonly rateLimit: number;
  readonly scratchBytes: number;
}

export interface NativeClassMetrics {
  readonly imageAuroc: number | null;
  readonly imageAp: number | null;
  readonly imageF1max: number | null;
  readonly imageF1maxScore: number | null;
  readonly pixelAuroc: number | null;
  readonly pixelAp: number | null;
  readonly pixelF1max: number | null;
  readonly pixelF1maxScore: number | null;
  readonly auPro: number | null;
  /** Rows of score, false positive rate, true positive rate, precision. */
  readonly pixelCurve: Float64Array;
}

interface NativeAddon {
  open(libtorchFolder: string, enginePath: string): Promise<EngineVersion>;
  classMetrics(request: NativeClassRequest): Promise<NativeClassMetrics>;
  load(bundle: string, options: NativeLoadOptions): Promise<NativeEngine>;
  tuneAllocator(): boolean;
  shutdown(): void;
}

/** The loaded addon, engine and LibTorch of this thread. */
export interface Native {
  readonly addon: NativeAddon;
  readonly version: EngineVersion;
  readonly libtorch: LibTorch;
  readonly addonPath: string;
}

/** Root folder of diad, which contains package.json. */
export const packageRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

/** The bundle that ships with diad. */
export const baseBundle = path.join(packageRoot, 'models', 'base');

const require = createRequire(import.meta.url);

let addonLoaded: { addon: NativeAddon; addonPath: string } | undefined;
let opened: { option: string | undefined; native: Promise<Native> } | undefined;

/** Returns the path of the addon: build/Release or prebuilds. */
export function addonPath(): string {
  try {
    return (require('node-gyp-build') as { path(root: string): string }).path(packageRoot);
  } catch (error) {
    const target = `${process.platform}-${process.arch}, Node ${process.versions.node}`;
    throw new DiadError(
      'ERR_DIAD_INTERNAL',
      `diad has no addon for ${target}: build it with \`npm run build:native\` in the package folder`,
      { cause: error },
    );
  }
}

/**
 * Returns the LibTorch minor versions with an engine, and the file of each engine. Searches next to the addon
 * and in build/Release, so that an engine built from source can be added to an installed diad.
 */
export function engines(addon: string): ReadonlyMap<string, string> {
  const pattern = libraryNames().engine;
  const folders = [path.join(packageRoot, 'build', 'Release'), path.dirname(addon)];
  const found = folders.flatMap((folder) => {
    const names = existsSync(folder) ? readdirSync(folder) : [];
    return names.flatMap((name) => {
      const minor = pattern.exec(name)?.[1];
      return minor === undefined ? [] : [[minor, path.join(folder, name)] as const];
    });
  });
  return new Map(found); // the engine next to the addon takes precedence
}

function loadAddon(): { addon: NativeAddon; addonPath: string } {
  if (addonLoaded === undefined) {
    const file = addonPath();
    const addon = require(file) as NativeAddon;
    // Environment hooks do not run on process.exit() or an uncaught throw; this event does.
    process.once('exit', () => {
      addon.shutdown();
    });
    addonLoaded = { addon, addonPath: file };
  }
  return addonLoaded;
}

/** Returns the addon, without opening LibTorch and the engine. */
export function addon(): NativeAddon {
  return loadAddon().addon;
}

/**
 * Keeps freed memory cached in the process instead of returning it to the system. This speeds up scoring,
 * especially of large models, but the resident set stays at its peak. Changes the C library's allocator for
 * the whole process. Enabled by the CLI; in other programs call it before the first `Diad.load`.
 *
 * @returns false if the C library is not glibc, because others have no such settings
 */
export function tuneAllocator(): boolean {
  return addon().tuneAllocator();
}

async function open(option: string | undefined, misses: Miss[]): Promise<Native> {
  const loaded = loadAddon();
  const available = engines(loaded.addonPath);
  const libtorch = await findLibTorch(option, packageRoot, [...available.keys()].sort(), misses);
  const engine = available.get(minorOf(libtorch.version));
  if (engine === undefined)
    throw new DiadError('ERR_DIAD_INTERNAL', `No engine for LibTorch ${libtorch.version}`);
  try {
    return { ...loaded, libtorch, version: await loaded.addon.open(libtorch.libFolder, engine) };
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * Opens LibTorch and the engine, once per thread. A failed attempt can be repeated.
 *
 * @param option - load option `libtorch`
 * @param misses - receives every location without a usable LibTorch
 * @throws DiadError ERR_DIAD_LIBTORCH_NOT_FOUND, ERR_DIAD_LIBTORCH_MISMATCH
 */
export async function openNative(option?: string, misses: Miss[] = []): Promise<Native> {
  if (opened === undefined || opened.option !== option) opened = { option, native: open(option, misses) };
  const { native } = opened;
  try {
    return await native;
  } catch (error) {
    opened = undefined;
    throw error;
  }
}
