// POST /v1/score and /v1/reconstruct.
import multipart from '@fastify/multipart';
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { ReconstructResult, ScoreResult } from '../diad.js';
import { codeOf } from '../errors.js';
import type { Point } from '../scoring/regions.js';
import { ClientGone } from './metrics.js';
import type { Engine, Image } from './engine.js';
import { HttpFailure } from './problem.js';
import {
  Binary,
  content,
  imageBody,
  IMAGE_PROBLEMS,
  problems,
  ReconstructAnswer,
  ReconstructQuery,
  ScoreAnswer,
  ScoreQuery,
} from './schemas.js';

/** Returns a signal that aborts when the client disconnects before the answer is sent. */
export function clientSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort(new ClientGone('The client closed the connection'));
  });
  return gone.signal;
}

function sentImage(request: FastifyRequest): unknown {
  const { body } = request;
  return request.isMultipart() ? (body as { image?: unknown } | undefined)?.image : body;
}

function wanted(request: FastifyRequest): 'json' | 'png' {
  switch (request.accepts().type(['application/json', 'image/png'])) {
    case 'application/json':
      return 'json';
    case 'image/png':
      return 'png';
    default:
      throw new HttpFailure(
        'ERR_HTTP_NOT_ACCEPTABLE',
        'The response is application/json or image/png but the Accept header allows neither',
      );
  }
}

/** Finds defect regions at the requested threshold, else at the map's; no regions without a threshold. */
function regionsOf(
  { map }: ScoreResult,
  { regionThreshold, minArea = 0 }: ScoreQuery,
): Pick<ScoreAnswer, 'regions'> {
  const threshold = regionThreshold ?? map.pixelThreshold;
  if (threshold === undefined) return {};
  const found = map.regions({ threshold, minArea });
  const points = (ring: readonly Point[]): number[][] => ring.map(([x, y]) => [x, y]);
  return {
    regions: found.map(({ contour, holes, ...rest }) => ({
      ...rest,
      contour: points(contour),
      holes: holes.map(points),
    })),
  };
}

function common(
  engine: Engine,
  result: ScoreResult | ReconstructResult,
  { format, width, height }: Image,
): Omit<ScoreAnswer, 'map' | 'regions'> {
  const { name, digest } = engine.bundle!; // loaded, because there is a result
  const { decodeImageMs, ...stages } = result.timings;
  return {
    score: result.score,
    seed: Number(result.seed),
    model: { name, digest },
    image: { format, width, height },
    timings: { readMs: decodeImageMs, ...stages },
  };
}

/** Encodes a map as base64 of little-endian floats. */
export function encodeMap(map: ScoreResult['map']): { width: number; height: number; data: string } {
  const { width, height, data } = map;
  return {
    width,
    height,
    data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('base64'),
  };
}

/** Registers both routes in a separate scope where any body is an image. */
export async function imageRoutes(
  scope: FastifyInstance,
  { engine, bodyLimit }: { engine: Engine; bodyLimit: number },
): Promise<void> {
  scope.removeAllContentTypeParsers();
  await scope.register(multipart, {
    attachFieldsToBody: 'keyValues',
    limits: { files: 1, fields: 0, parts: 2, fileSize: bodyLimit, headerPairs: 20 },
  });
  // Errors of a truncated form or missing boundary have no status. They occur before the handler; later
  // errors are not the client's fault.
  const read = new WeakSet<FastifyRequest>();
  scope.addHook('preHandler', (request, _reply, done) => {
    read.add(request);
    done();
  });
  scope.setErrorHandler((error: FastifyError, request) => {
    if (
      request.isMultipart() &&
      !read.has(request) &&
      error.statusCode === undefined &&
      codeOf(error)?.startsWith('ERR_') !== true
    ) {
      throw new HttpFailure('ERR_HTTP_BAD_REQUEST', `The multipart form cannot be read: ${error.message}`, {
        cause: error,
      });
    }
    throw error;
  });
  scope.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => {
    done(null, body);
  });

  scope.post<{ Querystring: ScoreQuery }>('/v1/score', {
    schema: {
      operationId: 'score',
      summary: 'Score an image and locate defects',
      description:
        'Returns JSON or, depending on the Accept header, the heat map over the image as PNG. ' +
        'The options apply to raw bodies and forms.',
      querystring: ScoreQuery,
      body: imageBody,
      response: {
        200: content('The score', { 'application/json': ScoreAnswer, 'image/png': Binary('image/png') }),
        ...problems(IMAGE_PROBLEMS),
      },
    },
    handler: async (request, reply) => {
      const as = wanted(request);
      const image = await engine.admit(sentImage(request));
      const { seed = 0, tile, overlap, class: className } = request.query;
      if (overlap !== undefined && tile === undefined) {
        throw new HttpFailure('ERR_HTTP_BAD_REQUEST', 'Expected the size of the tiles, tile=, with overlap=');
      }
      const cut =
        tile === undefined ? {} : { tile: { size: tile, ...(overlap === undefined ? {} : { overlap }) } };
      const result = await engine.score(image, { seed, className, signal: clientSignal(reply), ...cut });
      if (as === 'png') return reply.type('image/png').send(await result.map.toHeatmap());
      const { threshold, anomalous, normalizedScore, className: judgedBy, evidence } = result;
      const answer: ScoreAnswer = {
        ...common(engine, result, image),
        ...(threshold === undefined
          ? {}
          : { threshold, anomalous: anomalous ?? false, normalizedScore: normalizedScore ?? 0 }),
        ...(judgedBy === undefined ? {} : { className: judgedBy }),
        ...(evidence === undefined ? {} : { evidence }),
        ...regionsOf(result, request.query),
        ...(request.query.map === true ? { map: encodeMap(result.map) } : {}),
      };
      return reply.type('application/json').send(answer);
    },
  });

  scope.post<{ Querystring: ReconstructQuery }>('/v1/reconstruct', {
    schema: {
      operationId: 'reconstruct',
      summary: 'Reconstruct an image without defects',
      description: 'Returns JSON with the PNG in base64 or, depending on the Accept header, the PNG.',
      querystring: ReconstructQuery,
      body: imageBody,
      response: {
        200: content('The reconstruction', {
          'application/json': ReconstructAnswer,
          'image/png': Binary('image/png'),
        }),
        ...problems(IMAGE_PROBLEMS),
      },
    },
    handler: async (request, reply) => {
      const as = wanted(request);
      const image = await engine.admit(sentImage(request));
      const result = await engine.reconstruct(image, {
        seed: request.query.seed ?? 0,
        signal: clientSignal(reply),
      });
      if (as === 'png') return reply.type('image/png').send(result.image);
      const { width, height, image: png } = result;
      const answer: ReconstructAnswer = {
        ...common(engine, result, image),
        width,
        height,
        image: png.toString('base64'),
      };
      return reply.type('application/json').send(answer);
    },
  });
}
