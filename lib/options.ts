// Options of loading and of calls, with their defaults and bounds.
import { NO_LIMITS, type ImageInput, type ImageLimits } from './image.js';
import type { NativeLoadOptions } from './native.js';
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
} from './validate.js';

export const PRECISIONS = ['float32', 'bfloat16', 'float16', 'int8'] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Options of `Diad.load`. */
export interface LoadOptions {
  /** 'auto' (CUDA when there is one, else CPU), 'cpu', 'cuda' or 'cuda:N'. Default 'auto'. */
  readonly device?: string;
  /** What the networks compute in. Default 'float32'; the others change the result (docs/accuracy.md). 'int8' needs a CPU with AVX-512 VNNI. */
  readonly precision?: Precision;
  /** Threads of one operation on the CPU, 1 to 1024. Default: one per core, at most a container's quota of processors. */
  readonly threads?: number;
  /** Images computed together at most, 1 to 256. Default 8. */
  readonly maxBatch?: number;
  /** How long a batch that is not full waits for more, milliseconds, 0 to 60,000. Default 0: it takes what is there. */
  readonly maxDelayMs?: number;
  /**
   * Batch sizes that are computed as soon as so many images wait, the largest first; each from 1 to maxBatch. Only while none of them can be formed does
   * `maxDelayMs` run; then what waits is taken. Default: maxBatch alone.
   */
  readonly preferredBatches?: readonly number[];
  /** Images in flight at most; more reject with ERR_DIAD_QUEUE_FULL. 1 to 1,000,000. Default 1,024. */
  readonly queueLimit?: number;
  /** Largest image, width x height. Default 100,000,000. */
  readonly maxPixels?: number;
  /** Pages or frames a TIFF, GIF, WebP or AVIF may have; the first is scored. 1 to 1,000,000. Default 1: images of several are refused. */
  readonly maxFrames?: number;
  /** Check the hash of every file of the bundle. Default true. */
  readonly verify?: boolean;
  /** Read the bundle's calibration.json, so that results carry thresholds and verdicts. false: as if there were none. Default true. */
  readonly calibration?: boolean;
  /** Compute one image while loading, so that the first call is as fast as later ones. Default true. */
  readonly warmup?: boolean;
  /** Folder of LibTorch or of a torch package. Default: looked for, see `diad doctor`. */
  readonly libtorch?: string;
}

/** Options of every call. */
export interface CallOptions {
  /** Of the noise: an integer from 0 to 2^53 - 1, or a bigint up to 2^64 - 1. Default 0. */
  readonly seed?: number | bigint;
  /** Cancels the call, which rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** From the call, milliseconds; then it rejects with ERR_DIAD_TIMEOUT. Default 0: none. */
  readonly timeoutMs?: number;
  /** Images with a larger one go first, equals in the order of the calls; an integer from -1000 to 1000. Default 0. */
  readonly priority?: number;
  /** Called after each denoising step. What it throws rejects the call. */
  readonly onStep?: (step: number, total: number) => void;
  /** Kind of part, as calibrated: selects its normal images and thresholds. Default: the class whose normal images are most similar. */
  readonly className?: string;
}

/** Options of `score`. */
export interface ScoreOptions extends CallOptions {
  /** Size of the map: the model's (default) or the image's own. */
  readonly mapSize?: 'model' | 'image';
  /** Hand out every intermediate result. Default false. */
  readonly stages?: boolean;
  /**
   * Cut the image into tiles for defects that would vanish at the model's size. The score is the largest of the tiles', the map one of
   * the whole image, as fine as the tiles' maps. Not together with `stages`, nor with a bundle that has learned what whole normal images
   * look like (`diad calibrate` of a bundle with evidence): load such a bundle with `{ calibration: false }`.
   */
  readonly tile?: TileOptions;
}

/** Options of `scoreMany`. */
export interface ScoreManyOptions extends Omit<ScoreOptions, 'onStep'> {
  /** Images in flight at most, 1 to 1,000,000. Default: twice maxBatch. */
  readonly concurrency?: number;
  /** An image that fails ends the iteration ('throw', default) or is handed out in its place ('yield'). */
  readonly onError?: 'throw' | 'yield';
}

/** Call options after validation. */
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

/** Ascending, each once. */
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
