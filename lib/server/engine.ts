// The server's model: loads after the server listens, becomes ready after a warm-up score, and enforces
// limits.
import { setMaxListeners } from 'node:events';
import type { ReconstructResult, ScoreResult } from '../diad.js';
import { EngineHealth, scoreGray } from '../health/engine-health.js';
import { DiadError } from '../errors.js';
import { inspectImage } from '../image/decode.js';
import type { ImageFormat } from '../image/types.js';
import { validateTiles } from '../scoring/options.js';
import { countTiles, type TileOptions } from '../scoring/tiles.js';
import { Budget } from './budget.js';
import type { Metrics } from './metrics.js';
import type { Scorer, ValidatedServer } from './options.js';
import { HttpFailure } from './problem.js';

/** An encoded image and its header. */
export interface Image {
  readonly bytes: Buffer;
  readonly format: ImageFormat;
  readonly width: number;
  readonly height: number;
}

interface Call {
  readonly seed?: number;
  readonly signal: AbortSignal;
}

interface ScoreCall extends Call {
  /** Class whose thresholds to use. */
  readonly className?: string | undefined;
  readonly tile?: TileOptions;
}

/** Most tiles per image; each costs as much as an image. */
const MOST_TILES = 256;

/** Loading, readiness, admission and calls of the model. */
export class Engine {
  readonly pixels: Budget;
  readonly #options: ValidatedServer;
  readonly #metrics: Metrics;
  readonly #log: (line: string) => void;
  #resolveLost!: (error: Error) => void;
  /** Resolves with the reason when the engine has failed permanently in this process. */
  readonly lost = new Promise<Error>((resolve) => (this.#resolveLost = resolve));
  #scorer: Scorer | undefined;
  #health: EngineHealth | undefined; // set after the warm-up
  #lost = false;
  #draining = false;
  #closed = false;
  #inFlight = 0;

  constructor(options: ValidatedServer, metrics: Metrics, log: (line: string) => void) {
    this.#options = options;
    this.#metrics = metrics;
    this.#log = log;
    this.pixels = new Budget(options.pixelsInFlight, 'pixels');
  }

  /** Whether images are accepted: loaded, warmed up, healthy, and not shutting down. */
  get ready(): boolean {
    return this.#health?.healthy === true && !this.#draining;
  }

  /** False when this process can no longer score any image. */
  get live(): boolean {
    return !this.#lost;
  }

  /**
   * Returns the loaded bundle.
   *
   * @throws HttpFailure ERR_HTTP_UNAVAILABLE before the end of the warm-up and during shutdown
   */
  get scorer(): Scorer {
    this.#refuseUnlessReady();
    return this.#scorer!;
  }

  #refuseUnlessReady(): void {
    if (this.#health === undefined) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The model is loading');
    if (this.#draining) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The server is shutting down');
    if (!this.#health.healthy)
      throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The engine is failing; see the log');
  }

  /**
   * Rejects requests while the queue is full. Cheap, so it runs before a body or image header is read. The
   * queue itself can still reject an admitted image.
   *
   * @throws DiadError ERR_DIAD_QUEUE_FULL when the limit of images in flight is reached
   */
  refuseWhenFull(): void {
    const limit = this.#scorer?.info.queueLimit;
    if (limit !== undefined && this.#inFlight >= limit) {
      throw new DiadError(
        'ERR_DIAD_QUEUE_FULL',
        `${this.#inFlight} images are in flight, the limit; send it again later`,
      );
    }
  }

  /** Whether the server is shutting down. */
  get draining(): boolean {
    return this.#draining;
  }

  /** The bundle's description, once loaded. */
  get bundle(): Scorer['info']['bundle'] | undefined {
    return this.#scorer?.info.bundle;
  }

  /** Loads the bundle and scores a gray image, so that readiness implies working scores. */
  async start(): Promise<void> {
    const scorer = await this.#options.load();
    if (this.#closed) {
      await scorer.close();
      throw new DiadError('ERR_DIAD_CLOSED', 'The server was closed while the bundle was loading');
    }
    this.#scorer = scorer;
    this.#metrics.watch(scorer, this.pixels);
    await scoreGray(scorer);
    this.#health = new EngineHealth({ scorer, log: this.#log, recheckMs: this.#options.recheckMs });
    void this.#health.lost.then((error) => {
      this.#lost = true;
      this.#resolveLost(error);
    });
  }

  /** Ends readiness. */
  drain(): void {
    this.#draining = true;
  }

  /** Releases the bundle. If it is still loading, releases it later without waiting. */
  async close(): Promise<void> {
    this.#draining = true;
    this.#closed = true;
    this.#health?.close();
    await this.#scorer?.close();
  }

  /**
   * Estimates the seconds after which a rejected client should retry, from the time needed to empty the
   * queue.
   */
  retryAfterSeconds(): number {
    if (this.#scorer === undefined || !this.ready) return 5;
    const { queued, running, meanBatch, computeMs } = this.#scorer.stats();
    const batches = (queued + running) / Math.max(1, meanBatch);
    return Math.min(60, Math.max(1, Math.ceil((batches * computeMs.mean) / 1000)));
  }

  /**
   * Reads an image's header and rejects unsupported formats and sizes before any pixel is decoded.
   *
   * @throws HttpFailure 400 for an empty body, 415 for an unsupported format; DiadError ERR_DIAD_QUEUE_FULL,
   *   ERR_DIAD_IMAGE_DECODE, ERR_DIAD_IMAGE_TOO_LARGE
   */
  async admit(bytes: unknown): Promise<Image> {
    this.#refuseUnlessReady();
    this.refuseWhenFull();
    if (!Buffer.isBuffer(bytes) || bytes.length === 0) {
      throw new HttpFailure(
        'ERR_HTTP_BAD_REQUEST',
        'Expected the bytes of an image as the body, or as the file "image" of a multipart form',
      );
    }
    try {
      const { format, width, height } = await inspectImage(bytes, this.#options.maxFrames);
      if (width * height > this.#options.maxPixels) {
        throw new DiadError(
          'ERR_DIAD_IMAGE_TOO_LARGE',
          `Expected at most ${this.#options.maxPixels} pixels but the image has ${width} x ${height}`,
        );
      }
      return { bytes, format, width, height };
    } catch (error) {
      this.#metrics.refusedImage(error);
      if (error instanceof DiadError && error.code === 'ERR_DIAD_IMAGE_DECODE' && error.cause === undefined) {
        // An unsupported format, as opposed to damaged bytes.
        throw new HttpFailure('ERR_HTTP_UNSUPPORTED_MEDIA_TYPE', error.message);
      }
      throw error;
    }
  }

  /**
   * Admits all images of a request.
   *
   * @throws errors of `admit`; HttpFailure 413 for more images or pixels than allowed in flight, which a
   *   retry cannot solve
   */
  async admitAll(all: readonly Buffer[]): Promise<Image[]> {
    const { queueLimit } = this.scorer.info;
    if (all.length > queueLimit) {
      throw new HttpFailure(
        'ERR_HTTP_TOO_LARGE',
        `Expected at most ${queueLimit} images at once but the request has ${all.length}`,
      );
    }
    const images = await Promise.all(all.map((bytes) => this.admit(bytes)));
    const pixels = images.reduce((sum, { width, height }) => sum + width * height, 0);
    if (pixels > this.pixels.limit) {
      throw new HttpFailure(
        'ERR_HTTP_TOO_LARGE',
        `Expected at most ${this.pixels.limit} pixels at once but the images of the request have ${pixels}`,
      );
    }
    return images;
  }

  /**
   * Scores all images of a request. The first failure aborts the others.
   *
   * @throws errors of `score`
   */
  async scoreAll(images: readonly Image[], call: ScoreCall): Promise<ScoreResult[]> {
    const failed = new AbortController();
    const signal = AbortSignal.any([call.signal, failed.signal]);
    setMaxListeners(0, signal); // one listener per image
    const scores = images.map((image) => this.score(image, { ...call, signal }));
    try {
      return await Promise.all(scores);
    } catch (error) {
      failed.abort();
      await Promise.allSettled(scores);
      throw error;
    }
  }

  /**
   * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for invalid tile options or too many tiles; errors of the
   * library
   */
  async score(image: Image, { tile, className, ...call }: ScoreCall): Promise<ScoreResult> {
    const scoreOptions = className === undefined ? {} : { className };
    if (tile === undefined)
      return this.#run(image, call, (scorer, options) =>
        scorer.score(image.bytes, { ...options, ...scoreOptions }),
      );
    const tiles = countTiles(image.width, image.height, validateTiles(tile));
    if (tiles > MOST_TILES) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected at most ${MOST_TILES} tiles but the image needs ${tiles}; use larger tiles or less overlap`,
      );
    }
    return this.#run(image, call, (scorer, options) =>
      scorer.score(image.bytes, { ...options, ...scoreOptions, tile }),
    );
  }

  reconstruct(image: Image, call: Call): Promise<ReconstructResult> {
    return this.#run(image, call, (scorer, options) => scorer.reconstruct(image.bytes, options));
  }

  async #run<T extends ScoreResult | ReconstructResult>(
    { width, height }: Image,
    { seed = 0, signal }: Call,
    compute: (
      scorer: Scorer,
      options: { seed: number; signal: AbortSignal; timeoutMs: number },
    ) => Promise<T>,
  ): Promise<T> {
    const scorer = this.#scorer!; // a shutdown waits for admitted images
    const release = this.pixels.take(width * height);
    this.#inFlight++;
    try {
      const result = await this.#health!.follow(
        compute(scorer, { seed, signal, timeoutMs: this.#options.scoreTimeoutMs }),
      );
      this.#metrics.computed(result);
      return result;
    } catch (error) {
      this.#metrics.refusedImage(error);
      throw error;
    } finally {
      this.#inFlight--;
      release();
    }
  }
}
