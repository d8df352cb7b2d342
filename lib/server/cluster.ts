// Several server processes on one port: a primary that restarts those that die and puts their metrics together.
import cluster, { type Worker } from 'node:cluster';
import process from 'node:process';
import { AggregatorRegistry, type Registry } from 'prom-client';
import { HttpFailure } from './problem.js';

const READY = 'diad:ready';
const METRICS_QUESTION = 'diad:metrics?';
const METRICS_ANSWER = 'diad:metrics';
/** The primary gives a process 5 s to answer, prom-client's own limit. */
const METRICS_TIMEOUT_MS = 6000;
/** Before the first attempt to replace a process; doubled for each that did not become ready. */
const RESTART_DELAY_MS = 1000;
/** Replacements in a row that do not become ready: what ends them would end the next. */
const MOST_FAILED_STARTS = 5;

type Message =
  | { readonly type: typeof READY }
  | { readonly type: typeof METRICS_QUESTION; readonly id: number }
  /** Without a text when not every process has answered. */
  | { readonly type: typeof METRICS_ANSWER; readonly id: number; readonly text?: string };

function isMessage(value: unknown): value is Message {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined;
  return type === READY || type === METRICS_QUESTION || type === METRICS_ANSWER;
}

/** Whether this process is one of several behind a primary. */
export const isClusterWorker = cluster.isWorker;

/**
 * Runs worker processes with this process's own command line until SIGTERM or SIGINT, which they are handed on.
 *
 * @returns the exit code: 0 when all workers ended well after the signal, 1 when the first ones could not start or no other can any more
 */
export function runPrimary(workers: number): Promise<number> {
  return new Promise((resolve) => {
    new Primary(resolve).start(workers);
  });
}

/** Starts the processes, and others in place of those that end. */
class Primary {
  readonly #done: (code: number) => void;
  readonly #aggregate = new AggregatorRegistry();
  readonly #ready = new WeakSet<Worker>();
  #served = false;
  #failedStarts = 0;
  readonly #restarts = new Set<NodeJS.Timeout>(); // that wait for their time
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
    // Also of a message that a dying process no longer takes, prom-client's too: its end is told by "exit", but for one that never began.
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
        `diad: the metrics cannot be put together: ${error instanceof Error ? error.message : String(error)}\n`,
      );
    });
    const answer = { type: METRICS_ANSWER, id, ...(text === undefined ? {} : { text }) } satisfies Message;
    if (worker.isConnected()) worker.send(answer, () => undefined); // who asked may have died meanwhile
  }

  #ended(worker: Worker, exitCode: number | null, how: string): void {
    if (this.#stopping) this.#code ||= exitCode === 0 ? 0 : 1;
    else if (this.#served) this.#replace(worker, how);
    else {
      this.#code = 1;
      this.#stop(); // the first one never came up: the others would not either
    }
    this.#endWhenNoneIsLeft();
  }

  #replace(worker: Worker, how: string): void {
    const ready = this.#ready.has(worker);
    if (!ready) this.#failedStarts++;
    const gone = `diad: server process ${worker.process.pid ?? '?'} ended${ready ? '' : ' before it was ready'} (${how})`;
    if (this.#failedStarts >= MOST_FAILED_STARTS) {
      process.stderr.write(
        `${gone}; no other is started, ${this.#failedStarts} in a row have ended like this\n`,
      );
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
    this.#endWhenNoneIsLeft();
  }

  #endWhenNoneIsLeft(): void {
    if (Object.values(cluster.workers ?? {}).some((one) => one?.isDead() === false)) return;
    if (this.#stopping) this.#done(this.#code);
    else if (this.#restarts.size === 0) this.#done(1);
  }
}

/** In a worker: tells the primary that images are taken. */
export function tellReady(): void {
  process.send?.({ type: READY } satisfies Message, undefined, undefined, () => undefined); // a primary that is gone is told by "disconnect"
}

/** In a worker: lets go of the primary, whose channel would keep the process alive. */
export function leaveCluster(): void {
  if (cluster.worker?.isConnected() === true) cluster.worker.disconnect();
}

/** In a worker: `stop` runs when the primary has died. */
export function whenPrimaryDies(stop: () => void): void {
  const { worker } = cluster;
  worker?.once('disconnect', () => {
    if (worker.exitedAfterDisconnect) return;
    worker.exitedAfterDisconnect = true; // else Node ends the process at once, and with it the requests that run
    stop();
  });
}

/** In a worker: the metrics of all workers together. */
export class ClusterMetrics {
  readonly #waiting = new Map<number, (text: string | undefined) => void>();
  #next = 0;

  constructor(registry: Registry) {
    new AggregatorRegistry(); // answers the primary's questions
    AggregatorRegistry.setRegistries([registry]);
    process.on('message', (message: unknown) => {
      if (isMessage(message) && message.type === METRICS_ANSWER)
        this.#waiting.get(message.id)?.(message.text);
    });
  }

  /** @throws HttpFailure ERR_HTTP_UNAVAILABLE when one of the processes does not answer */
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
      throw new HttpFailure('ERR_HTTP_UNAVAILABLE', 'Not every server process has told its metrics in time');
    return text;
  }
}
