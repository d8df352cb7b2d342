// Diad: a loaded bundle that scores images.
import { setMaxListeners } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { AnomalyMap, encodePng, resizeMap } from './scoring/anomaly-map.js';
import { bundleDigest } from './calibration/bundle-digest.js';
import {
  checkOrigin,
  isOfTiles,
  normalizedScore,
  normalityOf,
  readCalibration,
  thresholdsFor,
  warnOfTiles,
  type Calibration,
  type Thresholds,
} from './calibration/calibration.js';
import { createCalibrator, type Calibrator } from './calibration/calibrator.js';
import { codeOf, DiadError, fromNative } from './errors.js';
import { decodeImage, takeImage } from './image/decode.js';
import type { ImageInput, ImageLimits, RawFrame, TakenImage } from './image/types.js';
import { inOrder } from './async/map-ordered.js';
import {
  baseBundle,
  openNative,
  type NativeEngine,
  type NativeResult,
  type NativeSubmitOptions,
  type QueueStats,
} from './native/addon.js';
import {
  validateCallOptions,
  validateLoadOptions,
  validateManyOptions,
  type CallOptions,
  type LoadOptions,
  type ScoreManyOptions,
  type ScoreOptions,
  type ValidatedCall,
} from './scoring/options.js';
import type { EvidenceScores, ReconstructResult, ScoreResult, SettledScore } from './results.js';
import { scoreTiles, type TiledResult } from './scoring/tiled-score.js';
import { describeBundle, type DiadInfo } from './scoring/info.js';

interface Computed extends TiledResult {
  readonly frame: RawFrame;
  readonly taken: TakenImage;
  readonly call: ValidatedCall;
  readonly decodeImageMs: number;
}

// Closes the engine of an instance that was garbage-collected without close().
const finalizers = new FinalizationRegistry<NativeEngine>((engine) => {
  engine.close().catch(() => undefined);
});

export type { EvidenceScores, ReconstructResult, ScoreResult, SettledScore };

/** Returns the calibration of a Diad. Internal to this package. */
export let calibrationOf: (diad: Diad) => Calibration | undefined;

/**
 * Opens a calibrator for a bundle with evidence. Internal to this package.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the bundle has no evidence or was loaded with a
 *   calibration; ERR_DIAD_CLOSED
 */
export let openCalibrator: (diad: Diad) => Calibrator;

/** A loaded bundle. Create with {@link Diad.load}; release with {@link Diad.close}. */
export class Diad {
  /** The bundle, the device and LibTorch. */
  readonly info: DiadInfo;
  readonly #engine: NativeEngine;
  readonly #limits: ImageLimits;
  readonly #queueLimit: number;
  readonly #maxBatch: number;
  readonly #calibration: Calibration | undefined;
  static {
    calibrationOf = (diad) => (#calibration in diad ? diad.#calibration : undefined);
    openCalibrator = (diad) => diad.#openCalibrator();
  }
  #inFlight = 0;
  #warnedOfTiles = false;
  #closing: Promise<void> | undefined;

  private constructor(
    engine: NativeEngine,
    info: DiadInfo,
    options: ReturnType<typeof validateLoadOptions>,
    calibration?: Calibration,
  ) {
    this.#engine = engine;
    this.info = info;
    this.#limits = options.limits;
    this.#queueLimit = options.native.queueLimit;
    this.#maxBatch = options.native.maxBatch;
    this.#calibration = calibration;
    finalizers.register(this, engine, this);
  }

  /**
   * Loads a bundle.
   *
   * @param bundle - bundle folder; default: the base model that ships with diad
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_BUNDLE_NOT_FOUND, ERR_DIAD_BUNDLE_INVALID,
   *   ERR_DIAD_BUNDLE_CORRUPT, ERR_DIAD_LIBTORCH_NOT_FOUND, ERR_DIAD_LIBTORCH_MISMATCH,
   *   ERR_DIAD_DEVICE_UNAVAILABLE, ERR_DIAD_OUT_OF_MEMORY
   */
  static async load(bundle?: string, options?: LoadOptions): Promise<Diad> {
    const validated = validateLoadOptions(bundle, options);
    const folder = validated.bundle ?? baseBundle;
    // Preload sharp while the weights are read. A missing sharp is reported on first decode.
    void import('sharp').catch(() => undefined);
    const native = await openNative(validated.libtorch);
    try {
      const calibration = validated.calibration ? await readCalibration(folder) : undefined;
      if (calibration !== undefined)
        checkOrigin(calibration, await bundleDigest(folder), validated.native.precision);
      const normality = await normalityOf(folder, calibration, validated.native.verify);
      const engine = await native.addon.load(folder, { ...validated.native, normality: normality ?? '' });
      const { queueLimit } = validated.native;
      return new Diad(
        engine,
        describeBundle(folder, engine.info(), native, { calibration, queueLimit }),
        validated,
        calibration,
      );
    } catch (error) {
      throw fromNative(error);
    }
  }

  /**
   * Scores an image.
   *
   * @param image - encoded bytes (PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP with at most `maxFrames` pages or
   *   frames) or a raw frame; copied before this returns
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE,
   *   ERR_DIAD_QUEUE_FULL, ERR_DIAD_TIMEOUT, ERR_DIAD_CLOSED, ERR_DIAD_OUT_OF_MEMORY; the signal's reason
   *   when it aborts
   */
  async score(image: ImageInput, options?: ScoreOptions): Promise<ScoreResult> {
    const call = validateCallOptions(options, true);
    const computed = await this.#compute(takeImage(image), call, { map: true, reconstruction: false });
    return await this.#scoreResult(computed);
  }

  /**
   * Reconstructs an image without defects.
   *
   * @param image - as for {@link Diad.score}
   * @throws as {@link Diad.score}
   */
  async reconstruct(image: ImageInput, options?: CallOptions): Promise<ReconstructResult> {
    const call = validateCallOptions(options, false);
    const {
      result,
      mapWidth: size,
      decodeImageMs,
    } = await this.#compute(takeImage(image), call, { map: false, reconstruction: true });
    const { score, reconstruction: data = new Uint8Array() } = result;
    const encoded = await encodePng({ data, width: size, height: size, channels: 3 });
    const timings = { ...result.timings, decodeImageMs };
    return {
      image: encoded,
      width: size,
      height: size,
      data,
      score,
      seed: jsonSafeSeed(call.seed),
      timings,
      batchSize: result.batchSize,
    };
  }

  scoreMany(
    images: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options: ScoreManyOptions & { readonly onError: 'yield' },
  ): AsyncGenerator<SettledScore, void, undefined>;
  scoreMany(
    images: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options?: ScoreManyOptions & { readonly onError?: 'throw' },
  ): AsyncGenerator<ScoreResult, void, undefined>;
  /**
   * Scores a stream of images. Yields results in the order of the images, with at most `concurrency` images
   * in flight. Reads the source no faster than results are consumed, and yields a result as soon as it is
   * available, even if the source has no next image yet. Leaving the loop early cancels images in flight.
   *
   * @param images - source of images; can be endless
   * @param options - `onError: 'throw'` (default) ends at the first failure; `'yield'` yields failures in
   *   order
   * @throws as {@link Diad.score}
   */
  async *scoreMany(
    images: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options?: ScoreManyOptions,
  ): AsyncGenerator<ScoreResult | SettledScore, void, undefined> {
    const { call, concurrency, onError } = validateManyOptions(
      images,
      options,
      Math.min(2 * this.#maxBatch, this.#queueLimit),
    );
    const abandoned = new AbortController();
    const signal =
      call.signal === undefined ? abandoned.signal : AbortSignal.any([call.signal, abandoned.signal]);
    setMaxListeners(0, signal); // one listener per image in flight
    const settle = (image: ImageInput, index: number): Promise<SettledScore> =>
      this.#settle(image, { ...call, signal }, index);
    const abandon = (): void => {
      abandoned.abort(new DiadError('ERR_DIAD_CLOSED', 'The consumer of scoreMany stopped'));
    };
    for await (const settled of inOrder(images, concurrency, settle, abandon)) {
      if (onError === 'throw' && settled.status === 'rejected') throw settled.reason;
      yield onError === 'throw' && settled.status === 'fulfilled' ? settled.value : settled;
    }
  }

  /**
   * Returns statistics of the engine queue. Loads of the same bundle with the same options share one queue
   * within a process.
   *
   * @throws DiadError ERR_DIAD_CLOSED
   */
  stats(): QueueStats {
    try {
      return this.#engine.stats();
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Releases the engine. Pending calls reject with ERR_DIAD_CLOSED. Can be called repeatedly. */
  close(): Promise<void> {
    finalizers.unregister(this);
    this.#closing ??= this.#engine.close();
    return this.#closing;
  }

  /** Supports `await using diad = await Diad.load()`. Same as {@link Diad.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #settle(image: ImageInput, call: ValidatedCall, index: number): Promise<SettledScore> {
    try {
      const computed = await this.#compute(takeImage(image), call, { map: true, reconstruction: false });
      return { status: 'fulfilled', index, value: await this.#scoreResult(computed) };
    } catch (reason) {
      return { status: 'rejected', index, reason };
    }
  }

  async #scoreResult({
    result,
    mapWidth,
    mapHeight,
    frame,
    taken,
    call,
    decodeImageMs,
  }: Computed): Promise<ScoreResult> {
    const { score, map: values = new Float32Array(), stages, evidence } = result;
    const className = result.className ?? call.className;
    const limits = this.#limitsOf(call, className);
    const imageSize = { width: frame.width, height: frame.height };
    const [width, height] = call.mapSize === 'image' ? [frame.width, frame.height] : [mapWidth, mapHeight];
    const data =
      call.mapSize === 'image' ? await resizeMap(values, mapWidth, mapHeight, width, height) : values;
    return {
      score,
      ...(limits === undefined
        ? {}
        : {
            threshold: limits.threshold,
            anomalous: score > limits.threshold,
            normalizedScore: normalizedScore(score, limits),
          }),
      ...(evidence === undefined ? {} : { evidence }),
      ...(result.className === undefined ? {} : { className: result.className }),
      map: new AnomalyMap(width, height, data, taken, imageSize, limits),
      imageSize,
      seed: jsonSafeSeed(call.seed),
      timings: { ...result.timings, decodeImageMs },
      batchSize: result.batchSize,
      ...(stages === undefined ? {} : { stages }),
    };
  }

  /** Returns the thresholds of a class; undefined for a tiling other than that of the calibration. */
  #limitsOf(call: ValidatedCall, className: string | undefined): Thresholds | undefined {
    const calibration = this.#calibration;
    if (calibration === undefined) return undefined;
    if (isOfTiles(calibration, call.tile)) return thresholdsFor(calibration, className);
    if (!this.#warnedOfTiles) warnOfTiles(calibration, call.tile);
    this.#warnedOfTiles = true;
    return undefined;
  }

  /** Decodes and submits an image and awaits the result, with the abort signal, timeout and step callback. */
  async #compute(
    taken: TakenImage,
    call: ValidatedCall,
    want: {
      readonly map: boolean;
      readonly reconstruction: boolean;
      readonly calibration?: NativeSubmitOptions['calibration'];
    },
  ): Promise<Computed> {
    this.#admit(call.signal);
    if (call.tile !== undefined && this.#calibration?.normality !== undefined) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        'Expected no tile because this bundle was calibrated on whole images; ' +
          'load it with { calibration: false } to score tiles without verdicts',
      );
    }
    this.#inFlight++;
    try {
      const started = performance.now();
      const frame = await decodeImage(taken, this.#limits);
      const decodeImageMs = performance.now() - started;
      call.signal?.throwIfAborted();
      const rest = { frame, taken, call, decodeImageMs };
      const submit = (part: RawFrame, options: ValidatedCall): Promise<NativeResult> => {
        const timeoutMs = remaining(call.timeoutMs, performance.now() - started);
        const { seed, priority, stages, className = '' } = call;
        return this.#submit(part, options, {
          calibration: null,
          ...want,
          seed,
          timeoutMs,
          priority,
          stages,
          className,
        });
      };
      if (call.tile !== undefined) {
        const concurrency = Math.min(2 * this.#maxBatch, this.#queueLimit);
        return {
          ...(await scoreTiles(frame, call, call.tile, concurrency, (part, options) =>
            retryWhileFull(() => submit(part, options), options.signal),
          )),
          ...rest,
        };
      }
      const result = await submit(frame, call);
      return { result, mapWidth: result.size, mapHeight: result.size, ...rest };
    } finally {
      this.#inFlight--;
    }
  }

  #openCalibrator(): Calibrator {
    if (this.#calibration?.normality !== undefined) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        'Expected a bundle loaded with { calibration: false } but this one was loaded with its calibration',
      );
    }
    return createCalibrator(
      this.#engine,
      Math.min(2 * this.#maxBatch, this.#queueLimit),
      (image, call, calibration) =>
        this.#compute(takeImage(image), call, { map: false, reconstruction: false, calibration }),
    );
  }

  #admit(signal: AbortSignal | undefined): void {
    signal?.throwIfAborted();
    if (this.#closing !== undefined)
      throw new DiadError('ERR_DIAD_CLOSED', 'This Diad is closed; load it again');
    if (this.#inFlight >= this.#queueLimit) {
      throw new DiadError(
        'ERR_DIAD_QUEUE_FULL',
        `${this.#inFlight} images are in flight, the limit; submit more slowly or raise queueLimit`,
      );
    }
  }

  async #submit(frame: RawFrame, call: ValidatedCall, options: NativeSubmitOptions): Promise<NativeResult> {
    const { signal, onStep } = call;
    let thrown: { readonly error: unknown } | undefined;
    const step = (done: number, total: number): void => {
      try {
        if (thrown === undefined) onStep?.(done, total);
      } catch (error) {
        thrown = { error };
        this.#engine.cancel(submitted.id);
      }
    };
    const submitted = this.#engine.submit(frame, options, onStep === undefined ? null : step);
    const abort = (): void => void this.#engine.cancel(submitted.id);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      return await submitted.result;
    } catch (error) {
      if (codeOf(error) === 'ERR_DIAD_CANCELLED') {
        if (thrown !== undefined) throw thrown.error;
        signal?.throwIfAborted();
      }
      throw fromNative(error);
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }
}

/** Retries while the queue is full: the image is already admitted, so its tiles must not be rejected. */
async function retryWhileFull<T>(submit: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  for (;;) {
    try {
      return await submit();
    } catch (error) {
      if (codeOf(error) !== 'ERR_DIAD_QUEUE_FULL') throw error;
      signal?.throwIfAborted();
      await setTimeout(10);
    }
  }
}

/** Returns a seed as a number if it is a safe integer, because JSON has no bigint. */
function jsonSafeSeed(seed: bigint): number | bigint {
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

/** Returns the rest of the timeout after decoding, milliseconds; 0 means no timeout. */
function remaining(timeoutMs: number, spentMs: number): number {
  if (timeoutMs === 0) return 0;
  if (spentMs >= timeoutMs)
    throw new DiadError('ERR_DIAD_TIMEOUT', `The request's timeout of ${timeoutMs} ms passed while decoding`);
  return Math.max(1, Math.round(timeoutMs - spentMs));
}
