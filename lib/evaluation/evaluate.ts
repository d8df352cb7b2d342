// Evaluates a model on a data set: stored scores, metrics, tables and a report.
import { createHash } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import path from 'node:path';
import { isOfTiles, normalizedScore, thresholdsFor, type Calibration } from '../calibration/calibration.js';
import { csv } from '../io/csv.js';
import { calibrationOf, type Diad } from '../diad.js';
import { writeAtomic } from '../io/atomic-file.js';
import { DiadError } from '../errors.js';
import { invalid, loadedBundle, optionsObject, requiredText } from '../validate.js';
import { contentHashes, refuseOverlap } from './content-hash.js';
import type { DataSet, TestImage } from './datasets/index.js';
import {
  evaluateClass,
  meanMetrics,
  METRIC_NAMES,
  validateMetricsOptions,
  type ClassMetrics,
  type Metrics,
  type MetricsMode,
} from './metrics.js';
import { maskOf, readImage, type MaskRule } from './images.js';
import { ScoredImages, type RunIdentity, type ScoredImage } from './scored-images.js';

/** Progress of an evaluation. */
export interface EvaluationProgress {
  readonly stage: 'scoring' | 'metrics';
  readonly done: number;
  readonly total: number;
  /** Number of images in `done` from an earlier run. */
  readonly resumed: number;
}

/** Options of {@link evaluateDataSet}. */
export interface EvaluateOptions {
  /** Folder for scores, tables and report. */
  readonly out: string;
  /** Resume an interrupted run. Default false. */
  readonly resume?: boolean;
  /** Default 'exact'. */
  readonly mode?: MetricsMode;
  /** Seed of the noise. Default 0. */
  readonly seed?: number | bigint;
  /** Stops between images. Completed scores are kept. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: EvaluationProgress) => void;
}

/** An image that could not be scored. */
export interface FailedImage {
  readonly file: string;
  readonly message: string;
}

/** Metrics and counts of a class, as in results.json. */
export interface ClassReport extends ClassMetrics {
  readonly images: number;
  readonly defective: number;
  /** Defective images without a mask: included in image metrics, excluded from pixel metrics. */
  readonly withoutMask: number;
  /** Threshold of the calibration; null without one. */
  readonly threshold: number | null;
}

/** An image with its label, score and verdict. */
export interface ImageReport extends ScoredImage {
  readonly className: string;
  readonly defect: string;
  readonly defective: boolean;
  readonly threshold: number | null;
  readonly normalizedScore: number | null;
  readonly anomalous: boolean | null;
}

/** Result of an evaluation. */
export interface Evaluation {
  readonly out: string;
  readonly mode: MetricsMode;
  readonly call: EvaluationCall;
  readonly data: DataSet;
  readonly classes: Readonly<Record<string, ClassReport>>;
  readonly mean: Metrics;
  readonly images: readonly ImageReport[];
  readonly failed: readonly FailedImage[];
  readonly scores: ScoredImages;
}

const CONCURRENCY = 16;
const KEYS = ['out', 'resume', 'mode', 'seed', 'signal', 'onProgress'] as const;

/** Options that apply to every image of a run. */
export interface EvaluationCall {
  readonly seed: bigint;
}

function identityOf(data: DataSet, diad: Diad, { seed }: EvaluationCall): RunIdentity {
  const hash = createHash('sha256');
  for (const { file, className, defective } of data.images)
    hash.update(`${path.relative(data.root, file)}\0${className}\0${defective}\n`);
  const { bundle, precision } = diad.info;
  return {
    version: 1,
    data: data.root,
    layout: data.layout,
    images: data.images.length,
    list: hash.digest('hex'),
    model: bundle.digest,
    precision,
    normality: calibrationOf(diad)?.normality?.sha256,
    seed: seed.toString(),
    side: bundle.imageSize,
  };
}

async function refuseCalibrationImages(data: DataSet, calibration: Calibration | undefined): Promise<void> {
  if (calibration?.imageDigests === undefined || calibration.imageDigests.length === 0) return;
  const files = data.images.map(({ file }) => file);
  refuseOverlap(
    files,
    await contentHashes(files),
    new Set(calibration.imageDigests),
    'this test set and the calibration set',
  );
}

async function scoreOne(
  diad: Diad,
  data: DataSet,
  index: number,
  call: EvaluationCall,
  signal: AbortSignal | undefined,
) {
  const { file, className } = data.images[index]!;
  const result = await diad.score(await readImage(file), {
    ...call,
    className,
    ...(signal === undefined ? {} : { signal }),
  });
  const { width, height } = result.imageSize;
  const line: ScoredImage = {
    index,
    file: path.relative(data.root, file),
    score: result.score,
    width,
    height,
    computeMs: Math.round(result.timings.computeMs),
  };
  return { line, map: result.map.data };
}

/** Scores the remaining images, up to CONCURRENCY at a time, and stores each result immediately. */
async function scoreAll(
  diad: Diad,
  data: DataSet,
  scores: ScoredImages,
  call: EvaluationCall,
  options: EvaluateOptions,
): Promise<FailedImage[]> {
  const { signal, onProgress } = options;
  const waiting = data.images.flatMap((_, index) => (scores.done.has(index) ? [] : [index]));
  const [resumed, total] = [scores.done.size, data.images.length];
  const failed: FailedImage[] = [];
  if (signal !== undefined) setMaxListeners(0, signal); // one listener per image in flight
  const progress = (): void =>
    onProgress?.({ stage: 'scoring', done: scores.done.size + failed.length, total, resumed });
  progress();
  const inFlight: {
    index: number;
    settled: Promise<{ value: Awaited<ReturnType<typeof scoreOne>> } | { error: unknown }>;
  }[] = [];
  const finishOne = async (): Promise<void> => {
    const { index, settled } = inFlight.shift()!;
    const outcome = await settled;
    if ('value' in outcome) {
      await scores.add(outcome.value.line, outcome.value.map);
    } else if (signal?.aborted !== true) {
      const { error } = outcome;
      // After an engine failure or out-of-memory, every further image would fail too.
      if (
        error instanceof DiadError &&
        ['ERR_DIAD_CLOSED', 'ERR_DIAD_OUT_OF_MEMORY', 'ERR_DIAD_INTERNAL'].includes(error.code)
      )
        throw error;
      failed.push({
        file: data.images[index]!.file,
        message: error instanceof Error ? error.message : String(error),
      });
    }
    progress();
  };
  for (const index of waiting) {
    if (signal?.aborted === true) break;
    const settled = scoreOne(diad, data, index, call, signal).then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    );
    inFlight.push({ index, settled });
    if (inFlight.length >= CONCURRENCY) await finishOne();
  }
  while (inFlight.length > 0) await finishOne();
  signal?.throwIfAborted();
  if (scores.done.size === 0) {
    throw new DiadError(
      'ERR_DIAD_IMAGE_DECODE',
      `None of the ${total} images could be scored; the first: ${failed[0]?.message ?? ''}`,
    );
  }
  return failed;
}

/** Computes the metrics of a class. Memory: maps and masks of the class, 5 bytes per pixel. */
async function classReport(
  data: DataSet,
  scores: ScoredImages,
  className: string,
  side: number,
  mode: MetricsMode,
  threshold: number | null,
): Promise<ClassReport> {
  const rule: MaskRule = mode === 'diad' ? 'any' : 'half';
  const places = data.images.flatMap((image, index) =>
    image.className === className && scores.done.has(index) ? [index] : [],
  );
  const maps = new Float32Array(places.length * side ** 2);
  const masks = new Uint8Array(maps.length);
  let kept = 0;
  for (const index of places) {
    const mask = await maskOf(data.images[index]!, scores.done.get(index)!, side, rule);
    if (mask === undefined) continue;
    masks.set(mask, kept * side ** 2);
    maps.set(await scores.map(index), kept * side ** 2);
    kept += 1;
  }
  const found = await evaluateClass(
    {
      maps,
      masks,
      height: side,
      width: side,
      indices: Uint32Array.from({ length: kept }, (_, i) => i),
      imageScores: Float64Array.from(places, (index) => scores.done.get(index)!.score),
      imageLabels: Uint8Array.from(places, (index) => (data.images[index]!.defective ? 1 : 0)),
    },
    validateMetricsOptions({ mode }),
  );
  const defective = places.filter((index) => data.images[index]!.defective).length;
  return { ...found, images: places.length, defective, withoutMask: places.length - kept, threshold };
}

function imageReport(
  image: TestImage,
  scored: ScoredImage,
  calibration: Calibration | undefined,
): ImageReport {
  const { className, defect, defective } = image;
  const limits = calibration === undefined ? undefined : thresholdsFor(calibration, className);
  return {
    ...scored,
    className,
    defect,
    defective,
    threshold: limits?.threshold ?? null,
    normalizedScore: limits === undefined ? null : normalizedScore(scored.score, limits),
    anomalous: limits === undefined ? null : scored.score > limits.threshold,
  };
}

const IMAGE_COLUMNS = [
  'file',
  'class',
  'defect',
  'defective',
  'score',
  'normalized_score',
  'threshold',
  'anomalous',
  'map',
] as const;
const CLASS_COLUMNS = ['class', 'images', 'defective', 'without_mask', 'threshold', ...METRIC_NAMES] as const;

async function writeTables(evaluation: Evaluation, diad: Diad): Promise<void> {
  const { out, mode, data, classes, mean, images, failed } = evaluation;
  const { bundle, device, precision } = diad.info;
  const results = {
    created: new Date().toISOString(),
    mode,
    data: { root: data.root, layout: data.layout },
    model: { name: bundle.name, digest: bundle.digest, device, precision },
    images: images.length,
    failed,
    classes: Object.fromEntries(
      Object.entries(classes).map(([name, { metrics, imageF1maxScore, pixelF1maxScore, ...counts }]) => {
        const { images: total, defective, withoutMask, threshold } = counts;
        return [
          name,
          { images: total, defective, withoutMask, threshold, imageF1maxScore, pixelF1maxScore, ...metrics },
        ];
      }),
    ),
    mean,
  };
  await writeAtomic(path.join(out, 'results.json'), `${JSON.stringify(results, null, 2)}\n`);
  const classRows = Object.entries(classes).map(([name, { metrics, ...counts }]) => ({
    class: name,
    images: counts.images,
    defective: counts.defective,
    without_mask: counts.withoutMask,
    threshold: counts.threshold,
    ...metrics,
  }));
  await writeAtomic(
    path.join(out, 'per_class.csv'),
    csv(CLASS_COLUMNS, [...classRows, { class: 'mean', ...mean }]),
  );
  const imageRows = images.map((image) => ({
    file: image.file,
    class: image.className,
    defect: image.defect,
    defective: image.defective,
    score: image.score,
    normalized_score: image.normalizedScore,
    threshold: image.threshold,
    anomalous: image.anomalous,
    map: `maps/${String(image.index).padStart(6, '0')}.f32`,
  }));
  await writeAtomic(path.join(out, 'per_image.csv'), csv(IMAGE_COLUMNS, imageRows));
}

/**
 * Scores every test image of a data set, computes metrics per class, and writes results.json, per_class.csv
 * and per_image.csv.
 *
 * Each result is stored before it counts, so that a killed run can be resumed (`resume`) without loss or
 * repeated work. An image that cannot be scored is listed in `failed`, excluded from the metrics, and retried
 * by a resumed run. Memory: maps and masks of one class, 5 bytes per pixel, plus that of `evaluateClass`.
 *
 * @returns the results; close `scores` when no longer needed
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the folder contains another run, when the data set shares
 *   images with the calibration, or when a mask does not match its image; the signal's reason when it aborts
 */
export async function evaluateDataSet(
  diad: Diad,
  data: DataSet,
  options: EvaluateOptions,
): Promise<Evaluation> {
  loadedBundle(diad, 'diad');
  if (!Array.isArray((data as Partial<DataSet> | undefined)?.images))
    throw invalid('a data set (readDataSet)', 'data', data);
  const { out } = optionsObject(options, 'evaluate options', KEYS);
  requiredText(out, 'out');
  const { mode } = validateMetricsOptions(options.mode === undefined ? {} : { mode: options.mode });
  const call = { seed: BigInt(options.seed ?? 0) };
  const own = calibrationOf(diad);
  await refuseCalibrationImages(data, own);
  // Thresholds apply only to the tiling of the calibration.
  const calibration = own !== undefined && isOfTiles(own, undefined) ? own : undefined;
  const scores = await ScoredImages.open(options.out, identityOf(data, diad, call), options.resume ?? false);
  try {
    const failed = await scoreAll(diad, data, scores, call, options);
    const names = [...new Set(data.images.map(({ className }) => className))];
    const classes: Record<string, ClassReport> = {};
    for (const [i, name] of names.entries()) {
      options.onProgress?.({ stage: 'metrics', done: i, total: names.length, resumed: 0 });
      const threshold = calibration === undefined ? null : thresholdsFor(calibration, name).threshold;
      classes[name] = await classReport(data, scores, name, diad.info.bundle.imageSize, mode, threshold);
    }
    const images = data.images.flatMap((image, index) => {
      const scored = scores.done.get(index);
      return scored === undefined ? [] : [imageReport(image, scored, calibration)];
    });
    const mean = meanMetrics(Object.values(classes).map(({ metrics }) => metrics));
    const evaluation: Evaluation = {
      out: options.out,
      mode,
      call,
      data,
      classes,
      mean,
      images,
      failed,
      scores,
    };
    await writeTables(evaluation, diad);
    return evaluation;
  } catch (error) {
    await scores.close();
    throw error;
  }
}
