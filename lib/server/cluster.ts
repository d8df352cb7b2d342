// Several server processes on one port. The primary restarts processes that die and aggregates their metrics.
import cluster, { type Worker } from 'node:cluster';
import process from 'node:process';
import { AggregatorRegistry, type Registry } from 'prom-client';
import { HttpFailure } from './problem.js';

const READY = 'diad:ready';
const METRICS_QUESTION = 'diad:metrics?';
const METRICS_ANSWER = 'diad:metrics';
/** Must exceed the 5 s limit of prom-client for answers to the primary. */
const METRICS_TIMEOUT_MS = 6000;
/** Delay before a process is replaced; doubled for each replacement that did not become ready. */
const RESTART_DELAY_MS = 1000;
/** Consecutive replacements that did not become ready, after which no more are started. */
const MOST_FAILED_STARTS = 5;

type Message =
  | { readonly type: typeof READY }
  | { readonly type: typeof METRICS_QUESTION; readonly id: number }
  /** No text if a process has not answered. */
  | { readonly type: typeof METRICS_ANSWER; readonly id: number; readonly text?: string };

function isMessage(value: unknown): value is Message {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined;
  return type === READY || type === METRICS_QUESTION || type === METRICS_ANSWER;
}

/** Whether this process is a worker of a primary. */
export const isClusterWorker = cluster.isWorker;

/**
 * Runs worker processes with the command line of this process until SIGTERM or SIGINT, and forwards these
 * signals.
 *
 * @returns the exit code: 0 if all workers ended normally after the signal; 1 if the first workers could not
 *   start, or no worker is left
 */
export function runPrimary(workers: number): Promise<number> {
  return new Promise((resolve) => {
    new Primary(resolve).start(workers);
  });
}

/** Starts workers and replaces those that end. */
class Primary {
  readonly #done: (code: number) => void;
  readonly #aggregate = new AggregatorRegistry();
  readonly #ready = new WeakSet<Worker>();
  #served = false;
  #failedStarts = 0;
  readonly #restarts = new Set<NodeJS.Timeout>(); // pending replacements
  #stopping = false;
  #code = 0;

  constructor(done: (code: number) => void) {
    this.#done = done;
  }

  start(workers: number): void {
    cluster.on('message', (worker: Worker, message: unknown) => {
      if (!isMessage(message)) return;
      if (message.type === READY) this.#isReady(worker);
      if (message.type === METRICS_QUESTION) void this.#answerMetrics(worker, message.id);
    });
    cluster.on('exit', (worker, exitCode, signal: string | null) => {
      this.#ended(worker, exitCode, signal ?? String(exitCode));
    });
    process.once('SIGTERM', () => {
      this.#stop();
    });
    process.once('SIGINT', () => {
      this.#stop();
    });
    for (let i = 0; i < workers; i++) this.#fork();
  }

  #fork(): void {
    const worker = cluster.fork();
    // Also raised for messages to a dying process. "exit" reports its end, except when it never started.
    worker.on('error', (error) => {
      if (worker.process.pid === undefined) this.#ended(worker, 1, error.message);
    });
  }

  #isReady(worker: Worker): void {
    this.#ready.add(worker);
    this.#served = true;
    this.#failedStarts = 0;
  }

  async #answerMetrics(worker: Worker, id: number): Promise<void> {
    const text = await this.#aggregate.clusterMetrics().catch((error: unknown) => {
      process.stderr.write(
        `diad: the metrics cannot be aggregated: ${error instanceof Error ? error.message : String(error)}\n`,
      );
    });
    const answer = { type: METRICS_ANSWER, id, ...(text === undefined ? {} : { text }) } satisfies Message;
    if (worker.isConnected()) worker.send(answer, () => undefined); // the requesting worker may have died
  }

  #ended(worker: Worker, exitCode: number | null, how: string): void {
    if (this.#stopping) this.#code ||= exitCode === 0 ? 0 : 1;
    else if (this.#served) this.#replace(worker, how);
    else {
      this.#code = 1;
      this.#stop(); // no worker has ever become ready
    }
    this.#endIfNoneIsLeft();
  }

  #replace(worker: Worker, how: string): void {
    const ready = this.#ready.has(worker);
    if (!ready) this.#failedStarts++;
    const early = ready ? '' : ' before it was ready';
    const gone = `diad: server process ${worker.process.pid ?? '?'} ended${early} (${how})`;
    if (this.#failedStarts >= MOST_FAILED_STARTS) {
      process.stderr.write(`${gone}; not restarting after ${this.#failedStarts} failed starts in a row\n`);
      return;
    }
    process.stderr.write(`${gone}; starting another\n`);
    const restart = setTimeout(
      () => {
        this.#restarts.delete(restart);
        this.#fork();
      },
      RESTART_DELAY_MS * 2 ** this.#failedStarts,
    );
    this.#restarts.add(restart);
  }

  #stop(): void {
    this.#stopping = true;
    for (const restart of this.#restarts) clearTimeout(restart);
    for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill('SIGTERM');
    this.#endIfNoneIsLeft();
  }

  #endIfNoneIsLeft(): void {
    if (Object.values(cluster.workers ?? {}).some((one) => one?.isDead() === false)) return;
    if (this.#stopping) this.#done(this.#code);
    else if (this.#restarts.size === 0) this.#done(1);
  }
}

/** In a worker: reports to the primary that it is ready. */
export function tellReady(): void {
  // "disconnect" reports a dead primary.
  process.send?.({ type: READY } satisfies Message, undefined, undefined, () => undefined);
}

/** In a worker: disconnects from the primary, whose channel would keep the process alive. */
export function leaveCluster(): void {
  if (cluster.worker?.isConnected() === true) cluster.worker.disconnect();
}

/** In a worker: calls `stop` when the primary has died. */
export function whenPrimaryDies(stop: () => void): void {
  const { worker } = cluster;
  worker?.once('disconnect', () => {
    if (worker.exitedAfterDisconnect) return;
    // Otherwise Node exits immediately and aborts open requests.
    worker.exitedAfterDisconnect = true;
    stop();
  });
}

/** In a worker: reads the aggregated metrics of all workers. */
export class ClusterMetrics {
  readonly #waiting = new Map<number, (text: string | undefined) => void>();
  #next = 0;

  constructor(registry: Registry) {
    new AggregatorRegistry(); // answers requests of the primary
    AggregatorRegistry.setRegistries([registry]);
    process.on('message', (message: unknown) => {
      if (isMessage(message) && message.type === METRICS_ANSWER)
        this.#waiting.get(message.id)?.(message.text);
    });
  }

  /** @throws HttpFailure ERR_HTTP_UNAVAILABLE when a process does not answer in time */
  async read(): Promise<string> {
    const id = this.#next++;
    let timer: NodeJS.Timeout | undefined;
    const text = await new Promise<string | undefined>((resolve) => {
      this.#waiting.set(id, resolve);
      timer = setTimeout(resolve, METRICS_TIMEOUT_MS, undefined);
      process.send?.(
        { type: METRICS_QUESTION, id } satisfies Message,
        undefined,
        undefined,
        (error: Error | null) => {
          if (error !== null) resolve(undefined);
        },
      );
    });
    clearTimeout(timer);
    this.#waiting.delete(id);
    if (text === undefined)
      throw new HttpFailure(
        'ERR_HTTP_UNAVAILABLE',
        'Not every server process has reported its metrics in time',
      );
    return text;
  }
}
