// The schemas that validate requests, serialize answers and are published in /openapi.json.
import { Type, type Static, type TSchema } from 'typebox';

const Milliseconds = Type.Number({ minimum: 0, description: 'Milliseconds' });
const closed = { additionalProperties: false } as const;

export const ProblemSchema = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer({ minimum: 400, maximum: 599 }),
    code: Type.String({ description: 'ERR_DIAD_* or ERR_HTTP_*, stable over versions' }),
    detail: Type.String(),
    requestId: Type.Optional(Type.String({ description: "Finds the request in the server's log" })),
    error: Type.Optional(
      Type.String({ description: 'The detail again, where the Open Inference Protocol asks for it' }),
    ),
  },
  { description: 'RFC 9457 problem details' },
);

/** Declares an answer's content types. */
export const content = (description: string, types: Readonly<Record<string, TSchema>>): object => ({
  description,
  content: Object.fromEntries(Object.entries(types).map(([type, schema]) => [type, { schema }])),
});

/** Declares refusals. */
export function problems(statuses: Readonly<Record<number, string>>): Record<string, object> {
  const described = Object.entries(statuses).map(([status, description]) => [
    status,
    content(description, { 'application/problem+json': ProblemSchema }),
  ]);
  return Object.fromEntries(described) as Record<string, object>;
}

/** Refusals of every route that needs a token. */
export const COMMON_PROBLEMS = {
  400: 'Something about the request cannot be understood',
  401: 'No token, or an unknown one',
  403: 'From a page of another site, or to a foreign host name',
  429: 'Too many requests',
  503: 'Not ready, too busy or shutting down; Retry-After says when to come back',
} as const;

/** Refusals of routes that take images. */
export const IMAGE_PROBLEMS = {
  ...COMMON_PROBLEMS,
  406: 'Neither JSON nor PNG is accepted',
  408: 'The request was not sent in time',
  413: 'Too many bytes or pixels',
  415: 'By its first bytes no PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP',
  422: 'The image is damaged',
} as const;

export const Binary = (type: string): TSchema =>
  Type.Unsafe({ contentMediaType: type, description: 'The bytes themselves' });

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

/** An image as body or as form. The declared type of a raw body is not looked at: its first bytes decide. */
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

/** A kind of part; one that the calibration does not know is judged by the global thresholds. */
export const ClassName = Type.String({
  minLength: 1,
  maxLength: 256,
  description: 'Kind of part, for its own thresholds; the global ones hold where it has none, and without it',
});

export const ScoreQuery = Type.Object(
  {
    class: Type.Optional(ClassName),
    seed: Type.Optional(
      Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: 0, description: 'Of the noise' }),
    ),
    map: Type.Optional(Type.Boolean({ default: false, description: 'Put the anomaly map into the JSON' })),
    tile: Type.Optional(
      Type.Integer({
        minimum: 16,
        maximum: 65_536,
        description: 'Score in tiles of this side, pixels, for defects that are small in a large image',
      }),
    ),
    overlap: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 32_768,
        description: 'Pixels that tiles share, at most half of the tile; a quarter of it by default',
      }),
    ),
    regionThreshold: Type.Optional(
      Type.Number({
        minimum: -1e6,
        maximum: 1e6,
        description:
          "Find defect regions where the map lies above it. By default the calibration's, that of the class; where none holds for the image there are no regions",
      }),
    ),
    minArea: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: Number.MAX_SAFE_INTEGER,
        default: 0,
        description: 'Leave smaller regions out, square pixels',
      }),
    ),
  },
  closed,
);
export type ScoreQuery = Static<typeof ScoreQuery>;

export const ReconstructQuery = Type.Object({ seed: ScoreQuery.properties.seed }, closed);
export type ReconstructQuery = Static<typeof ReconstructQuery>;

const Outline = Type.Array(Type.Array(Type.Number(), { minItems: 2, maxItems: 2 }), {
  description: 'Points [x, y], the last joined to the first',
});

const RegionSchema = Type.Object(
  {
    box: Type.Object({ x: Type.Integer(), y: Type.Integer(), width: Type.Integer(), height: Type.Integer() }),
    area: Type.Number({ description: 'Square pixels, holes taken off' }),
    peak: Type.Number({ description: 'Largest map value within' }),
    contour: Outline,
    holes: Type.Array(Outline),
  },
  { description: 'In pixels of the image as it is shown, its stored orientation applied' },
);

const Common = {
  score: Type.Number({ description: 'How anomalous the image is, 0 (as reconstructed) and up' }),
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
    Type.Number({ description: 'Scores above it are anomalous; only of a calibrated bundle' }),
  ),
  anomalous: Type.Optional(Type.Boolean({ description: 'score > threshold' })),
  normalizedScore: Type.Optional(
    Type.Number({
      minimum: 0,
      maximum: 1,
      description: 'The score on a scale with 0.5 at the threshold; only of a calibrated bundle',
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
      description: 'Defects, the largest first; of a bundle calibrated for pixels, or with regionThreshold',
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
