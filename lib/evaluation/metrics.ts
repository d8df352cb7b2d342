// Metrics of anomaly maps: image and pixel AUROC, AP, F1max, and AU-PRO, per class and their mean.
import { DiadError, fromNative } from '../errors.js';
import { addon, type NativeClassMetrics } from '../native/addon.js';
import { integer, invalid, number, oneOf, optionsObject } from '../validate.js';

/** Metric definitions: exact, or those of another tool (docs/reference/metrics.md). */
export type MetricsMode = (typeof METRICS_MODES)[number];

/** All modes, the default first. */
export const METRICS_MODES = ['exact', 'diad', 'ader', 'anomalib', 'mvtec'] as const;

/** Metric names in report order. */
export const METRIC_NAMES = [
  'image_auroc',
  'image_ap',
  'image_f1max',
  'pixel_auroc',
  'pixel_ap',
  'pixel_f1max',
  'au_pro',
] as const;

/** The seven metrics, 0 to 1; null if undefined, for example AUROC without defects. */
export type Metrics = Readonly<Record<(typeof METRIC_NAMES)[number], number | null>>;

/** A point of a curve. Scores at or above `score` are classified as defective. */
export interface CurvePoint {
  readonly score: number;
  readonly falsePositiveRate: number;
  readonly truePositiveRate: number;
  readonly precision: number;
}

/** Metrics of one class. */
export interface ClassMetrics {
  readonly metrics: Metrics;
  /** Score threshold (inclusive) of the maximum image F1; null without defects. */
  readonly imageF1maxScore: number | null;
  /** Map threshold (inclusive) of the maximum pixel F1; null without defects. */
  readonly pixelF1maxScore: number | null;
  /** Pixel ROC and precision-recall curves, a few hundred points. */
  readonly pixelCurve: readonly CurvePoint[];
}

/** Maps, masks and class names of the images of a data set, row-major. */
export interface EvaluationArrays {
  /** [N, height, width], finite. */
  readonly maps: Float32Array | Float64Array;
  /** [N, height, width]; nonzero pixels are defective. */
  readonly masks: Uint8Array;
  /** Pixels. */
  readonly height: number;
  /** Pixels. */
  readonly width: number;
  /** Class of each image, [N]. */
  readonly classNames: readonly string[];
  /** [N]; default: computed from the maps as defined by the mode. */
  readonly imageScores?: ArrayLike<number>;
  /** [N], nonzero is defective; default: from the masks. Modes `diad` and `ader` always use the masks. */
  readonly imageLabels?: ArrayLike<number | boolean>;
}

/** Options of {@link evaluateArrays}. */
export interface MetricsOptions {
  /** Default 'exact'. */
  readonly mode?: MetricsMode;
  /** False positive rate up to which AU-PRO is integrated, above 0 and at most 1. Default 0.3. */
  readonly fprLimit?: number;
  /** Memory for sorting, bytes. Default 256 MiB. Less memory is slower but does not change results. */
  readonly scratchBytes?: number;
}

/** Metrics of each class, and their mean over the classes for which they are defined. */
export interface EvaluatedMetrics {
  readonly classes: Readonly<Record<string, ClassMetrics>>;
  readonly mean: Metrics;
}

const SCRATCH_BYTES = 256 * 2 ** 20;

/** Validates options and fills in defaults. */
export function validateMetricsOptions(options: MetricsOptions | undefined): Required<MetricsOptions> {
  const given = optionsObject(options, 'metrics options', ['mode', 'fprLimit', 'scratchBytes']);
  return {
    mode: oneOf(given.mode, 'mode', METRICS_MODES, 'exact'),
    fprLimit: number(given.fprLimit, 'fprLimit', 1e-9, 1, 0.3),
    scratchBytes: integer(given.scratchBytes, 'scratchBytes', 1024, Number.MAX_SAFE_INTEGER, SCRATCH_BYTES),
  };
}

const FROM_NATIVE = {
  image_auroc: 'imageAuroc',
  image_ap: 'imageAp',
  image_f1max: 'imageF1max',
  pixel_auroc: 'pixelAuroc',
  pixel_ap: 'pixelAp',
  pixel_f1max: 'pixelF1max',
  au_pro: 'auPro',
} as const satisfies Record<(typeof METRIC_NAMES)[number], keyof NativeClassMetrics>;

function convert(native: NativeClassMetrics): ClassMetrics {
  const pixelCurve: CurvePoint[] = [];
  for (let i = 0; i < native.pixelCurve.length; i += 4) {
    const [score, falsePositiveRate, truePositiveRate, precision] = native.pixelCurve.subarray(i, i + 4);
    pixelCurve.push({
      score: score!,
      falsePositiveRate: falsePositiveRate!,
      truePositiveRate: truePositiveRate!,
      precision: precision!,
    });
  }
  return {
    metrics: Object.fromEntries(METRIC_NAMES.map((name) => [name, native[FROM_NATIVE[name]]])) as Metrics,
    imageF1maxScore: native.imageF1maxScore,
    pixelF1maxScore: native.pixelF1maxScore,
    pixelCurve,
  };
}

/** Images of one class for {@link evaluateClass}. */
export interface ClassArrays {
  readonly maps: Float32Array | Float64Array;
  readonly masks: Uint8Array;
  readonly height: number;
  readonly width: number;
  /** Indices of the class's images in `maps` and `masks`. */
  readonly indices: Uint32Array;
  /** Empty: computed from the maps. */
  readonly imageScores: Float64Array;
  /** Empty: computed from the masks. */
  readonly imageLabels: Uint8Array;
}

/**
 * Computes the metrics of one class on a native thread. Copies the images of the class synchronously: 5 bytes
 * per pixel, or 9 for Float64Array.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_OUT_OF_MEMORY, ERR_DIAD_CLOSED
 */
export async function evaluateClass(
  images: ClassArrays,
  options: Required<MetricsOptions>,
): Promise<ClassMetrics> {
  const { mode, fprLimit: rateLimit, scratchBytes } = options;
  try {
    return convert(await addon().classMetrics({ ...images, mode, rateLimit, scratchBytes }));
  } catch (error) {
    throw fromNative(error);
  }
}

/** Computes the mean of each metric over the classes for which it is defined; null if there are none. */
export function meanMetrics(classes: readonly Metrics[]): Metrics {
  const mean = (name: keyof Metrics): number | null => {
    const values = classes.map((metrics) => metrics[name]).filter((value) => value !== null);
    return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  return Object.fromEntries(METRIC_NAMES.map((name) => [name, mean(name)])) as Metrics;
}

function checkLengths(arrays: EvaluationArrays): void {
  if (typeof arrays !== 'object' || arrays === null) throw invalid('an object of arrays', 'arrays', arrays);
  const { maps, masks, height, width, classNames, imageScores, imageLabels } = arrays;
  if (!(maps instanceof Float32Array || maps instanceof Float64Array))
    throw invalid('a Float32Array or Float64Array', 'maps', maps);
  if (!(masks instanceof Uint8Array)) throw invalid('a Uint8Array', 'masks', masks);
  for (const [name, side] of [['height', height] as const, ['width', width] as const])
    integer(side, name, 1, 2 ** 20, 1);
  if (!Array.isArray(classNames)) throw invalid('an array of names', 'classNames', classNames);
  const count = classNames.length;
  for (const [name, array, expected] of [
    ['maps', maps, count * height * width],
    ['masks', masks, count * height * width],
    ['imageScores', imageScores, count],
    ['imageLabels', imageLabels, count],
  ] as const) {
    if (array !== undefined && array.length !== expected)
      throw invalid(`${expected} elements`, name, array.length);
  }
  if (count === 0)
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', 'Expected at least one image but received none');
}

/**
 * Computes the metrics of a data set from arrays, on native threads, two classes at a time.
 *
 * Additional memory per concurrent class: 9 bytes per pixel (13 for Float64Array) and `scratchBytes`. The
 * images of a class are copied when its computation starts, so do not change the arrays until the promise
 * settles. If they are transferred, the promise rejects.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_OUT_OF_MEMORY, ERR_DIAD_CLOSED
 */
export async function evaluateArrays(
  arrays: EvaluationArrays,
  options?: MetricsOptions,
): Promise<EvaluatedMetrics> {
  const validated = validateMetricsOptions(options);
  checkLengths(arrays);
  const { classNames, imageScores, imageLabels, ...pixels } = arrays;
  const places = new Map<string, number[]>();
  for (const [place, name] of classNames.entries()) {
    const found = places.get(name);
    if (found === undefined) places.set(name, [place]);
    else found.push(place);
  }
  const names = [...places.keys()].sort();
  const results = new Map<string, ClassMetrics>();
  const waiting = names.values();
  const work = async (): Promise<void> => {
    for (const name of waiting) {
      const indices = Uint32Array.from(places.get(name)!);
      const images = {
        ...pixels,
        indices,
        imageScores: Float64Array.from(
          imageScores === undefined ? [] : indices,
          (place) => imageScores![place]!,
        ),
        imageLabels: Uint8Array.from(imageLabels === undefined ? [] : indices, (place) =>
          imageLabels![place] ? 1 : 0,
        ),
      };
      results.set(name, await evaluateClass(images, validated));
    }
  };
  await Promise.all([work(), work()]);
  const classes = Object.fromEntries(names.map((name) => [name, results.get(name)!]));
  return { classes, mean: meanMetrics(names.map((name) => classes[name]!.metrics)) };
}
