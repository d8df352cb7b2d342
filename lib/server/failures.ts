// Reports every failure as problem+json: of handlers, unknown paths and methods, and invalid connections.
import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type {
  FastifyError,
  FastifyInstance,
  FastifyReply,
  FastifyRequest,
  onRequestHookHandler,
} from 'fastify';
import type { Engine } from './engine.js';
import { ClientGone, type Metrics } from './metrics.js';
import { RejectionThrottle } from './pacer.js';
import { HttpFailure, toProblem, type Problem } from './problem.js';

const PROBLEM_TYPE = 'application/problem+json; charset=utf-8';

function answer(request: FastifyRequest, reply: FastifyReply, problem: Problem): void {
  // The Open Inference Protocol requires a member "error".
  const body = request.url.startsWith('/v2') ? { ...problem, error: problem.detail } : problem;
  // Serialize here, because response schemas belong to routes and an unknown path has none.
  void reply.status(problem.status).type(PROBLEM_TYPE).send(JSON.stringify(body));
}

/** Methods by path, to answer 405 instead of 404. */
class Methods {
  readonly #served: { readonly path: RegExp; readonly methods: Set<string> }[] = [];

  add(url: string, method: string | readonly string[]): void {
    const source = `^${url.replace(/[.+^$()|[\]\\]/g, '\\$&').replace(/:[^/]+/g, '[^/]+')}$`;
    let known = this.#served.find(({ path }) => path.source === new RegExp(source).source);
    if (known === undefined) this.#served.push((known = { path: new RegExp(source), methods: new Set() }));
    for (const one of [method].flat()) known.methods.add(one);
  }

  of(url: string): string[] {
    const path = url.split('?')[0]!;
    return this.#served.flatMap((served) => (served.path.test(path) ? [...served.methods] : []));
  }
}

/**
 * Installs the handlers.
 *
 * @returns a hook that rejects requests without a route before their body is read, which no budget limits.
 *   Add it after the hooks that set headers
 */
export function handleFailures(app: FastifyInstance, engine: Engine, metrics: Metrics): onRequestHookHandler {
  const methods = new Methods();
  const throttle = new RejectionThrottle();
  app.addHook('onRoute', ({ url, method }) => {
    if (!url.includes('*')) methods.add(url, method);
  });
  const answerMissing = (request: FastifyRequest, reply: FastifyReply): void => {
    const allowed = methods.of(request.url);
    const failure =
      allowed.length > 0
        ? new HttpFailure(
            'ERR_HTTP_METHOD_NOT_ALLOWED',
            `${request.method} is not allowed here, only ${allowed.join(', ')}`,
          )
        : new HttpFailure('ERR_HTTP_NOT_FOUND', 'Not found; /openapi.json lists all paths');
    if (allowed.length > 0) void reply.header('allow', allowed.join(', '));
    const problem = toProblem(failure, request.id);
    metrics.rejected(problem.code);
    answer(request, reply, problem);
  };
  app.setErrorHandler((error: FastifyError, request, reply) => {
    if (error instanceof ClientGone) {
      reply.hijack(); // the client has disconnected
      return;
    }
    const problem = toProblem(error, request.id);
    metrics.rejected(problem.code);
    if (problem.status === 503 && !reply.hasHeader('retry-after'))
      void reply.header('retry-after', String(engine.retryAfterSeconds()));
    if (problem.status >= 500 && problem.status !== 503) request.log.error({ err: error }, 'request failed');
    else request.log.info({ code: problem.code, detail: problem.detail }, 'request rejected');
    // The rest of a rejected body is not read.
    if (problem.status === 413 || problem.status === 408) void reply.header('connection', 'close');
    const tooMany = problem.status === 503 || problem.status === 429;
    const delayMs = tooMany && !engine.draining ? throttle.delay() : 0;
    if (delayMs === 0) answer(request, reply, problem);
    else setTimeout(answer, delayMs, request, reply, problem);
  });
  app.setNotFoundHandler(answerMissing);
  return (request, reply, done) => {
    if (!request.is404) {
      done();
      return;
    }
    const { 'content-length': length = '0', 'transfer-encoding': encoding } = request.headers;
    // The body stays unread.
    if (length !== '0' || encoding !== undefined) void reply.header('connection', 'close');
    answerMissing(request, reply);
  };
}

const CONNECTION_FAILURES: Readonly<Record<string, () => HttpFailure>> = {
  ERR_HTTP_REQUEST_TIMEOUT: () => new HttpFailure('ERR_HTTP_TIMEOUT', 'The request was not sent in time'),
  HPE_HEADER_OVERFLOW: () =>
    new HttpFailure('ERR_HTTP_HEADERS_TOO_LARGE', 'Expected at most 16 KiB of headers'),
};

/** Answers a request that Node's parser rejected, and closes the connection. */
export function refuseConnection(error: Error & { code?: string }, socket: Socket, metrics: Metrics): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return;
  const failure =
    CONNECTION_FAILURES[error.code ?? '']?.() ??
    new HttpFailure('ERR_HTTP_BAD_REQUEST', 'The request is not valid HTTP');
  const problem = toProblem(failure);
  metrics.rejected(problem.code);
  const body = JSON.stringify(problem);
  const head = [
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status] ?? ''}`,
    `Content-Type: ${PROBLEM_TYPE}`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
  ];
  if (socket.writable) socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
  setTimeout(() => socket.destroy(), 1000).unref(); // in case the peer does not read the answer
}
