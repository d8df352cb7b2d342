// The bundle behind the server: loads after the server listens, is ready after a warm-up score, scores within the server's limits.
import { setMaxListeners } from 'node:events';
import type { ReconstructResult, ScoreResult } from '../diad.js';
import { EngineHealth, scoreGrey } from '../engine-health.js';
import { DiadError } from '../errors.js';
import { inspectImage, type ImageFormat } from '../image.js';
import { validateTiles } from '../options.js';
import { countTiles, type TileOptions } from '../tiles.js';
import { Budget } from './budget.js';
import type { Metrics } from './metrics.js';
import type { Scorer, ValidatedServer } from './options.js';
import { HttpFailure } from './problem.js';

/** What a picture's own header says. */
export interface Picture {
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

/** Tiles of one picture at most: each costs what a picture costs. */
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

  /** Whether pictures are taken: loaded, warmed up, well, not shutting down. */
  get ready(): boolean {
    return this.#health?.well === true && !this.#draining;
  }

  /** False when no picture will be scored by this process any more. */
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
    if (this.#health === undefined) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The model is being loaded');
    if (this.#draining) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The server is shutting down');
    if (!this.#health.well) throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'The engine fails; the log says why');
  }

  /**
   * Costs next to nothing, so that it comes before a body is read or a header of a picture looked at. What is admitted here may still be refused
   * by the queue itself.
   *
   * @throws DiadError ERR_DIAD_QUEUE_FULL while as many pictures are in flight as the scorer takes
   */
  refuseWhenFull(): void {
    const limit = this.#scorer?.info.queueLimit;
    if (limit !== undefined && this.#inFlight >= limit) {
      throw new DiadError('ERR_DIAD_QUEUE_FULL', `${this.#inFlight} pictures are in flight, the limit; send it again later`);
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

  /** Loads the bundle and scores a grey picture, so that readiness means that scores come out. */
  async start(): Promise<void> {
    const scorer = await this.#options.load();
    if (this.#closed) {
      await scorer.close();
      throw new DiadError('ERR_DIAD_CLOSED', 'The server was closed while the bundle was being loaded');
    }
    this.#scorer = scorer;
    this.#metrics.watch(scorer, this.pixels);
    await scoreGrey(scorer);
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
   * Reads a picture's header; refuses by its magic bytes and its size before any pixel is decoded.
   *
   * @throws HttpFailure 400 for no bytes, 415 for another format; DiadError ERR_DIAD_QUEUE_FULL, ERR_DIAD_IMAGE_DECODE,
   *   ERR_DIAD_IMAGE_TOO_LARGE
   */
  async admit(bytes: unknown): Promise<Picture> {
    this.#refuseUnlessReady();
    this.refuseWhenFull();
    if (!Buffer.isBuffer(bytes) || bytes.length === 0) {
      throw new HttpFailure(
        'ERR_HTTP_BAD_REQUEST',
        'Expected the bytes of a picture as the body, or as the file "image" of a multipart form',
      );
    }
    try {
      const { format, width, height } = await inspectImage(bytes, this.#options.maxFrames);
      if (width * height > this.#options.maxPixels) {
        throw new DiadError(
          'ERR_DIAD_IMAGE_TOO_LARGE',
          `Expected at most ${this.#options.maxPixels} pixels but the picture has ${width} x ${height}`,
        );
      }
      return { bytes, format, width, height };
    } catch (error) {
      this.#metrics.refusedPicture(error);
      if (error instanceof DiadError && error.code === 'ERR_DIAD_IMAGE_DECODE' && error.cause === undefined) {
        throw new HttpFailure('ERR_HTTP_UNSUPPORTED_MEDIA_TYPE', error.message); // no format that is read, as opposed to damaged bytes
      }
      throw error;
    }
  }

  /**
   * The same for the pictures of one request.
   *
   * @throws what `admit` does; HttpFailure 413 for more pictures or pixels than there may be at once: such a request would never be taken
   */
  async admitAll(all: readonly Buffer[]): Promise<Picture[]> {
    const { queueLimit } = this.scorer.info;
    if (all.length > queueLimit) {
      throw new HttpFailure('ERR_HTTP_TOO_LARGE', `Expected at most ${queueLimit} pictures at once but the request has ${all.length}`);
    }
    const pictures = await Promise.all(all.map((bytes) => this.admit(bytes)));
    const pixels = pictures.reduce((sum, { width, height }) => sum + width * height, 0);
    if (pixels > this.pixels.limit) {
      throw new HttpFailure(
        'ERR_HTTP_TOO_LARGE',
        `Expected at most ${this.pixels.limit} pixels at once but the pictures of the request have ${pixels}`,
      );
    }
    return pictures;
  }

  /**
   * Scores the pictures of one request; the first failure aborts the others.
   *
   * @throws what `score` does
   */
  async scoreAll(pictures: readonly Picture[], call: ScoreCall): Promise<ScoreResult[]> {
    const failed = new AbortController();
    const signal = AbortSignal.any([call.signal, failed.signal]);
    setMaxListeners(0, signal); // one per picture
    const scores = pictures.map((picture) => this.score(picture, { ...call, signal }));
    try {
      return await Promise.all(scores);
    } catch (error) {
      failed.abort();
      await Promise.allSettled(scores);
      throw error;
    }
  }

  /** @throws DiadError ERR_DIAD_INVALID_ARGUMENT for tiles that do not fit together or are too many, and what the library throws */
  async score(picture: Picture, { tile, className, ...call }: ScoreCall): Promise<ScoreResult> {
    const its = className === undefined ? {} : { className };
    if (tile === undefined) return this.#run(picture, call, (scorer, options) => scorer.score(picture.bytes, { ...options, ...its }));
    const tiles = countTiles(picture.width, picture.height, validateTiles(tile));
    if (tiles > MOST_TILES) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected at most ${MOST_TILES} tiles but the picture needs ${tiles}; take larger ones or less overlap`,
      );
    }
    return this.#run(picture, call, (scorer, options) => scorer.score(picture.bytes, { ...options, ...its, tile }));
  }

  reconstruct(picture: Picture, call: Call): Promise<ReconstructResult> {
    return this.#run(picture, call, (scorer, options) => scorer.reconstruct(picture.bytes, options));
  }

  async #run<T extends ScoreResult | ReconstructResult>(
    { width, height }: Picture,
    { seed = 0, signal }: Call,
    compute: (scorer: Scorer, options: { seed: number; signal: AbortSignal; timeoutMs: number }) => Promise<T>,
  ): Promise<T> {
    const scorer = this.#scorer!; // admitted: a shutdown that began since then waits for this picture
    const release = this.pixels.take(width * height);
    this.#inFlight++;
    try {
      const result = await this.#health!.follow(compute(scorer, { seed, signal, timeoutMs: this.#options.scoreTimeoutMs }));
      this.#metrics.computed(result);
      return result;
    } catch (error) {
      this.#metrics.refusedPicture(error);
      throw error;
    } finally {
      this.#inFlight--;
      release();
    }
  }
}
