// Every failure leaves as problem+json: those of handlers, unknown paths and methods, and of connections that never became a request.
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
import { Pacer } from './pacer.js';
import { HttpFailure, toProblem, type Problem } from './problem.js';

const PROBLEM_TYPE = 'application/problem+json; charset=utf-8';

function answer(request: FastifyRequest, reply: FastifyReply, problem: Problem): void {
  // The Open Inference Protocol wants a member "error".
  const body = request.url.startsWith('/v2') ? { ...problem, error: problem.detail } : problem;
  // Serialized here: the schemas of answers belong to routes, and an unknown path has none.
  void reply.status(problem.status).type(PROBLEM_TYPE).send(JSON.stringify(body));
}

/** Methods of the paths that are served, for 405 in place of 404. */
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
 * @returns a hook for requests that nothing answers, to be added behind those that set headers: such a request is refused before its body is read,
 *   which counts against no budget
 */
export function handleFailures(app: FastifyInstance, engine: Engine, metrics: Metrics): onRequestHookHandler {
  const methods = new Methods();
  const pacer = new Pacer();
  app.addHook('onRoute', ({ url, method }) => {
    if (!url.includes('*')) methods.add(url, method);
  });
  const answerMissing = (request: FastifyRequest, reply: FastifyReply): void => {
    const allowed = methods.of(request.url);
    const failure =
      allowed.length > 0
        ? new HttpFailure(
            'ERR_HTTP_METHOD_NOT_ALLOWED',
            `${request.method} is not answered here but ${allowed.join(', ')}`,
          )
        : new HttpFailure('ERR_HTTP_NOT_FOUND', 'There is nothing here; /openapi.json lists what there is');
    if (allowed.length > 0) void reply.header('allow', allowed.join(', '));
    const problem = toProblem(failure, request.id);
    metrics.rejected(problem.code);
    answer(request, reply, problem);
  };
  app.setErrorHandler((error: FastifyError, request, reply) => {
    if (error instanceof ClientGone) {
      reply.hijack(); // nobody is left to be answered
      return;
    }
    const problem = toProblem(error, request.id);
    metrics.rejected(problem.code);
    if (problem.status === 503 && !reply.hasHeader('retry-after'))
      void reply.header('retry-after', String(engine.retryAfterSeconds()));
    if (problem.status >= 500 && problem.status !== 503) request.log.error({ err: error }, 'request failed');
    else request.log.info({ code: problem.code, detail: problem.detail }, 'request refused');
    // What is left of a body that was too large or of the wrong kind is not read.
    if (problem.status === 413 || problem.status === 408) void reply.header('connection', 'close');
    const tooMany = problem.status === 503 || problem.status === 429;
    const delayMs = tooMany && !engine.draining ? pacer.delay() : 0;
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
    if (length !== '0' || encoding !== undefined) void reply.header('connection', 'close'); // the body is not read
    answerMissing(request, reply);
  };
}

const CONNECTION_FAILURES: Readonly<Record<string, () => HttpFailure>> = {
  ERR_HTTP_REQUEST_TIMEOUT: () => new HttpFailure('ERR_HTTP_TIMEOUT', 'The request was not sent in time'),
  HPE_HEADER_OVERFLOW: () =>
    new HttpFailure('ERR_HTTP_HEADERS_TOO_LARGE', 'Expected at most 16 KiB of headers'),
};

/** Answers what Node's parser refused, and closes the connection. */
export function refuseConnection(error: Error & { code?: string }, socket: Socket, metrics: Metrics): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return;
  const failure =
    CONNECTION_FAILURES[error.code ?? '']?.() ??
    new HttpFailure('ERR_HTTP_BAD_REQUEST', 'The request is not HTTP that can be understood');
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
  setTimeout(() => socket.destroy(), 1000).unref(); // a peer that does not read its answer
}
