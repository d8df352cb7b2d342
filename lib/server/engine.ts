// The bundle behind the server: loads after the server listens, is ready after a warm-up score, scores within the server's limits.
import { setMaxListeners } from 'node:events';
import type { ReconstructResult, ScoreResult } from '../diad.js';
import { EngineHealth, scoreGray } from '../engine-health.js';
import { DiadError } from '../errors.js';
import { inspectImage, type ImageFormat } from '../image.js';
import { validateTiles } from '../options.js';
import { countTiles, type TileOptions } from '../tiles.js';
import { Budget } from './budget.js';
import type { Metrics } from './metrics.js';
import type { Scorer, ValidatedServer } from './options.js';
import { HttpFailure } from './problem.js';

/** What an image's own header says. */
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
  /** Kind of part, whose thresholds count. */
  readonly className?: string | undefined;
  readonly tile?: TileOptions;
}

/** Tiles of one image at most: each costs what an image costs. */
const MOST_TILES = 256;

/** Loading, readiness, admission, and the calls themselves. */
export class Engine {
  readonly pixels: Budget;
  readonly #options: ValidatedServer;
  readonly #metrics: Metrics;
  readonly #log: (line: string) => void;
  #tellLost!: (error: Error) => void;
  /** Fulfilled with the reason when the engine scores no more and will not again in this process. */
  readonly lost = new Promise<Error>((resolve) => (this.#tellLost = resolve));
  #scorer: Scorer | undefined;
  #health: EngineHealth | undefined; // from the end of the warm-up on
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

  /** Whether images are taken: loaded, warmed up, well, not shutting down. */
  get ready(): boolean {
    return this.#health?.well === true && !this.#draining;
  }

  /** False when no image will be scored by this process any more. */
  get live(): boolean {
    return !this.#lost;
  }

  /**
   * The loaded bundle.
   *
   * @throws HttpFailure ERR_HTTP_UNAVAILABLE before the warm-up has ended and while shutting down
   */
  get scorer(): Scorer {
    this.#refuseUnlessReady();
    return this.#scorer!;
  }

  #refuseUnlessReady(): void {
    if (this.#health === undefined)
      throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The model is being loaded');
    if (this.#draining) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The server is shutting down');
    if (!this.#health.well)
      throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The engine fails; the log says why');
  }

  /**
   * Costs next to nothing, so that it comes before a body is read or a header of an image looked at. What is admitted here may still be refused
   * by the queue itself.
   *
   * @throws DiadError ERR_DIAD_QUEUE_FULL while as many images are in flight as the scorer takes
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

  /** Whether the server shuts down. */
  get draining(): boolean {
    return this.#draining;
  }

  /** The bundle's name and digest, from the moment it is loaded. */
  get bundle(): Scorer['info']['bundle'] | undefined {
    return this.#scorer?.info.bundle;
  }

  /** Loads the bundle and scores a gray image, so that readiness means that scores come out. */
  async start(): Promise<void> {
    const scorer = await this.#options.load();
    if (this.#closed) {
      await scorer.close();
      throw new DiadError('ERR_DIAD_CLOSED', 'The server was closed while the bundle was being loaded');
    }
    this.#scorer = scorer;
    this.#metrics.watch(scorer, this.pixels);
    await scoreGray(scorer);
    this.#health = new EngineHealth({ scorer, log: this.#log, recheckMs: this.#options.recheckMs });
    void this.#health.lost.then((error) => {
      this.#lost = true;
      this.#tellLost(error);
    });
  }

  /** From now on not ready. */
  drain(): void {
    this.#draining = true;
  }

  /** Gives the bundle back; one that is still being loaded, when it is there, which is not waited for. */
  async close(): Promise<void> {
    this.#draining = true;
    this.#closed = true;
    this.#health?.close();
    await this.#scorer?.close();
  }

  /** Seconds after which a refused client should come back: about what the queue needs to empty. */
  retryAfterSeconds(): number {
    if (this.#scorer === undefined || !this.ready) return 5;
    const { queued, running, meanBatch, computeMs } = this.#scorer.stats();
    const batches = (queued + running) / Math.max(1, meanBatch);
    return Math.min(60, Math.max(1, Math.ceil((batches * computeMs.mean) / 1000)));
  }

  /**
   * Reads an image's header; refuses by its magic bytes and its size before any pixel is decoded.
   *
   * @throws HttpFailure 400 for no bytes, 415 for another format; DiadError ERR_DIAD_QUEUE_FULL, ERR_DIAD_IMAGE_DECODE,
   *   ERR_DIAD_IMAGE_TOO_LARGE
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
        throw new HttpFailure('ERR_HTTP_UNSUPPORTED_MEDIA_TYPE', error.message); // no format that is read, as opposed to damaged bytes
      }
      throw error;
    }
  }

  /**
   * The same for the images of one request.
   *
   * @throws what `admit` does; HttpFailure 413 for more images or pixels than there may be at once: such a request would never be taken
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
   * Scores the images of one request; the first failure aborts the others.
   *
   * @throws what `score` does
   */
  async scoreAll(images: readonly Image[], call: ScoreCall): Promise<ScoreResult[]> {
    const failed = new AbortController();
    const signal = AbortSignal.any([call.signal, failed.signal]);
    setMaxListeners(0, signal); // one per image
    const scores = images.map((image) => this.score(image, { ...call, signal }));
    try {
      return await Promise.all(scores);
    } catch (error) {
      failed.abort();
      await Promise.allSettled(scores);
      throw error;
    }
  }

  /** @throws DiadError ERR_DIAD_INVALID_ARGUMENT for tiles that do not fit together or are too many, and what the library throws */
  async score(image: Image, { tile, className, ...call }: ScoreCall): Promise<ScoreResult> {
    const its = className === undefined ? {} : { className };
    if (tile === undefined)
      return this.#run(image, call, (scorer, options) => scorer.score(image.bytes, { ...options, ...its }));
    const tiles = countTiles(image.width, image.height, validateTiles(tile));
    if (tiles > MOST_TILES) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected at most ${MOST_TILES} tiles but the image needs ${tiles}; take larger ones or less overlap`,
      );
    }
    return this.#run(image, call, (scorer, options) =>
      scorer.score(image.bytes, { ...options, ...its, tile }),
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
    const scorer = this.#scorer!; // admitted: a shutdown that began since then waits for this image
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
