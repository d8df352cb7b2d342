// Diad: a loaded bundle that scores images.
import { setMaxListeners } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { AnomalyMap, encodePng, resizeMap } from './anomaly-map.js';
import { bundleDigest } from './bundle-digest.js';
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
} from './calibration.js';
import { createCalibrator, type Calibrator } from './calibrator.js';
import { codeOf, DiadError, fromNative } from './errors.js';
import {
  decodeImage,
  takeImage,
  type ImageInput,
  type ImageLimits,
  type RawFrame,
  type TakenImage,
} from './image.js';
import { inOrder } from './in-order.js';
import {
  baseBundle,
  openNative,
  type NativeEngine,
  type NativeResult,
  type NativeSubmitOptions,
  type QueueStats,
} from './native.js';
import {
  validateCallOptions,
  validateLoadOptions,
  validateManyOptions,
  type CallOptions,
  type LoadOptions,
  type ScoreManyOptions,
  type ScoreOptions,
  type ValidatedCall,
} from './options.js';
import type { EvidenceScores, ReconstructResult, ScoreResult, SettledScore } from './results.js';
import { scoreTiles, type TiledResult } from './tiled-score.js';
import { describeBundle, type DiadInfo } from './info.js';

interface Computed extends TiledResult {
  readonly frame: RawFrame;
  readonly taken: TakenImage;
  readonly call: ValidatedCall;
  readonly decodeImageMs: number;
}

// An instance that is dropped without close() gives its engine back when it is collected.
const forgotten = new FinalizationRegistry<NativeEngine>((engine) => {
  engine.close().catch(() => undefined); // nobody is left to be told
});

export type { EvidenceScores, ReconstructResult, ScoreResult, SettledScore };

/** The calibration that a Diad judges by. For this package's own use. */
export let calibrationOf: (diad: Diad) => Calibration | undefined;

/**
 * Opens a calibrator of a bundle with evidence. For this package's own use.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT where the bundle has no evidence or judges by an earlier calibration already; ERR_DIAD_CLOSED
 */
export let openCalibrator: (diad: Diad) => Calibrator;

/** A loaded bundle. Create one with {@link Diad.load}; give it back with {@link Diad.close}. */
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
  #toldOfTiles = false;
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
    forgotten.register(this, engine, this);
  }

  /**
   * Loads a bundle.
   *
   * @param bundle - its folder; default: the base model that ships with diad
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_BUNDLE_NOT_FOUND, ERR_DIAD_BUNDLE_INVALID, ERR_DIAD_BUNDLE_CORRUPT,
   *   ERR_DIAD_LIBTORCH_NOT_FOUND, ERR_DIAD_LIBTORCH_MISMATCH, ERR_DIAD_DEVICE_UNAVAILABLE, ERR_DIAD_OUT_OF_MEMORY
   */
  static async load(bundle?: string, options?: LoadOptions): Promise<Diad> {
    const validated = validateLoadOptions(bundle, options);
    const folder = validated.bundle ?? baseBundle;
    void import('sharp').catch(() => undefined); // while the weights are read; who needs it and has it not hears so when it decodes
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
   * @param image - encoded bytes (PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP of at most `maxFrames` pages or frames) or a raw frame; copied before this returns
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE, ERR_DIAD_QUEUE_FULL, ERR_DIAD_TIMEOUT,
   *   ERR_DIAD_CLOSED, ERR_DIAD_OUT_OF_MEMORY; the signal's reason when it aborts
   */
  async score(image: ImageInput, options?: ScoreOptions): Promise<ScoreResult> {
    const call = validateCallOptions(options, true);
    const computed = await this.#compute(takeImage(image), call, { map: true, reconstruction: false });
    return await this.#scoreResult(computed);
  }

  /**
   * Rebuilds an image as if it were normal.
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
      seed: readable(call.seed),
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
   * Scores images as they are taken: results in the order of the images, at most `concurrency` images in flight, the source read no
   * faster than results are taken, a result handed out as soon as it is there and the source lets the next image wait. Leaving the loop early cancels what is in flight.
   *
   * @param images - a source of images; may be endless
   * @param options - `onError: 'throw'` (default) ends at the first failure, `'yield'` hands failures out in their place
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
    setMaxListeners(0, signal); // one per image in flight
    const settle = (image: ImageInput, index: number): Promise<SettledScore> =>
      this.#settle(image, { ...call, signal }, index);
    const abandon = (): void => {
      abandoned.abort(new DiadError('ERR_DIAD_CLOSED', 'The consumer of scoreMany left'));
    };
    for await (const settled of inOrder(images, concurrency, settle, abandon)) {
      if (onError === 'throw' && settled.status === 'rejected') throw settled.reason;
      yield onError === 'throw' && settled.status === 'fulfilled' ? settled.value : settled;
    }
  }

  /**
   * The queue in front of the engine. It is shared by all loads of the same bundle with the same options in this process.
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

  /** Gives the engine back. Pending calls reject with ERR_DIAD_CLOSED; may be called again. */
  close(): Promise<void> {
    forgotten.unregister(this);
    this.#closing ??= this.#engine.close();
    return this.#closing;
  }

  /** `await using diad = await Diad.load()`: the same as {@link Diad.close}. */
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
      seed: readable(call.seed),
      timings: { ...result.timings, decodeImageMs },
      batchSize: result.batchSize,
      ...(stages === undefined ? {} : { stages }),
    };
  }

  /** Thresholds apply to the tiling they were found with only. */
  #limitsOf(call: ValidatedCall, className: string | undefined): Thresholds | undefined {
    const calibration = this.#calibration;
    if (calibration === undefined) return undefined;
    if (isOfTiles(calibration, call.tile)) return thresholdsFor(calibration, className);
    if (!this.#toldOfTiles) warnOfTiles(calibration, call.tile);
    this.#toldOfTiles = true;
    return undefined;
  }

  /** Decodes, submits and waits; the caller's abort, timeout and step callback act on the way. */
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
        'Expected no tile for this bundle: it has learned what whole normal images look like, which says nothing of tiles; ' +
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
      const submit = (part: RawFrame, its: ValidatedCall): Promise<NativeResult> => {
        const timeoutMs = remaining(call.timeoutMs, performance.now() - started);
        const { seed, priority, stages, className = '' } = call;
        return this.#submit(part, its, {
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
          ...(await scoreTiles(frame, call, call.tile, concurrency, (part, its) =>
            patiently(() => submit(part, its), its.signal),
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
        'Expected a bundle that was loaded with { calibration: false }: this one judges by what an earlier calibration has learned',
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

/** The image of a tile has its place already: where the queue is full of others' tiles, a tile waits for one. */
async function patiently<T>(submit: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
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

/** A seed as a number where one can hold it: JSON has no other. */
function readable(seed: bigint): number | bigint {
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

/** What is left of a call's timeout after decoding; 0: none was set. */
function remaining(timeoutMs: number, spentMs: number): number {
  if (timeoutMs === 0) return 0;
  if (spentMs >= timeoutMs)
    throw new DiadError('ERR_DIAD_TIMEOUT', `The request's timeout of ${timeoutMs} ms passed while decoding`);
  return Math.max(1, Math.round(timeoutMs - spentMs));
}
