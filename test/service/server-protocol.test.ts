// The Open Inference Protocol, the metrics, and the OpenAPI document.
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Diad, DiadError, type ScoreResult } from '../../lib/index.js';
import type { DiadServer, Scorer } from '../../lib/server/index.js';
import type { ScoreAnswer } from '../../lib/server/schemas.js';
import {
  besideDemoServer,
  closeTo,
  post,
  refused,
  sample,
  stubScorer,
  withServer,
} from '../support/server-support.js';
import { example, withBundleCopy } from '../support/support.js';

interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly datatype: string;
  readonly data: readonly (number | boolean)[];
}

const infer = (server: DiadServer, body: unknown, model = 'tiny'): Promise<Response> =>
  fetch(`${server.url}/v2/models/${model}/infer`, {
    method: 'POST',
    body: typeof body === 'string' ? body : JSON.stringify(body),
    headers: { 'content-type': 'application/json' },
  });

const input = (images: readonly Buffer[]): object => ({
  name: 'image',
  shape: [images.length],
  datatype: 'BYTES',
  data: images.map((image) => image.toString('base64')),
});

describe('Open Inference Protocol', () => {
  let server: DiadServer;
  let diad: Diad;
  besideDemoServer((both) => ({ server, diad } = both));

  it('describes the server and the model', async () => {
    const read = async (route: string): Promise<unknown> => (await fetch(`${server.url}${route}`)).json();
    assert.deepEqual(await read('/v2/health/live'), { live: true });
    assert.deepEqual(await read('/v2/health/ready'), { ready: true });
    assert.deepEqual(await read('/v2/models/tiny/ready'), { ready: true });
    assert.equal(((await read('/v2')) as { name: string }).name, 'diad');
    const { name, digest, imageSize, threshold } = diad.info.bundle;
    assert.deepEqual(await read('/v2/models/tiny'), {
      name,
      versions: [digest],
      platform: 'diad_torchscript',
      inputs: [{ name: 'image', datatype: 'BYTES', shape: [-1] }],
      outputs: [
        { name: 'score', datatype: 'FP64', shape: [-1] },
        ...(threshold === undefined
          ? []
          : [
              { name: 'anomalous', datatype: 'BOOL', shape: [-1] },
              { name: 'normalizedScore', datatype: 'FP64', shape: [-1] },
            ]),
        { name: 'map', datatype: 'FP32', shape: [-1, imageSize, imageSize] },
      ],
    });
  });

  it('returns the requested outputs for several images, equal to diad.score', async () => {
    const images = [await example('gear-good.png'), await example('capsule-crack.jpg')];
    const answer = await infer(server, {
      id: 'line-7',
      parameters: { seed: 5 },
      inputs: [input(images)],
      outputs: [{ name: 'map' }, { name: 'score' }],
    });
    const text = await answer.text();
    assert.equal(answer.status, 200, text);
    const { id, model_name, model_version, outputs } = JSON.parse(text) as {
      id: string;
      model_name: string;
      model_version: string;
      outputs: Tensor[];
    };
    assert.deepEqual([id, model_name, model_version], ['line-7', 'tiny', diad.info.bundle.digest]);
    const expected = await Promise.all(images.map((image) => diad.score(image, { seed: 5 })));
    const [map, score] = outputs;
    const side = diad.info.bundle.imageSize;
    assert.deepEqual([score?.name, score?.shape, score?.datatype], ['score', [2], 'FP64']);
    for (const [i, value] of score!.data.entries()) closeTo(value as number, expected[i]!.score);
    assert.deepEqual([map?.name, map?.shape, map?.datatype], ['map', [2, side, side], 'FP32']);
    const second = map!.data.slice(side * side) as number[];
    assert.equal(second.length, side * side);
    for (const [i, value] of second.entries()) closeTo(value, expected[1]!.map.data[i] ?? NaN);
  });

  it('rejects invalid requests with the member "error"', async () => {
    const good = input([await example('gear-good.png')]);
    const cases: [unknown, number, string][] = [
      ['{', 400, 'ERR_HTTP_BAD_REQUEST'],
      ['', 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [{ ...good, datatype: 'FP32' }] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [{ ...good, name: 'photo' }] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [{ ...good, shape: [2] }] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [{ ...good, data: ['not base64!'] }] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [good], outputs: [{ name: 'depth' }] }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [good], parameters: { seed: -1 } }, 400, 'ERR_HTTP_BAD_REQUEST'],
      [{ inputs: [input([Buffer.from('text and no image')])] }, 415, 'ERR_HTTP_UNSUPPORTED_MEDIA_TYPE'],
      [
        { inputs: [input([(await example('gear-good.png')).subarray(0, 2000)])] },
        422,
        'ERR_DIAD_IMAGE_DECODE',
      ],
    ];
    for (const [body, status, code] of cases) {
      const answer = await infer(server, body);
      const { error, detail } = (await answer.clone().json()) as { error: string; detail: string };
      assert.equal(error, detail);
      await refused(answer, status, code);
    }
    await refused(
      await infer(server, { inputs: [good] }, 'other'),
      404,
      'ERR_HTTP_NOT_FOUND',
      /Model "other" not found/,
    );
    if (diad.info.bundle.threshold === undefined) {
      await refused(
        await infer(server, { inputs: [good], outputs: [{ name: 'anomalous' }] }),
        400,
        'ERR_HTTP_BAD_REQUEST',
        /not calibrated/,
      );
    }
  });

  it('/metrics counts requests, timings, batches and rejections', async () => {
    const text = await (await fetch(`${server.url}/metrics`)).text();
    assert.ok(
      sample(text, 'diad_http_requests_total{route="/v2/models/:name/infer",method="POST",code="200"}') >= 1,
    );
    assert.ok(sample(text, 'diad_rejected_total{code="ERR_HTTP_BAD_REQUEST"}') >= 9);
    assert.equal(sample(text, 'diad_decode_failures_total'), 2);
    const images = sample(text, 'diad_queue_seconds_count');
    assert.ok(images >= 2);
    for (const stage of ['all', 'read', 'resize', 'encode', 'denoise', 'decode', 'extract', 'map']) {
      assert.equal(sample(text, `diad_compute_seconds_count{stage="${stage}"}`), images, stage);
    }
    assert.ok(sample(text, 'diad_batch_size_sum') >= images);
    assert.match(text, /^diad_queue_depth 0$/m);
    assert.match(text, /^process_resident_memory_bytes \d+/m);
    assert.match(text, /^nodejs_eventloop_lag_p99_seconds /m);
  });
});

describe('several images in one request', () => {
  it('answers 413 to more images or pixels than allowed in flight', async () => {
    // 256 x 256 pixels.
    const images = await Promise.all(['gear-good.png', 'gear-good.png', 'gear-good.png'].map(example));
    for (const [options, detail] of [
      [
        { load: () => Promise.resolve(stubScorer({ queueLimit: 2 })) },
        /at most 2 images at once but the request has 3/,
      ],
      [
        { maxPixels: 150_000, pixelsInFlight: 150_000 },
        /at most 150000 pixels at once but the images of the request have 196608/,
      ],
    ] as const) {
      await withServer(options, async (server) => {
        const answer = await infer(server, { inputs: [input(images)] }, 'stub');
        assert.equal(answer.headers.get('retry-after'), null);
        await refused(answer, 413, 'ERR_HTTP_TOO_LARGE', detail);
        assert.equal((await infer(server, { inputs: [input(images.slice(1))] }, 'stub')).status, 200);
      });
    }
  });

  it('aborts the others when one fails, and reports its failure', async () => {
    const [broken, ...others] = await Promise.all(
      ['gear-good.png', 'capsule-crack.jpg', 'gravel-blob.webp'].map(example),
    );
    const [warmUp, slow] = [stubScorer(), stubScorer({ computeMs: 3_600_000 })];
    const score: Scorer['score'] = (image, options) => {
      if (!Buffer.isBuffer(image)) return warmUp.score(image, options);
      return image.equals(broken!)
        ? Promise.reject(new DiadError('ERR_DIAD_IMAGE_DECODE', 'broken'))
        : slow.score(image, options);
    };
    await withServer({ load: () => Promise.resolve({ ...slow, score }) }, async (server) => {
      await refused(
        await infer(server, { inputs: [input([...others, broken!])] }, 'stub'),
        422,
        'ERR_DIAD_IMAGE_DECODE',
        /broken/,
      );
      assert.equal(sample(await server.metrics(), 'diad_decode_failures_total'), 1);
      assert.equal(sample(await server.metrics(), 'diad_pixels_in_flight'), 0);
    });
  });
});

describe('calibrated bundles', () => {
  it('returns threshold and verdict in /v1/score and as the output anomalous', async () => {
    const stub = stubScorer();
    const load = (): Promise<Scorer> =>
      Promise.resolve({
        ...stub,
        info: { bundle: { ...stub.info.bundle, threshold: 10 } } as Scorer['info'],
        score: async (image, options) => ({
          ...(await stub.score(image, options)),
          threshold: 10,
          anomalous: true,
          normalizedScore: 0.75,
        }),
      });
    await withServer({ load }, async (server) => {
      const image = await example('gear-good.png');
      const scored = (await (
        await fetch(`${server.url}/v1/score`, { method: 'POST', body: Uint8Array.from(image) })
      ).json()) as Record<string, unknown>;
      assert.deepEqual(
        [scored['threshold'], scored['anomalous'], scored['normalizedScore']],
        [10, true, 0.75],
      );
      const { outputs } = (await (await infer(server, { inputs: [input([image])] }, 'stub')).json()) as {
        outputs: Tensor[];
      };
      assert.deepEqual(outputs, [
        { name: 'score', shape: [1], datatype: 'FP64', data: [image.length] },
        { name: 'anomalous', shape: [1], datatype: 'BOOL', data: [true] },
        { name: 'normalizedScore', shape: [1], datatype: 'FP64', data: [0.75] },
      ]);
      const { outputs: described } = (await (await fetch(`${server.url}/v2/models/stub`)).json()) as {
        outputs: Tensor[];
      };
      assert.deepEqual(
        described.map(({ name, datatype }) => [name, datatype]),
        [...outputs.map(({ name, datatype }) => [name, datatype]), ['map', 'FP32']],
      );
    });
  });

  it('uses the thresholds of the class, for the map too; the global ones for an unknown class', () =>
    withBundleCopy(async (bundle) => {
      const gear = { threshold: 0.001, pixelThreshold: 1e-4, scale: 2 };
      const calibration = {
        threshold: 1000,
        pixelThreshold: 1000,
        classes: { gear, bolt: { threshold: 0.5 } },
      };
      await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify(calibration));
      await withServer({ load: () => Diad.load(bundle, { threads: 1 }) }, async (server) => {
        const image = await example('circuit_board-missing_part.png');
        for (const [className, threshold, regions] of [
          [undefined, 1000, 'none'],
          ['unknown', 1000, 'none'],
          ['gear', 0.001, 'some'],
          ['bolt', 0.5, undefined], // calibrated without pixel threshold
        ] as const) {
          const query = className === undefined ? '' : `?class=${className}`;
          const answer = (await (await post(server, `/v1/score${query}`, image)).json()) as ScoreAnswer;
          const { score } = answer;
          assert.deepEqual([answer.threshold, answer.anomalous], [threshold, score > threshold]);
          const normalized =
            className === 'gear' ? 1 / (1 + Math.exp((0.001 - score) / 2)) : score / (score + threshold);
          closeTo(answer.normalizedScore!, normalized);
          assert.equal(
            answer.regions === undefined ? undefined : answer.regions.length > 0 ? 'some' : 'none',
            regions,
          );
          const parameters = className === undefined ? {} : { class: className };
          const { outputs } = (await (
            await infer(server, { parameters, inputs: [input([image])] })
          ).json()) as { outputs: Tensor[] };
          assert.deepEqual(
            outputs.map(({ name, data }) => [name, data.length]),
            [
              ['score', 1],
              ['anomalous', 1],
              ['normalizedScore', 1],
            ],
          );
          assert.equal(outputs[1]!.data[0], score > threshold);
          closeTo(outputs[2]!.data[0] as number, normalized);
        }
        const tiled = (await (
          await post(server, '/v1/score?class=gear&tile=200', image)
        ).json()) as ScoreAnswer;
        assert.equal(tiled.threshold, 0.001);
        await refused(await post(server, '/v1/score?class=', image), 400, 'ERR_HTTP_BAD_REQUEST', /class/);
        await refused(
          await post(server, '/v1/score?class=%00', image),
          400,
          'ERR_DIAD_INVALID_ARGUMENT',
          /className/,
        );
        await refused(
          await infer(server, { parameters: { class: '' }, inputs: [input([image])] }),
          400,
          'ERR_HTTP_BAD_REQUEST',
          /class/,
        );
      });
    }));
});

describe('bundles calibrated for tiles', () => {
  it('give no verdict or regions for whole images, as in the metadata; both for matching tiles', () =>
    withBundleCopy(async (bundle) => {
      const diad = await Diad.load(bundle, { threads: 1 });
      const { info } = diad;
      await diad.close();
      const calibration = {
        threshold: 0.001,
        classes: { gear: { threshold: 0.002, pixelThreshold: 1e-4 } },
        model: info.bundle.digest,
        precision: info.precision,
        tile: { size: 200, overlap: 50 },
      };
      await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify(calibration));
      await withServer({ load: () => Diad.load(bundle, { threads: 1 }) }, async (server) => {
        const image = await example('circuit_board-missing_part.png');
        const inputs = [input([image])];
        const { outputs } = (await (await infer(server, { inputs })).json()) as { outputs: Tensor[] };
        const namesOf = (tensors: readonly Tensor[]): string[] => tensors.map(({ name }) => name);
        assert.deepEqual(namesOf(outputs), ['score']);
        const described = (await (await fetch(`${server.url}/v2/models/tiny`)).json()) as {
          outputs: Tensor[];
        };
        assert.deepEqual(namesOf(described.outputs), ['score', 'map']);
        const asked = await infer(server, { inputs, outputs: [{ name: 'anomalous' }] });
        await refused(
          asked,
          400,
          'ERR_HTTP_BAD_REQUEST',
          /Output "anomalous" is not available: the model is not calibrated for whole images/,
        );
        for (const [query, threshold, regions] of [
          ['', undefined, undefined],
          ['?class=gear', undefined, undefined],
          ['?tile=200&overlap=50', 0.001, undefined], // calibrated without pixel threshold
          ['?tile=200&overlap=50&class=gear', 0.002, 'some'],
          ['?tile=100&class=gear', undefined, undefined],
        ] as const) {
          const answer = (await (await post(server, `/v1/score${query}`, image)).json()) as ScoreAnswer;
          const found =
            answer.regions === undefined ? undefined : answer.regions.length > 0 ? 'some' : 'none';
          assert.deepEqual(
            [answer.threshold, answer.anomalous, found],
            [threshold, threshold && answer.score > threshold, regions],
            query,
          );
        }
      });
    }));
});

describe('bundles calibrated for pixels', () => {
  it('return regions in /v1/score by default, at the pixel threshold of the calibration', () => {
    const stub = stubScorer();
    const region = { box: { x: 1, y: 2, width: 3, height: 4 }, area: 9.5, peak: 2, contour: [[1, 2], [4, 2], [4, 6]], holes: [] }; // prettier-ignore
    const asked: unknown[] = [];
    const regions = (options: unknown): unknown => {
      asked.push(options);
      return [region];
    };
    const load = (): Promise<Scorer> =>
      Promise.resolve({
        ...stub,
        score: async (image, options) => ({
          ...(await stub.score(image, options)),
          map: { regions, pixelThreshold: 0.7 } as unknown as ScoreResult['map'],
        }),
      });
    return withServer({ load }, async (server) => {
      const image = Uint8Array.from(await example('gear-good.png'));
      for (const query of ['', '?regionThreshold=0.2&minArea=5']) {
        const answer = await fetch(`${server.url}/v1/score${query}`, { method: 'POST', body: image });
        assert.deepEqual(((await answer.json()) as { regions: unknown }).regions, [region]);
      }
      assert.deepEqual(asked, [
        { threshold: 0.7, minArea: 0 }, // pixel threshold of the class
        { threshold: 0.2, minArea: 5 },
      ]);
    });
  });
});

describe('/openapi.json', () => {
  it('is OpenAPI 3.1 and describes every route with the validating schemas', () =>
    withServer({ tokens: ['a-token-of-twenty-four-c'] }, async (server) => {
      const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as {
        openapi: string;
        paths: Record<
          string,
          Record<
            string,
            { responses: object; parameters?: { name: string; schema: object }[]; security?: unknown[] }
          >
        >;
        components: { securitySchemes: object };
      };
      assert.match(document.openapi, /^3\.1\./);
      assert.deepEqual(Object.keys(document.paths).sort(), [
        '/metrics',
        '/v1/reconstruct',
        '/v1/score',
        '/v2',
        '/v2/health/live',
        '/v2/health/ready',
        '/v2/models/{name}',
        '/v2/models/{name}/infer',
        '/v2/models/{name}/ready',
      ]);
      const score = document.paths['/v1/score']!['post']!;
      assert.deepEqual(
        ['200', '400', '401', '403', '406', '408', '413', '415', '422', '429', '503'],
        Object.keys(score.responses).sort(),
      );
      assert.deepEqual(score.parameters?.map(({ name }) => name).sort(), [
        'class',
        'map',
        'minArea',
        'overlap',
        'regionThreshold',
        'seed',
        'tile',
      ]);
      const seed = score.parameters?.find(({ name }) => name === 'seed');
      assert.deepEqual(seed?.schema, {
        type: 'integer',
        minimum: 0,
        maximum: Number.MAX_SAFE_INTEGER,
        default: 0,
      });
      assert.deepEqual(Object.keys(document.paths['/metrics']!['get']!.responses).sort(), [
        '200',
        '400',
        '401',
        '403',
        '429',
        '503',
      ]);
      assert.deepEqual(document.paths['/v2/health/live']!['get']!.security, []);
      assert.deepEqual(document.components.securitySchemes, { token: { type: 'http', scheme: 'bearer' } });
    }));
});
