// A real Redis, and a worker with a stub engine, for tests of lib/queue.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import sharp from 'sharp';
import { runResults, type RunResult, type Submission, type WorkerScorer } from '../../lib/queue/index.js';
import { sha256 } from '../../lib/queue/reference.js';
import { HANG_GUARD_MS } from './support.js';

export const STUB_MODEL = 'ab'.repeat(32);

/** Returns a port without a listener. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Waits for all results of a run. */
export async function collect(run: string, redis: string): Promise<RunResult[]> {
  const all: RunResult[] = [];
  for await (const result of runResults(run, {
    redis,
    wait: true,
    signal: AbortSignal.timeout(HANG_GUARD_MS),
  }))
    all.push(result);
  return all;
}

/** Submits an image by its path below the worker's root. */
export const asFile = ({ file, sha256: digest }: { file: string; sha256: string }): Submission => ({
  file,
  sha256: digest,
  reference: { kind: 'file', path: file },
});

/**
 * A private redis-server with an append-only file in `folder`; its URL contains `requirepass` of the
 * settings.
 */
export class Broker {
  readonly url: string;
  readonly #args: readonly string[];
  #child: ChildProcess | undefined;

  constructor(port: number, folder: string, settings: Readonly<Record<string, string>> = {}) {
    const password = settings['requirepass'];
    this.url = `redis://${password === undefined ? '' : `:${password}@`}127.0.0.1:${port}`;
    const all = {
      port: String(port),
      bind: '127.0.0.1',
      dir: folder,
      save: '',
      appendonly: 'yes',
      'maxmemory-policy': 'noeviction',
      ...settings,
    };
    this.#args = Object.entries(all).flatMap(([name, value]) => [`--${name}`, value]);
  }

  async start(): Promise<void> {
    this.#child = spawn('redis-server', this.#args, { stdio: 'ignore' });
    const redis = new Redis(this.url, { maxRetriesPerRequest: null, retryStrategy: () => 50 });
    redis.on('error', () => undefined);
    assert.equal(await redis.ping(), 'PONG');
    redis.disconnect();
  }

  /** Stops answering but keeps its connections. */
  freeze(): void {
    this.#child?.kill('SIGSTOP');
  }

  async kill(): Promise<void> {
    if (this.#child === undefined || this.#child.exitCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
    this.#child = undefined;
  }
}

/** Bundle info of a stub. */
export const stubInfo = (digest: string): object => ({
  bundle: { name: 'stub', digest, calibratedClasses: [] },
  precision: 'float32',
});

/** A scorer without an engine; the score is derived from the image's hash. */
export function stubScorer(delayMs: number, onScore: () => void = () => undefined): WorkerScorer {
  const score = async (image: unknown): Promise<unknown> => {
    onScore();
    await sleep(delayMs);
    return { score: stubScore(image as Uint8Array) };
  };
  return { info: stubInfo(STUB_MODEL), score } as unknown as WorkerScorer;
}

export const stubScore = (bytes: Uint8Array): number => parseInt(sha256(bytes).slice(0, 8), 16) / 2 ** 32;

/** Starts test/support/queue-worker.ts as a process and waits until it is running. */
export async function startWorkerProcess(
  redis: string,
  root: string,
  options: { delayMs: number; lockMs: number; maxStalls: number },
): Promise<ChildProcess> {
  const script = path.join(import.meta.dirname, 'queue-worker.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', script, redis, root, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  return child;
}

/** Creates different small PNG files in a folder; returns their names, hashes and bytes. */
export async function writeImages(
  folder: string,
  count: number,
): Promise<{ file: string; sha256: string; bytes: Buffer }[]> {
  const made = Array.from({ length: count }, async (_, i) => {
    const background = { r: i % 256, g: i >> 8, b: 7 };
    const bytes = await sharp({ create: { width: 4, height: 4, channels: 3, background } })
      .png()
      .toBuffer();
    const file = `${String(i).padStart(4, '0')}.png`;
    await writeFile(path.join(folder, file), bytes);
    return { file, sha256: sha256(bytes), bytes };
  });
  return Promise.all(made);
}
