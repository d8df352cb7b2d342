// Schemas that validate requests, serialize responses and are published in /openapi.json.
import { Type, type Static, type TSchema } from 'typebox';

const Milliseconds = Type.Number({ minimum: 0, description: 'Milliseconds' });
const closed = { additionalProperties: false } as const;

export const ProblemSchema = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer({ minimum: 400, maximum: 599 }),
    code: Type.String({ description: 'ERR_DIAD_* or ERR_HTTP_*, stable across versions' }),
    detail: Type.String(),
    requestId: Type.Optional(Type.String({ description: "Identifies the request in the server's log" })),
    error: Type.Optional(
      Type.String({ description: 'Same as detail; required by the Open Inference Protocol' }),
    ),
  },
  { description: 'RFC 9457 problem details' },
);

/** Declares the content types of a response. */
export const content = (description: string, types: Readonly<Record<string, TSchema>>): object => ({
  description,
  content: Object.fromEntries(Object.entries(types).map(([type, schema]) => [type, { schema }])),
});

/** Declares error responses. */
export function problems(statuses: Readonly<Record<number, string>>): Record<string, object> {
  const described = Object.entries(statuses).map(([status, description]) => [
    status,
    content(description, { 'application/problem+json': ProblemSchema }),
  ]);
  return Object.fromEntries(described) as Record<string, object>;
}

/** Error responses of every route that needs a token. */
export const COMMON_PROBLEMS = {
  400: 'Invalid request',
  401: 'Missing or unknown token',
  403: 'Request from a page of another site, or to a foreign host name',
  429: 'Too many requests',
  503: 'Not ready, too busy or shutting down; retry after the time in Retry-After',
} as const;

/** Error responses of routes that take images. */
export const IMAGE_PROBLEMS = {
  ...COMMON_PROBLEMS,
  406: 'Neither JSON nor PNG is accepted',
  408: 'The request was not sent in time',
  413: 'Too many bytes or pixels',
  415: 'Not a PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP, judging by the first bytes',
  422: 'The image is damaged',
} as const;

export const Binary = (type: string): TSchema =>
  Type.Unsafe({ contentMediaType: type, description: 'Raw bytes' });

const IMAGE_TYPES = [
  'image/png',
  'image/jpeg',
  'image/webp',
  'image/tiff',
  'image/avif',
  'image/gif',
  'image/bmp',
  'application/octet-stream',
];

/**
 * An image as body or form. The declared type of a raw body is ignored; its first bytes determine the format.
 */
export const imageBody = {
  content: {
    ...Object.fromEntries(IMAGE_TYPES.map((type) => [type, { schema: Binary(type) }])),
    'multipart/form-data': {
      schema: Type.Object({
        image: Type.Unsafe({
          contentMediaType: 'application/octet-stream',
          description: 'The image as a file',
        }),
      }),
    },
  },
};

/** Class of a part. Unknown classes use the global thresholds. */
export const ClassName = Type.String({
  minLength: 1,
  maxLength: 256,
  description: 'Class whose thresholds to use; default, and for classes without thresholds: the global ones',
});

export const ScoreQuery = Type.Object(
  {
    class: Type.Optional(ClassName),
    seed: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: Number.MAX_SAFE_INTEGER,
        default: 0,
        description: 'Seed of the noise',
      }),
    ),
    map: Type.Optional(Type.Boolean({ default: false, description: 'Include the anomaly map in the JSON' })),
    tile: Type.Optional(
      Type.Integer({
        minimum: 16,
        maximum: 65_536,
        description: 'Score in tiles of this size, pixels, for small defects in large images',
      }),
    ),
    overlap: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 32_768,
        description: 'Overlap of tiles, pixels, at most half of the tile; default: a quarter',
      }),
    ),
    regionThreshold: Type.Optional(
      Type.Number({
        minimum: -1e6,
        maximum: 1e6,
        description:
          'Find defect regions where the map is above it. Default: the pixel threshold of the calibration ' +
          'for the class; without one, no regions are returned',
      }),
    ),
    minArea: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: Number.MAX_SAFE_INTEGER,
        default: 0,
        description: 'Smallest area of a region, square pixels',
      }),
    ),
  },
  closed,
);
export type ScoreQuery = Static<typeof ScoreQuery>;

export const ReconstructQuery = Type.Object({ seed: ScoreQuery.properties.seed }, closed);
export type ReconstructQuery = Static<typeof ReconstructQuery>;

const Outline = Type.Array(Type.Array(Type.Number(), { minItems: 2, maxItems: 2 }), {
  description: 'Points [x, y]; the last connects to the first',
});

const RegionSchema = Type.Object(
  {
    box: Type.Object({ x: Type.Integer(), y: Type.Integer(), width: Type.Integer(), height: Type.Integer() }),
    area: Type.Number({ description: 'Square pixels, without holes' }),
    peak: Type.Number({ description: 'Largest map value inside' }),
    contour: Outline,
    holes: Type.Array(Outline),
  },
  { description: 'In pixels of the displayed image, after applying its stored orientation' },
);

const Common = {
  score: Type.Number({ description: 'Anomaly score; 0 means identical to the reconstruction' }),
  seed: Type.Integer({ minimum: 0 }),
  model: Type.Object({
    name: Type.String(),
    digest: Type.String({ description: "SHA-256 of the bundle's manifest" }),
  }),
  image: Type.Object(
    { format: Type.String(), width: Type.Integer(), height: Type.Integer() },
    { description: 'As stored' },
  ),
  timings: Type.Object({
    readMs: Milliseconds,
    queueMs: Milliseconds,
    computeMs: Milliseconds,
    resizeMs: Milliseconds,
    encodeMs: Milliseconds,
    denoiseMs: Milliseconds,
    decodeMs: Milliseconds,
    extractMs: Milliseconds,
    mapMs: Milliseconds,
  }),
};

export const ScoreAnswer = Type.Object({
  ...Common,
  threshold: Type.Optional(
    Type.Number({ description: 'Scores above it are anomalous; only with a calibrated bundle' }),
  ),
  anomalous: Type.Optional(Type.Boolean({ description: 'score > threshold' })),
  normalizedScore: Type.Optional(
    Type.Number({
      minimum: 0,
      maximum: 1,
      description: 'Score on a scale of 0 to 1 with 0.5 at the threshold; only with a calibrated bundle',
    }),
  ),
  className: Type.Optional(
    Type.String({
      description:
        'Class whose normal images judged the image: the one asked for, otherwise the most similar',
    }),
  ),
  evidence: Type.Optional(
    Type.Object(
      { reconstruction: Type.Number(), memory: Type.Number() },
      { description: 'Scores of the two kinds of evidence; only of a bundle that learned normal images' },
    ),
  ),
  regions: Type.Optional(
    Type.Array(RegionSchema, {
      description: 'Defect regions, largest first; only with a pixel threshold, or with regionThreshold',
    }),
  ),
  map: Type.Optional(
    Type.Object({
      width: Type.Integer(),
      height: Type.Integer(),
      data: Type.String({ contentEncoding: 'base64', description: 'float32, little-endian, row-major' }),
    }),
  ),
});
export type ScoreAnswer = Static<typeof ScoreAnswer>;

export const ReconstructAnswer = Type.Object({
  ...Common,
  width: Type.Integer(),
  height: Type.Integer(),
  image: Type.String({ contentEncoding: 'base64', contentMediaType: 'image/png' }),
});
export type ReconstructAnswer = Static<typeof ReconstructAnswer>;
