// What Prometheus scrapes at /metrics.
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { ScoreResult } from '../diad.js';
import { codeOf } from '../errors.js';
import type { Budget } from './budget.js';
import type { Scorer } from './options.js';

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const STAGES = ['resize', 'encode', 'denoise', 'decode', 'extract', 'map'] as const;

/** The server's own registry: several servers in one process do not share numbers. */
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
    help: 'From the arrival of the headers to the end of the answer',
    labelNames: ['route'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #queue = new Histogram({
    name: 'diad_queue_seconds',
    help: 'From submission to the start of the batch, per image',
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #compute = new Histogram({
    name: 'diad_compute_seconds',
    help: 'Computing a batch, in all and by stage, per image of the batch; "read" is decoding the file',
    labelNames: ['stage'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly #batch = new Histogram({
    name: 'diad_batch_size',
    help: 'Images computed together, per image',
    buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256],
    registers: [this.registry],
  });
  readonly #rejected = new Counter({
    name: 'diad_rejected_total',
    help: 'Refused or failed requests by code of the problem',
    labelNames: ['code'],
    registers: [this.registry],
  });
  readonly #undecodable = new Counter({
    name: 'diad_decode_failures_total',
    help: 'Images that are damaged or of no format that is read',
    registers: [this.registry],
  });
  readonly #cancelled = new Counter({
    name: 'diad_cancelled_total',
    help: 'Images given up because the client had gone',
    registers: [this.registry],
  });

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  /** Gauges that are read when they are scraped. */
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
        return { queued: 0, running: 0 }; // closed: nothing is in it
      }
    };
    gauge('diad_queue_depth', 'Images that wait for a batch', () => stats().queued);
    gauge('diad_running', 'Images in the batch that is computed', () => stats().running);
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

/** Why an image was given up: its client closed the connection. */
export class ClientGone extends Error {
  override readonly name = 'ClientGone';
}
