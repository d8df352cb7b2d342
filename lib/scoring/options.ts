// Options of loading and of calls, with their defaults and bounds.
import { NO_LIMITS } from '../image/decode.js';
import type { ImageInput, ImageLimits } from '../image/types.js';
import type { NativeLoadOptions } from '../native/addon.js';
import type { TileOptions } from './tiles.js';
import {
  abortSignal,
  boolean,
  callback,
  integer,
  invalid,
  iterable,
  oneOf,
  optionsObject,
  seed,
  text,
} from '../validate.js';

export const PRECISIONS = ['float32', 'bfloat16', 'float16', 'int8'] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Options of `Diad.load`. */
export interface LoadOptions {
  /** 'auto' (CUDA if available, else CPU), 'cpu', 'cuda' or 'cuda:N'. Default 'auto'. */
  readonly device?: string;
  /**
   * Precision of the networks. Default 'float32'; the others change results (docs/reference/accuracy.md).
   * 'int8' needs a CPU with AVX-512 VNNI.
   */
  readonly precision?: Precision;
  /** CPU threads per operation, 1 to 1024. Default: one per core, limited by the container's CPU quota. */
  readonly threads?: number;
  /** Largest batch, 1 to 256. Default 8. */
  readonly maxBatch?: number;
  /** How long an incomplete batch waits for more images, milliseconds, 0 to 60,000. Default 0: no waiting. */
  readonly maxDelayMs?: number;
  /**
   * Batch sizes to run as soon as that many images are waiting, largest first; each from 1 to maxBatch.
   * `maxDelayMs` starts only when none of them can be formed; then all waiting images run. Default: only
   * maxBatch.
   */
  readonly preferredBatches?: readonly number[];
  /** Most images in flight; further ones reject with ERR_DIAD_QUEUE_FULL. 1 to 1,000,000. Default 1,024. */
  readonly queueLimit?: number;
  /** Largest image, width x height. Default 100,000,000. */
  readonly maxPixels?: number;
  /**
   * Most pages or frames of a TIFF, GIF, WebP or AVIF; only the first is scored. 1 to 1,000,000. Default 1:
   * multi-frame images are rejected.
   */
  readonly maxFrames?: number;
  /** Verify the hash of every file of the bundle. Default true. */
  readonly verify?: boolean;
  /** Load the bundle's calibration.json, so that results have thresholds and verdicts. Default true. */
  readonly calibration?: boolean;
  /** Run one image while loading, so that the first call is as fast as later ones. Default true. */
  readonly warmup?: boolean;
  /** Folder of LibTorch or of a torch package. Default: searched for, see `diad doctor`. */
  readonly libtorch?: string;
}

/** Options of all calls. */
export interface CallOptions {
  /** Seed of the noise: an integer from 0 to 2^53 - 1, or a bigint up to 2^64 - 1. Default 0. */
  readonly seed?: number | bigint;
  /** Cancels the call, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /**
   * Time limit from the call, milliseconds, after which it rejects with ERR_DIAD_TIMEOUT. Default 0: no
   * limit.
   */
  readonly timeoutMs?: number;
  /**
   * Higher values run first, equal ones in the order of the calls; an integer from -1000 to 1000. Default 0.
   */
  readonly priority?: number;
  /** Called after each denoising step. If it throws, the call rejects with that error. */
  readonly onStep?: (step: number, total: number) => void;
  /**
   * Class whose thresholds and statistics of normal images to use. Default: of a bundle with evidence the class
   * whose normal images are most similar, otherwise none.
   */
  readonly className?: string;
}

/** Options of `score`. */
export interface ScoreOptions extends CallOptions {
  /** Size of the map: the model's (default) or the image's. */
  readonly mapSize?: 'model' | 'image';
  /** Return all intermediate results. Default false. */
  readonly stages?: boolean;
  /**
   * Score the image in tiles, for defects too small for the model's image size. The score is the maximum over
   * tiles; the map covers the whole image at the resolution of the tile maps. Cannot be combined with
   * `stages`, nor with a calibrated bundle with evidence, whose statistics describe whole images: load it
   * with `{ calibration: false }`.
   */
  readonly tile?: TileOptions;
}

/** Options of `scoreMany`. */
export interface ScoreManyOptions extends Omit<ScoreOptions, 'onStep'> {
  /** Most images in flight, 1 to 1,000,000. Default: twice maxBatch. */
  readonly concurrency?: number;
  /** A failed image ends the iteration ('throw', default) or is yielded in order ('yield'). */
  readonly onError?: 'throw' | 'yield';
}

/** Validated call options. */
export interface ValidatedCall {
  readonly seed: bigint;
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number;
  readonly priority: number;
  readonly onStep: ((step: number, total: number) => void) | undefined;
  readonly mapSize: 'model' | 'image';
  readonly stages: boolean;
  readonly className: string | undefined;
  readonly tile: Required<TileOptions> | undefined;
}

const LOAD_KEYS = [
  'device',
  'precision',
  'threads',
  'maxBatch',
  'maxDelayMs',
  'preferredBatches',
  'queueLimit',
  'maxPixels',
  'maxFrames',
  'verify',
  'calibration',
  'warmup',
  'libtorch',
] as const;
const CALL_KEYS = ['seed', 'signal', 'timeoutMs', 'priority', 'onStep', 'className'] as const;
const SCORE_KEYS = [...CALL_KEYS, 'mapSize', 'stages', 'tile'] as const;
const MANY_KEYS = [
  'seed',
  'signal',
  'timeoutMs',
  'priority',
  'mapSize',
  'stages',
  'className',
  'tile',
  'concurrency',
  'onError',
] as const;

const DEVICE = /^(auto|cpu|cuda(:\d{1,3})?)$/;

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateLoadOptions(
  bundle: string | undefined,
  options: LoadOptions | undefined,
): {
  bundle: string | undefined;
  libtorch: string | undefined;
  calibration: boolean;
  limits: ImageLimits;
  native: NativeLoadOptions;
} {
  const given = optionsObject(options, 'load options', LOAD_KEYS);
  const device = text(given.device, 'device') ?? 'auto';
  if (!DEVICE.test(device)) throw invalid('auto, cpu, cuda or cuda:N', 'device', device);
  const maxBatch = integer(given.maxBatch, 'maxBatch', 1, 256, 8);
  return {
    bundle: text(bundle, 'bundle'),
    libtorch: text(given.libtorch, 'libtorch'),
    calibration: boolean(given.calibration, 'calibration', true),
    limits: {
      maxPixels: integer(given.maxPixels, 'maxPixels', 1, Number.MAX_SAFE_INTEGER, 100_000_000),
      maxFrames: integer(given.maxFrames, 'maxFrames', 1, NO_LIMITS.maxFrames, 1),
    },
    native: {
      device,
      precision: oneOf(given.precision, 'precision', PRECISIONS, 'float32'),
      threads: given.threads === undefined ? 0 : integer(given.threads, 'threads', 1, 1024, 1),
      maxBatch,
      maxDelayMs: integer(given.maxDelayMs, 'maxDelayMs', 0, 60_000, 0),
      queueLimit: integer(given.queueLimit, 'queueLimit', 1, 1_000_000, 1024),
      preferredBatches: batchSizes(given.preferredBatches, maxBatch),
      verify: boolean(given.verify, 'verify', true),
      warmup: boolean(given.warmup, 'warmup', true),
      normality: '',
    },
  };
}

/** Validates batch sizes and returns them ascending, without duplicates. */
function batchSizes(sizes: unknown, maxBatch: number): readonly number[] {
  if (sizes === undefined) return [];
  if (!Array.isArray(sizes)) throw invalid('an array of batch sizes', 'preferredBatches', sizes);
  const checked = sizes.map((size: unknown, i) => integer(size, `preferredBatches[${i}]`, 1, maxBatch, 1));
  return [...new Set(checked)].sort((a, b) => a - b);
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateCallOptions(options: ScoreOptions | undefined, scoring: boolean): ValidatedCall {
  const given: Partial<ScoreOptions> = optionsObject(
    options,
    'call options',
    scoring ? SCORE_KEYS : CALL_KEYS,
  );
  return {
    seed: seed(given.seed),
    signal: abortSignal(given.signal),
    timeoutMs: integer(given.timeoutMs, 'timeoutMs', 0, 2 ** 31 - 1, 0),
    priority: integer(given.priority, 'priority', -1000, 1000, 0),
    onStep: callback(given.onStep, 'onStep'),
    mapSize: oneOf(given.mapSize, 'mapSize', ['model', 'image'], 'model'),
    stages: boolean(given.stages, 'stages', false),
    className: text(given.className, 'className'),
    tile: tileOptions(given.tile, given.stages === true),
  };
}

function tileOptions(tile: TileOptions | undefined, stages: boolean): Required<TileOptions> | undefined {
  if (tile === undefined) return undefined;
  if (stages) throw invalid('no tile together with stages', 'tile', tile);
  return validateTiles(tile);
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateTiles(tile: TileOptions): Required<TileOptions> {
  const given: Partial<TileOptions> = optionsObject(tile, 'tile', ['size', 'overlap']);
  if (given.size === undefined) throw invalid('an integer from 16 to 65536', 'tile.size', given.size);
  const size = integer(given.size, 'tile.size', 16, 65_536, 16);
  return { size, overlap: integer(given.overlap, 'tile.overlap', 0, size >> 1, size >> 2) };
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateManyOptions(
  images: Iterable<ImageInput> | AsyncIterable<ImageInput>,
  options: ScoreManyOptions | undefined,
  defaultConcurrency: number,
): { call: ValidatedCall; concurrency: number; onError: 'throw' | 'yield' } {
  iterable(images, 'an iterable of images', 'images');
  const { concurrency, onError, ...call } = optionsObject(options, 'scoreMany options', MANY_KEYS);
  return {
    call: validateCallOptions(call, true),
    concurrency: integer(concurrency, 'concurrency', 1, 1_000_000, defaultConcurrency),
    onError: oneOf(onError, 'onError', ['throw', 'yield'], 'throw'),
  };
}
