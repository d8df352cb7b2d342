// Prometheus metrics of the server, served at /metrics.
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { ScoreResult } from '../diad.js';
import { codeOf } from '../errors.js';
import type { Budget } from './budget.js';
import type { Scorer } from './options.js';

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const STAGES = ['resize', 'encode', 'denoise', 'decode', 'extract', 'map'] as const;

/** Metrics of one server, in a separate registry because a process can run several servers. */
export class Metrics {
  readonly registry = new Registry();
  readonly #requests = new Counter({
    name: 'diad_http_requests_total',
    help: 'Answered requests',
    labelNames: ['route', 'method', 'code'],
    registers: [this.registry],
  });
  readonly #duration = new Histogram({
    name: 'diad_http_request_seconds',
    help: 'Time from the arrival of the headers to the end of the answer',
    labelNames: ['route'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #queue = new Histogram({
    name: 'diad_queue_seconds',
    help: 'Time from submission to the start of the batch, per image',
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #compute = new Histogram({
    name: 'diad_compute_seconds',
    help: 'Time to compute the batch of an image, total and by stage; "read" is decoding the file',
    labelNames: ['stage'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #batch = new Histogram({
    name: 'diad_batch_size',
    help: 'Size of the batch, per image',
    buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256],
    registers: [this.registry],
  });
  readonly #rejected = new Counter({
    name: 'diad_rejected_total',
    help: 'Rejected or failed requests by problem code',
    labelNames: ['code'],
    registers: [this.registry],
  });
  readonly #undecodable = new Counter({
    name: 'diad_decode_failures_total',
    help: 'Damaged images and images in unsupported formats',
    registers: [this.registry],
  });
  readonly #cancelled = new Counter({
    name: 'diad_cancelled_total',
    help: 'Images cancelled because the client disconnected',
    registers: [this.registry],
  });

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  /** Registers gauges that are read when scraped. */
  watch(scorer: Scorer, pixels: Budget): void {
    const gauge = (name: string, help: string, read: () => number): void => {
      const registers = [this.registry];
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read());
        },
      });
    };
    const stats = (): { queued: number; running: number } => {
      try {
        return scorer.stats();
      } catch {
        return { queued: 0, running: 0 }; // closed, so the queue is empty
      }
    };
    gauge('diad_queue_depth', 'Images waiting for a batch', () => stats().queued);
    gauge('diad_running', 'Images in the current batch', () => stats().running);
    gauge('diad_pixels_in_flight', 'Pixels of admitted images', () => pixels.used);
  }

  answered(route: string, method: string, status: number, seconds: number): void {
    this.#requests.inc({ route, method, code: String(status) });
    this.#duration.observe({ route }, seconds);
  }

  rejected(code: string): void {
    this.#rejected.inc({ code });
  }

  refusedImage(error: unknown): void {
    if (codeOf(error) === 'ERR_DIAD_IMAGE_DECODE') this.#undecodable.inc();
    if (error instanceof ClientGone) this.#cancelled.inc();
  }

  computed({ timings, batchSize }: Pick<ScoreResult, 'timings' | 'batchSize'>): void {
    this.#queue.observe(timings.queueMs / 1000);
    this.#batch.observe(batchSize);
    this.#compute.observe({ stage: 'all' }, timings.computeMs / 1000);
    this.#compute.observe({ stage: 'read' }, timings.decodeImageMs / 1000);
    for (const stage of STAGES) this.#compute.observe({ stage }, timings[`${stage}Ms`] / 1000);
  }
}

/** Reason to cancel an image: its client closed the connection. */
export class ClientGone extends Error {
  override readonly name = 'ClientGone';
}
