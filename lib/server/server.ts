// The HTTP server: assembles plug-ins, routes and limits, listens, and shuts down gracefully.
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import process from 'node:process';
import accepts from '@fastify/accepts';
import cors from '@fastify/cors';
import helmet from '@fastify/helmet';
import rateLimit from '@fastify/rate-limit';
import staticFiles from '@fastify/static';
import swagger from '@fastify/swagger';
import underPressure from '@fastify/under-pressure';
import fastify, { type FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { packageRoot } from '../native/addon.js';
import { callerKey, protect } from './auth.js';
import { Budget } from './budget.js';
import { ClusterMetrics, isClusterWorker } from './cluster.js';
import { Engine } from './engine.js';
import { handleFailures, refuseConnection } from './failures.js';
import { healthRoutes, inferenceRoutes } from './inference-protocol.js';
import { Metrics } from './metrics.js';
import { validateServerOptions, type ServerOptions, type ValidatedServer } from './options.js';
import { imageRoutes } from './images.js';
import { HttpFailure } from './problem.js';
import { COMMON_PROBLEMS, content, problems } from './schemas.js';

/** A listening server. */
export interface DiadServer {
  /**
   * URL of the bound address, for example 'http://127.0.0.1:8080'; 'http://0.0.0.0:8080' means all addresses.
   */
  readonly url: string;
  readonly port: number;
  /** Resolves when images are accepted; rejects when the bundle cannot be loaded. */
  readonly ready: Promise<void>;
  /**
   * Resolves with the reason when the engine has failed permanently, for example after a device error. The
   * server is then neither live nor ready; restart the process.
   */
  readonly lost: Promise<Error>;
  /** Returns the metrics in the Prometheus text format. */
  metrics(): Promise<string>;
  /**
   * Stops accepting requests, waits up to `drainMs` for open ones, then releases the engine. Does not wait
   * for a bundle that is still loading: it is released later, and `ready` rejects with ERR_DIAD_CLOSED.
   *
   * @returns whether all open requests completed
   */
  close(): Promise<boolean>;
}

const { version } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
  version: string;
};
const pageFolder = path.join(packageRoot, 'dist', 'page');

/** Allows only own resources, no inline code, no frames. */
const CONTENT_SECURITY_POLICY = {
  useDefaults: false,
  directives: {
    defaultSrc: ["'none'"],
    scriptSrc: ["'self'"],
    styleSrc: ["'self'"],
    imgSrc: ["'self'", 'blob:'],
    mediaSrc: ["'self'", 'blob:'],
    connectSrc: ["'self'"],
    baseUri: ["'none'"],
    formAction: ["'none'"],
    frameAncestors: ["'none'"],
  },
};

function build(options: ValidatedServer, metrics: Metrics): FastifyInstance {
  const shared = {
    bodyLimit: options.bodyLimit,
    requestTimeout: options.requestTimeoutMs,
    connectionTimeout: options.requestTimeoutMs + options.scoreTimeoutMs, // closes idle peers
    forceCloseConnections: 'idle' as const,
    return503OnClosing: false, // kept-alive connections get `Connection: close`
    genReqId: () => crypto.randomUUID(),
    logger: options.logLevel === 'silent' ? false : { level: options.logLevel, stream: process.stderr },
    clientErrorHandler: (error: Error, socket: Parameters<typeof refuseConnection>[1]) => {
      refuseConnection(error, socket, metrics);
    },
    routerOptions: { maxParamLength: 256 },
    ajv: { customOptions: { removeAdditional: false, coerceTypes: 'array' as const } },
  };
  // The interval at which Node checks for requests that were not sent in time.
  const http = {
    connectionsCheckingInterval: Math.min(1000, options.requestTimeoutMs),
    headersTimeout: options.requestTimeoutMs,
    maxHeaderSize: 16_384,
  };
  if (options.tls === undefined) return fastify({ ...shared, http });
  return fastify({ ...shared, https: { ...http, ...options.tls } });
}

function limitBodies(
  scope: FastifyInstance,
  { bodyLimit, bytesInFlight }: ValidatedServer,
  engine: Engine,
): void {
  const bytes = new Budget(bytesInFlight, 'bytes of requests');
  scope.addHook('onRequest', (request, reply, done) => {
    if (request.method === 'POST') engine.refuseWhenFull();
    const chunked = request.headers['transfer-encoding'] !== undefined;
    const announced = chunked ? bodyLimit : Number(request.headers['content-length'] ?? 0);
    if (announced > bodyLimit) {
      done(
        new HttpFailure(
          'ERR_HTTP_TOO_LARGE',
          `Expected at most ${bodyLimit} bytes but the request has ${announced}`,
        ),
      );
      return;
    }
    const release = bytes.take(announced);
    reply.raw.once('close', release);
    done();
  });
}

async function protectedRoutes(
  scope: FastifyInstance,
  options: ValidatedServer,
  engine: Engine,
  metrics: Metrics,
): Promise<void> {
  protect(scope, options);
  await scope.register(rateLimit, {
    max: options.rateLimit,
    timeWindow: '1 minute',
    keyGenerator: callerKey,
    errorResponseBuilder: (_request, { after, max }) =>
      new HttpFailure(
        'ERR_HTTP_RATE_LIMITED',
        `Expected at most ${max} requests per minute; retry in ${after}`,
      ),
  });
  // The event loop does little work here, so a lag of seconds means an overloaded machine. A sample without
  // an iteration of the loop counts as an infinite delay. If samples were shorter than the limit, a stall of
  // one second after the start of a sample would trigger it.
  await scope.register(underPressure, { maxEventLoopDelay: 5000, sampleInterval: 5000, retryAfter: 5 });
  limitBodies(scope, options, engine);
  await scope.register(imageRoutes, { engine, bodyLimit: options.bodyLimit });
  await scope.register(
    (inner, given, done) => {
      inferenceRoutes(inner, given);
      done();
    },
    { engine, version },
  );
  const together = isClusterWorker ? new ClusterMetrics(metrics.registry) : undefined;
  scope.get('/metrics', {
    schema: {
      operationId: 'metrics',
      summary: 'Counters and timings, aggregated over all server processes',
      response: {
        200: content('Prometheus text format', { 'text/plain': Type.String() }),
        ...problems(COMMON_PROBLEMS),
      },
    },
    handler: async (_request, reply) =>
      reply
        .type(metrics.registry.contentType)
        .send(await (together === undefined ? metrics.registry.metrics() : together.read())),
  });
}

async function assemble(
  options: ValidatedServer,
  engine: Engine,
  metrics: Metrics,
): Promise<FastifyInstance> {
  const app = build(options, metrics);
  const refuseMissing = handleFailures(app, engine, metrics);
  app.addHook('onResponse', (request, reply, done) => {
    metrics.answered(
      request.routeOptions.url ?? 'none',
      request.method,
      reply.statusCode,
      reply.elapsedTime / 1000,
    );
    done();
  });
  await app.register(helmet, {
    contentSecurityPolicy: CONTENT_SECURITY_POLICY,
    hsts: options.tls !== undefined,
    referrerPolicy: { policy: 'no-referrer' },
  });
  app.addHook('onSend', (_request, reply, _payload, done) => {
    // Kept-alive connections would delay the shutdown.
    if (engine.draining) void reply.header('connection', 'close');
    void reply.header('permissions-policy', 'camera=(self), microphone=(), geolocation=()');
    done();
  });
  // Clients that send `Expect: 100-continue` get the go-ahead here, after the checks of the headers.
  app.addHook('preParsing', (request, reply, payload, done) => {
    if (request.headers.expect !== undefined) reply.raw.writeContinue();
    done(null, payload);
  });
  if (options.corsOrigins.length > 0) {
    await app.register(cors, {
      origin: [...options.corsOrigins],
      methods: ['GET', 'POST'],
      allowedHeaders: ['authorization', 'content-type'],
    });
  }
  app.addHook('onRequest', refuseMissing);
  await app.register(accepts);
  const bearer = options.tokenDigests.length > 0;
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'diad', version, description: 'Visual anomaly detection with DiAD' },
      ...(bearer
        ? {
            components: { securitySchemes: { token: { type: 'http' as const, scheme: 'bearer' } } },
            security: [{ token: [] }],
          }
        : {}),
    },
  });
  await app.register((scope, _options, done) => {
    healthRoutes(scope, { engine });
    done();
  });
  app.get('/openapi.json', {
    schema: { hide: true },
    handler: (_request, reply) => reply.send(app.swagger()),
  });
  await app.register(staticFiles, {
    root: pageFolder,
    index: 'index.html',
    cacheControl: true,
    maxAge: 0,
    etag: true,
  });
  await app.register((scope) => protectedRoutes(scope, options, engine, metrics));
  return app;
}

/**
 * Starts the HTTP server. It listens (and is live) immediately, and becomes ready when the bundle is loaded
 * and a warm-up image has been scored.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for an invalid option, or for a non-loopback address without a
 *   token; the system error when the address cannot be bound
 */
export async function createServer(options: ServerOptions): Promise<DiadServer> {
  const validated = validateServerOptions(options);
  const metrics = new Metrics();
  const engine = new Engine(validated, metrics, (line) => {
    app.log.error(line);
  });
  const app = await assemble(validated, engine, metrics);
  // By default, Node sends 100 Continue before any header is checked.
  app.server.on('checkContinue', (request, reply) => app.server.emit('request', request, reply));
  await app.listen({ host: validated.host, port: validated.port });
  const ready = engine.start();
  ready.catch(() => undefined); // callers handle the rejection
  const close = async (): Promise<boolean> => {
    engine.drain();
    const closed = app.close().then(() => true);
    const expired = new Promise<boolean>((resolve) => setTimeout(resolve, validated.drainMs, false).unref());
    const drained = await Promise.race([closed, expired]);
    if (!drained) app.server.closeAllConnections();
    await engine.close();
    await closed;
    return drained;
  };
  let closing: Promise<boolean> | undefined;
  const { address, port } = app.server.address() as AddressInfo;
  const scheme = validated.tls === undefined ? 'http' : 'https';
  const url = `${scheme}://${address.includes(':') ? `[${address}]` : address}:${port}`;
  return {
    url,
    port,
    ready,
    lost: engine.lost,
    metrics: () => metrics.registry.metrics(),
    close: () => (closing ??= close()),
  };
}
