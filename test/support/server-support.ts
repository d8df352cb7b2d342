// Servers, requests and images for tests of lib/server.
import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import { crc32, deflateSync } from 'node:zlib';
import { setTimeout as sleep } from 'node:timers/promises';
import { Diad, DiadError, inspectImage } from '../../lib/index.js';
import { createServer, type DiadServer, type Scorer, type ServerOptions } from '../../lib/server/index.js';
import { publishedBundle } from './support.js';

type Scored = Awaited<ReturnType<Scorer['score']>>;

/**
 * A scorer without an engine for tests of the server. Takes `computeMs` per call, rejects like a full queue
 * above `queueLimit` concurrent calls, and respects signal and timeout. The score is the number of bytes.
 */
export function stubScorer({
  computeMs = 0,
  queueLimit = 64,
  ...over
}: { computeMs?: number; queueLimit?: number } & Partial<Scorer> = {}): Scorer {
  let inFlight = 0;
  const timings = {
    decodeImageMs: 1,
    queueMs: 1,
    computeMs,
    resizeMs: 0,
    encodeMs: 0,
    denoiseMs: 0,
    decodeMs: 0,
    extractMs: 0,
    mapMs: 0,
  };
  return {
    info: { bundle: { name: 'stub', digest: '0'.repeat(64), imageSize: 8 }, queueLimit } as Scorer['info'],
    stats: () =>
      ({
        queued: inFlight,
        running: 0,
        meanBatch: 1,
        computeMs: { mean: computeMs, p50: 0, p99: 0 },
      }) as ReturnType<Scorer['stats']>,
    score: async (image, { signal, seed = 0, timeoutMs = 0 } = {}) => {
      if (inFlight >= queueLimit) throw new DiadError('ERR_DIAD_QUEUE_FULL', 'full');
      inFlight++;
      try {
        const bytes = image instanceof Uint8Array ? image : new Uint8Array();
        if (bytes.length > 0) await inspectImage(bytes);
        const late = timeoutMs > 0 && timeoutMs < computeMs;
        await sleep(late ? timeoutMs : computeMs, undefined, signal === undefined ? {} : { signal }).catch(
          () => signal?.throwIfAborted(),
        );
        if (late) throw new DiadError('ERR_DIAD_TIMEOUT', 'late');
        return {
          score: bytes.length,
          seed: BigInt(seed),
          timings,
          batchSize: 1,
          map: {},
        } as unknown as Scored;
      } finally {
        inFlight--;
      }
    },
    reconstruct: () => Promise.reject(new Error('not in this stub')),
    close: () => Promise.resolve(),
    ...over,
  };
}

/** A stub whose images, except the warm-up, wait for `end`; `begun` resolves at the first of them. */
export function heldScorer(queueLimit = 64): {
  readonly scorer: Scorer;
  readonly begun: Promise<void>;
  end: () => void;
} {
  const stub = stubScorer({ queueLimit });
  let [begin, end] = [(): void => undefined, (): void => undefined];
  const begun = new Promise<void>((resolve) => (begin = resolve));
  const ended = new Promise<void>((resolve) => (end = resolve));
  const score: Scorer['score'] = async (image, options) => {
    if (image instanceof Uint8Array) {
      begin();
      await ended;
    }
    return stub.score(image, options);
  };
  return { scorer: { ...stub, score }, begun, end };
}

/** Runs `use` with a ready server on a free port, by default with a stub. */
export async function withServer(
  options: Partial<ServerOptions>,
  use: (server: DiadServer) => Promise<void>,
  ready = true,
): Promise<void> {
  const load = (): Promise<Scorer> => Promise.resolve(stubScorer());
  const server = await createServer({ load, port: 0, logLevel: 'silent', drainMs: 20_000, ...options });
  try {
    if (ready) await server.ready;
    await use(server);
  } finally {
    await server.close();
  }
}

/**
 * Provides a server with the base bundle and a Diad before the tests of a describe block, and closes both
 * after.
 */
export function besideDemoServer(
  take: (both: { readonly server: DiadServer; readonly diad: Diad }) => void,
): void {
  let both: { readonly server: DiadServer; readonly diad: Diad } | undefined;
  before(async () => {
    const load = (): Promise<Diad> => Diad.load(publishedBundle, { threads: 1 });
    const diad = await load();
    const server = await createServer({ load, port: 0, logLevel: 'silent' });
    both = { server, diad };
    await server.ready;
    take(both);
  });
  after(async () => {
    await both?.server.close();
    await both?.diad.close();
  });
}

export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: string;
  readonly detail: string;
}

/** Asserts that a response is a problem with this status and code that reveals no internals. */
export async function refused(answer: Response, status: number, code: string, detail = /./): Promise<void> {
  const text = await answer.text();
  assert.equal(answer.status, status, text);
  assert.equal(answer.headers.get('content-type'), 'application/problem+json; charset=utf-8');
  const problem = JSON.parse(text) as Problem;
  assert.equal(problem.code, code, text);
  assert.equal(problem.status, status);
  assert.match(problem.detail, detail);
  assert.doesNotMatch(text, /\.(js|ts):\d+|node_modules|\\n +at /);
}

/** Posts a body as an image. */
export const post = (
  server: DiadServer,
  route: string,
  body: Uint8Array | FormData | string,
  headers: Record<string, string> = {},
): Promise<Response> =>
  fetch(`${server.url}${route}`, {
    method: 'POST',
    body: body instanceof Uint8Array ? Uint8Array.from(body) : body,
    headers: body instanceof FormData ? headers : { 'content-type': 'application/octet-stream', ...headers },
  });

/** Creates a form with the image as a file. */
export function form(bytes: Uint8Array, field = 'image'): FormData {
  const sent = new FormData();
  sent.append(field, new Blob([Uint8Array.from(bytes)]), 'part.png');
  return sent;
}

/** Sends a request with headers that fetch does not allow. */
export function rawRequest(
  server: DiadServer,
  path: string,
  headers: Record<string, string>,
  method = 'GET',
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const request = http.request(`${server.url}${path}`, { method, headers }, (answer) => {
      let body = '';
      answer.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
      answer.once('end', () => {
        resolve({ status: answer.statusCode ?? 0, body });
      });
    });
    request.once('error', reject).end();
  });
}

/** Sends text over a connection and collects the answer until the connection is closed. */
export function converse(server: DiadServer, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(server.port, '127.0.0.1', () => socket.write(text));
    let received = '';
    socket.setEncoding('utf8').on('data', (chunk: string) => (received += chunk));
    socket.once('close', () => {
      resolve(received);
    });
    socket.once('error', (error) => {
      if ((error as NodeJS.ErrnoException).code !== 'ECONNRESET') reject(error);
    });
  });
}

function chunk(type: string, content: Buffer): Buffer {
  const typed = Buffer.concat([Buffer.from(type, 'latin1'), content]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(content.length);
  sum.writeUInt32BE(crc32(typed));
  return Buffer.concat([length, typed, sum]);
}

/** Creates a valid black PNG of one bit per pixel: few bytes, many pixels. */
export function pngBomb(width: number, height: number): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 1;
  const rows = deflateSync(Buffer.alloc((Math.ceil(width / 8) + 1) * height), { level: 9 });
  const magic = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
  return Buffer.concat([magic, chunk('IHDR', header), chunk('IDAT', rows), chunk('IEND', Buffer.alloc(0))]);
}

/** Returns the value of a metric sample: `diad_x_total{code="200"}`. */
export function sample(metrics: string, name: string): number {
  const line = metrics.split('\n').find((one) => one.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length + 1));
}

/** Compares numbers up to the rounding of a different batch. */
export function closeTo(actual: number, expected: number): void {
  assert.ok(
    Math.abs(actual - expected) <= 1e-4 * Math.max(1e-2, Math.abs(expected)),
    `${actual} is not ${expected}`,
  );
}
