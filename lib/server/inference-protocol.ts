// Routes of the Open Inference Protocol (version 2, REST) under /v2, used by KServe, Triton and other
// platforms.
import type { FastifyInstance } from 'fastify';
import { Type, type Static } from 'typebox';
import type { ScoreResult } from '../diad.js';
import type { Engine } from './engine.js';
import { clientSignal } from './images.js';
import { HttpFailure } from './problem.js';
import { ClassName, COMMON_PROBLEMS, content, IMAGE_PROBLEMS, problems } from './schemas.js';

const MOST_IMAGES = 32;

const Live = Type.Object({ live: Type.Boolean() });
const Ready = Type.Object({ ready: Type.Boolean() });
const ServerMetadata = Type.Object({
  name: Type.String(),
  version: Type.String(),
  extensions: Type.Array(Type.String()),
});
const TensorMetadata = Type.Object({
  name: Type.String(),
  datatype: Type.String(),
  shape: Type.Array(Type.Integer()),
});
const ModelMetadata = Type.Object({
  name: Type.String(),
  versions: Type.Array(Type.String()),
  platform: Type.String(),
  inputs: Type.Array(TensorMetadata),
  outputs: Type.Array(TensorMetadata),
});
const Parameters = Type.Object({
  class: Type.Optional(ClassName),
  seed: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })),
});
const InferRequest = Type.Object({
  id: Type.Optional(Type.String({ maxLength: 256 })),
  parameters: Type.Optional(Parameters),
  inputs: Type.Array(
    Type.Object({
      name: Type.Literal('image'),
      shape: Type.Array(Type.Integer({ minimum: 1, maximum: MOST_IMAGES }), { minItems: 1, maxItems: 1 }),
      datatype: Type.Literal('BYTES'),
      parameters: Type.Optional(Type.Object({})),
      data: Type.Array(
        Type.String({ minLength: 1, contentEncoding: 'base64', description: 'An encoded image' }),
        {
          minItems: 1,
          maxItems: MOST_IMAGES,
        },
      ),
    }),
    { minItems: 1, maxItems: 1 },
  ),
  outputs: Type.Optional(
    Type.Array(
      Type.Object({
        name: Type.Union([
          Type.Literal('score'),
          Type.Literal('anomalous'),
          Type.Literal('normalizedScore'),
          Type.Literal('map'),
        ]),
        parameters: Type.Optional(Type.Object({})),
      }),
    ),
  ),
});
type InferRequest = Static<typeof InferRequest>;
const InferAnswer = Type.Object({
  id: Type.Optional(Type.String()),
  model_name: Type.String(),
  model_version: Type.String(),
  outputs: Type.Array(
    Type.Object({
      name: Type.String(),
      shape: Type.Array(Type.Integer()),
      datatype: Type.String(),
      data: Type.Array(Type.Union([Type.Number(), Type.Boolean()])),
    }),
  ),
});
type InferAnswer = Static<typeof InferAnswer>;

const ModelName = Type.Object({ name: Type.String({ description: "The bundle's name" }) });
type ModelName = Static<typeof ModelName>;

/** Decodes base64 strictly. Buffer.from would skip invalid characters. */
function decodeBase64(text: string): Buffer {
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(text) || text.length % 4 !== 0) {
    throw new HttpFailure('ERR_HTTP_BAD_REQUEST', 'Expected base64 in the data of the input "image"');
  }
  return Buffer.from(text, 'base64');
}

/** Additional outputs of a calibrated model. */
const CALIBRATED = [
  { name: 'anomalous', datatype: 'BOOL' },
  { name: 'normalizedScore', datatype: 'FP64' },
] as const;

function outputsOf(results: readonly ScoreResult[], names: readonly string[]): InferAnswer['outputs'] {
  const count = results.length;
  const calibrated = ({ name, datatype }: (typeof CALIBRATED)[number]): InferAnswer['outputs'][number] => {
    const data = results.map(({ [name]: value }) => {
      if (value === undefined) {
        throw new HttpFailure(
          'ERR_HTTP_BAD_REQUEST',
          `Output "${name}" is not available: the model is not calibrated for whole images`,
        );
      }
      return value;
    });
    return { name, shape: [count], datatype, data };
  };
  const all: Record<string, () => InferAnswer['outputs'][number]> = {
    score: () => ({
      name: 'score',
      shape: [count],
      datatype: 'FP64',
      data: results.map(({ score }) => score),
    }),
    ...Object.fromEntries(CALIBRATED.map((one) => [one.name, () => calibrated(one)])),
    map: () => {
      const { width, height } = results[0]!.map;
      return {
        name: 'map',
        shape: [count, height, width],
        datatype: 'FP32',
        data: results.flatMap(({ map }) => [...map.data]),
      };
    },
  };
  return names.map((name) => all[name]!());
}

/** Registers /v2/health, which needs no token because probes of a platform have none. */
export function healthRoutes(scope: FastifyInstance, { engine }: { engine: Engine }): void {
  scope.get('/v2/health/live', {
    schema: {
      operationId: 'live',
      summary: 'Whether the process is alive',
      security: [],
      response: {
        200: content('Alive', { 'application/json': Live }),
        503: content('Needs a restart', { 'application/json': Live }),
      },
    },
    handler: (_request, reply) => reply.status(engine.live ? 200 : 503).send({ live: engine.live }),
  });
  const answers = {
    200: content('Ready', { 'application/json': Ready }),
    503: content('Not ready', { 'application/json': Ready }),
  };
  scope.get('/v2/health/ready', {
    schema: {
      operationId: 'ready',
      summary: 'Whether images can be scored',
      security: [],
      response: answers,
    },
    handler: (_request, reply) => reply.status(engine.ready ? 200 : 503).send({ ready: engine.ready }),
  });
}

/** Registers the other routes of /v2. */
export function inferenceRoutes(
  scope: FastifyInstance,
  { engine, version }: { engine: Engine; version: string },
): void {
  const named = (
    name: string,
  ): Required<Pick<ReturnType<typeof model>, 'name' | 'digest'>> & ReturnType<typeof model> => {
    const found = model();
    if (found.name !== name)
      throw new HttpFailure(
        'ERR_HTTP_NOT_FOUND',
        `Model "${name.slice(0, 100)}" not found; this server has "${found.name}"`,
      );
    return found;
  };
  const model = (): Engine['scorer']['info']['bundle'] => engine.scorer.info.bundle;
  const notFound = { 404: 'No model with that name' };

  scope.get('/v2', {
    schema: {
      operationId: 'serverMetadata',
      summary: 'Metadata of the server',
      response: {
        200: content('Metadata', { 'application/json': ServerMetadata }),
        ...problems(COMMON_PROBLEMS),
      },
    },
    handler: () => ({ name: 'diad', version, extensions: [] }),
  });
  scope.get<{ Params: ModelName }>('/v2/models/:name', {
    schema: {
      operationId: 'modelMetadata',
      summary: 'Inputs and outputs of the model',
      params: ModelName,
      response: {
        200: content('Metadata', { 'application/json': ModelMetadata }),
        ...problems({ ...COMMON_PROBLEMS, ...notFound }),
      },
    },
    handler: ({ params }) => {
      const { name, digest, imageSize, threshold, calibratedTile } = named(params.name);
      const calibrated = threshold !== undefined && calibratedTile === undefined;
      const outputs = [
        { name: 'score', datatype: 'FP64', shape: [-1] },
        ...(calibrated ? CALIBRATED.map((one) => ({ ...one, shape: [-1] })) : []),
        { name: 'map', datatype: 'FP32', shape: [-1, imageSize, imageSize] },
      ];
      return {
        name,
        versions: [digest],
        platform: 'diad_torchscript',
        inputs: [{ name: 'image', datatype: 'BYTES', shape: [-1] }],
        outputs,
      };
    },
  });
  scope.get<{ Params: ModelName }>('/v2/models/:name/ready', {
    schema: {
      operationId: 'modelReady',
      summary: 'Whether the model can score images',
      params: ModelName,
      response: {
        200: content('Ready', { 'application/json': Ready }),
        ...problems({ ...COMMON_PROBLEMS, ...notFound }),
      },
    },
    handler: ({ params }) => {
      named(params.name);
      return { ready: engine.ready };
    },
  });
  scope.post<{ Params: ModelName; Body: InferRequest }>('/v2/models/:name/infer', {
    schema: {
      operationId: 'infer',
      summary: 'Score images',
      description:
        'Outputs: score (FP64), map (FP32) and, if the model is calibrated for whole images, ' +
        'anomalous (BOOL) and normalizedScore (FP64). Without "outputs", returns all except the map. ' +
        'The parameters apply to all images.',
      params: ModelName,
      body: { content: { 'application/json': { schema: InferRequest } } },
      response: {
        200: content('Tensors', { 'application/json': InferAnswer }),
        ...problems({ ...IMAGE_PROBLEMS, ...notFound }),
      },
    },
    handler: async ({ params, body }, reply) => {
      const { name, digest } = named(params.name);
      if (typeof body !== 'object' || body === null)
        throw new HttpFailure('ERR_HTTP_BAD_REQUEST', 'Expected a JSON object as the body');
      const [input] = body.inputs;
      const { data, shape } = input!;
      if (shape[0] !== data.length) {
        throw new HttpFailure(
          'ERR_HTTP_BAD_REQUEST',
          `Expected ${shape[0]!} images as in the shape of the input "image" but received ${data.length}`,
        );
      }
      const images = await engine.admitAll(data.map(decodeBase64));
      const { seed = 0, class: className } = body.parameters ?? {};
      const call = { seed, className, signal: clientSignal(reply) };
      const results = await engine.scoreAll(images, call);
      // Only the results show whether the calibration applies, because it may be for tiles.
      const judged = results.every(({ anomalous }) => anomalous !== undefined);
      const wanted = body.outputs?.map((output) => output.name) ?? [
        'score',
        ...(judged ? CALIBRATED.map((one) => one.name) : []),
      ];
      return {
        ...(body.id === undefined ? {} : { id: body.id }),
        model_name: name,
        model_version: digest,
        outputs: outputsOf(results, wanted),
      };
    },
  });
}
