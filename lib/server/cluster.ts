// Several server processes on one port: a primary that restarts those that die and puts their metrics together.
import cluster, { type Worker } from 'node:cluster';
import process from 'node:process';
import { AggregatorRegistry, type Registry } from 'prom-client';

const METRICS_QUESTION = 'diad:metrics?';
const METRICS_ANSWER = 'diad:metrics';
const RESTART_DELAY_MS = 1000;

interface Message {
  readonly type: typeof METRICS_QUESTION | typeof METRICS_ANSWER;
  readonly id: number;
  readonly text?: string;
}

function isMessage(value: unknown): value is Message {
  return typeof value === 'object' && value !== null && 'type' in value && 'id' in value;
}

/** Whether this process is one of several behind a primary. */
export const isClusterWorker = cluster.isWorker;

/**
 * Runs worker processes with this process's own command line until SIGTERM or SIGINT, which they are handed on.
 *
 * @returns the exit code: 0 when all workers ended well after the signal, 1 when the first ones could not start
 */
export function runPrimary(workers: number): Promise<number> {
  const aggregate = new AggregatorRegistry();
  let stopping = false;
  let code = 0;
  let started = false;
  cluster.on('message', (worker: Worker, message: unknown) => {
    if (!isMessage(message) || message.type !== METRICS_QUESTION) return;
    void aggregate.clusterMetrics().then((text) => worker.send({ type: METRICS_ANSWER, id: message.id, text } satisfies Message));
  });
  cluster.on('listening', () => {
    started = true;
  });
  return new Promise((resolve) => {
    const stop = (): void => {
      stopping = true;
      for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill('SIGTERM');
    };
    process.once('SIGTERM', stop);
    process.once('SIGINT', stop);
    cluster.on('exit', (worker, exitCode, signal) => {
      if (!stopping && started) {
        process.stderr.write(`diad: server process ${worker.process.pid ?? '?'} ended (${signal ?? exitCode}); starting another\n`);
        setTimeout(() => {
          if (!stopping) cluster.fork();
        }, RESTART_DELAY_MS);
        return;
      }
      if (!stopping) stop(); // it never came up: the others would not either
      code ||= stopping && exitCode === 0 ? 0 : 1;
      if (Object.values(cluster.workers ?? {}).every((one) => one === undefined || one.isDead())) resolve(code);
    });
    for (let i = 0; i < workers; i++) cluster.fork();
  });
}

/** In a worker: the metrics of all workers together. */
export class ClusterMetrics {
  readonly #waiting = new Map<number, (text: string) => void>();
  #next = 0;

  constructor(registry: Registry) {
    new AggregatorRegistry(); // answers the primary's questions
    AggregatorRegistry.setRegistries([registry]);
    process.on('message', (message: unknown) => {
      if (!isMessage(message) || message.type !== METRICS_ANSWER) return;
      this.#waiting.get(message.id)?.(message.text ?? '');
      this.#waiting.delete(message.id);
    });
  }

  read(): Promise<string> {
    const id = this.#next++;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      process.send!({ type: METRICS_QUESTION, id } satisfies Message);
    });
  }
}
