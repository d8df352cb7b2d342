// diad serve: answers are those of the library, and every refusal has its status and code.
import assert from 'node:assert/strict';
import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import sharp from 'sharp';
import { Diad, DiadError } from '../lib/index.js';
import { createServer, type DiadServer, type Scorer, type ServerOptions } from '../lib/server/index.js';
import { Pacer } from '../lib/server/pacer.js';
import type { ReconstructAnswer, ScoreAnswer } from '../lib/server/schemas.js';
import {
  besideDemoServer,
  closeTo,
  converse,
  form,
  pngBomb,
  post,
  rawRequest,
  refused,
  sample,
  stubScorer,
  withServer,
} from './server-support.js';
import { example, rejects } from './support.js';

const TOKEN = 'a-token-of-twenty-four-c';

describe('server: answers', () => {
  let server: DiadServer;
  let diad: Diad;
  besideDemoServer((both) => ({ server, diad } = both));

  it('/v1/score gives what diad.score gives, raw or as a form', async () => {
    for (const [name, format] of [
      ['capsule-crack.jpg', 'jpeg'],
      ['gravel-blob.webp', 'webp'],
    ] as const) {
      const bytes = await example(name);
      const expected = await diad.score(bytes, { seed: 3 });
      for (const body of [bytes, form(bytes)]) {
        const answer = await post(server, '/v1/score?seed=3&map=true', body);
        assert.equal(answer.status, 200);
        const { score, seed, map, model, picture, timings, ...rest } = (await answer.json()) as ScoreAnswer;
        closeTo(score, expected.score);
        assert.equal(seed, 3);
        assert.equal(model.digest, diad.info.bundle.digest);
        assert.equal(picture.format, format);
        assert.ok(timings.computeMs > 0 && timings.queueMs >= 0);
        const sent = Buffer.from(map!.data, 'base64');
        const values = new Float32Array(sent.buffer, sent.byteOffset, map!.width * map!.height);
        for (const [i, value] of values.entries()) closeTo(value, expected.map.data[i] ?? NaN);
        const verdict = expected.threshold === undefined ? {} : { threshold: expected.threshold, anomalous: expected.anomalous };
        assert.deepEqual(rest, verdict);
      }
    }
  });

  it('a seed changes the score; without map=true there is no map', async () => {
    const bytes = await example('gear-good.png');
    const [one, two] = await Promise.all(
      [1, 2].map(async (seed) => (await (await post(server, `/v1/score?seed=${seed}`, bytes)).json()) as ScoreAnswer),
    );
    assert.notEqual(one!.score, two!.score);
    assert.equal(one!.map, undefined);
  });

  it('tile= and overlap= score in tiles as the library does, raw or as a form; regionThreshold= finds its regions', async () => {
    const bytes = await example('circuit_board-missing_part.png');
    const tile = { size: 200, overlap: 40 };
    const expected = await diad.score(bytes, { tile });
    const threshold = expected.score / 2;
    const regions = expected.map.regions({ threshold, minArea: 10 });
    assert.ok(regions.length > 0);
    for (const body of [bytes, form(bytes)]) {
      const query = `tile=200&overlap=40&map=true&regionThreshold=${threshold}&minArea=10`;
      const answer = (await (await post(server, `/v1/score?${query}`, body)).json()) as ScoreAnswer;
      closeTo(answer.score, expected.score);
      assert.deepEqual([answer.map?.width, answer.map?.height], [expected.map.width, expected.map.height]);
      assert.deepEqual(
        answer.regions?.map(({ box }) => box),
        regions.map(({ box }) => box),
      );
      for (const [i, { peak, area, contour }] of (answer.regions ?? []).entries()) {
        closeTo(peak, regions[i]!.peak);
        assert.ok(Math.abs(area - regions[i]!.area) < 1);
        assert.ok(contour.length > 2 && contour.every((point) => point.length === 2));
      }
    }
    const plain = (await (await post(server, '/v1/score', bytes)).json()) as ScoreAnswer;
    assert.notEqual(plain.score, expected.score);
    assert.equal(plain.regions, undefined, 'the bundle is not calibrated for pixels');
    const png = await post(server, '/v1/score?tile=200', bytes, { accept: 'image/png' });
    assert.equal(png.headers.get('content-type'), 'image/png');
  });

  it('400 for tiles that cannot be: too small, too many, more overlap than half, overlap alone', async () => {
    const bytes = await example('gear-good.png'); // 256 x 256
    await refused(await post(server, '/v1/score?tile=8', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /tile must be >= 16/);
    await refused(await post(server, '/v1/score?tile=16', bytes), 400, 'ERR_DIAD_INVALID_ARGUMENT', /at most 256 tiles .* needs 441/);
    await refused(await post(server, '/v1/score?tile=64&overlap=40', bytes), 400, 'ERR_DIAD_INVALID_ARGUMENT', /0 to 32 for tile\.overlap/);
    await refused(await post(server, '/v1/score?overlap=4', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /tile=/);
    await refused(
      await post(server, '/v1/score?regionThreshold=high', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /regionThreshold must be number/,
    );
  });

  it('/v1/reconstruct gives what diad.reconstruct gives; PNG by Accept', async () => {
    const bytes = await example('capsule-crack.jpg');
    const rebuilt = await diad.reconstruct(bytes); // alone, as the server's: a batch of both would round otherwise
    const scored = await diad.score(bytes);
    const answer = (await (await post(server, '/v1/reconstruct', bytes)).json()) as ReconstructAnswer;
    assert.deepEqual(Buffer.from(answer.image, 'base64'), rebuilt.image);
    assert.deepEqual([answer.width, answer.height, answer.score], [rebuilt.width, rebuilt.height, rebuilt.score]);
    for (const [route, expected] of [
      ['/v1/reconstruct', rebuilt.image],
      ['/v1/score', await scored.map.toHeatmap()],
    ] as const) {
      const png = await post(server, route, bytes, { accept: 'image/png' });
      assert.equal(png.headers.get('content-type'), 'image/png');
      assert.deepEqual(Buffer.from(await png.arrayBuffer()), expected);
    }
  });

  it('400: no body, a bad seed, an unknown option, a form without the file', async () => {
    const bytes = await example('gear-good.png');
    await refused(await post(server, '/v1/score', ''), 400, 'ERR_HTTP_BAD_REQUEST', /Expected the bytes of a picture/);
    await refused(await post(server, '/v1/score?seed=-1', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /seed must be >= 0/);
    await refused(await post(server, '/v1/score?seed=one', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /seed must be integer/);
    await refused(await post(server, '/v1/score?colour=1', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /additional properties/);
    await refused(await post(server, '/v1/score', form(bytes, 'other')), 400, 'ERR_HTTP_BAD_REQUEST', /image/);
    const text = new FormData();
    text.append('image', 'words');
    await refused(await post(server, '/v1/score', text), 413, 'ERR_HTTP_TOO_LARGE');
  });

  it('400 for a form that breaks off, has no boundary or a broken part', async () => {
    const sends: [string, string][] = [
      ['multipart/form-data', 'null'],
      ['multipart/form-data; boundary=b', '--b\r\n\x06\u0080--b--\r\n'],
      ['multipart/form-data; boundary=b', '--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nhalf'],
    ];
    for (const [type, body] of sends) {
      for (const route of ['/v1/score', '/v1/reconstruct']) {
        await refused(await post(server, route, body, { 'content-type': type }), 400, 'ERR_HTTP_BAD_REQUEST', /form cannot be read/);
      }
    }
  });

  it('404 and 405, with the methods there are', async () => {
    await refused(await fetch(`${server.url}/v3`), 404, 'ERR_HTTP_NOT_FOUND');
    const answer = await fetch(`${server.url}/v1/score`);
    assert.equal(answer.headers.get('allow'), 'POST');
    await refused(answer, 405, 'ERR_HTTP_METHOD_NOT_ALLOWED');
    const unusual = await rawRequest(server, '/v2', { 'content-type': 'text/x-question' }, 'PROPFIND');
    assert.equal(unusual.status, 405, unusual.body);
    await refused(await fetch(`${server.url}/..%2f..%2fpackage.json`), 404, 'ERR_HTTP_NOT_FOUND');
  });

  it('406 when neither JSON nor PNG is accepted', async () => {
    const bytes = await example('gear-good.png');
    await refused(await post(server, '/v1/score', bytes, { accept: 'text/html' }), 406, 'ERR_HTTP_NOT_ACCEPTABLE');
  });

  it('413 for 10,000 x 10,000 pixels in a small file, before they are decoded', async () => {
    const bomb = pngBomb(10_000, 10_000);
    assert.ok(bomb.length < 100_000);
    const started = performance.now();
    await refused(await post(server, '/v1/score', bomb), 413, 'ERR_DIAD_IMAGE_TOO_LARGE', /10000 x 10000/);
    assert.ok(performance.now() - started < 2000);
  });

  it('413 for an animation: one picture, one score', async () => {
    const raw = { width: 8, height: 16, channels: 3, pageHeight: 8 } as const;
    const animation = await sharp(
      Uint8Array.from({ length: 8 * 16 * 3 }, (_, i) => (i < 8 * 8 * 3 ? 40 : 220)),
      { raw },
    )
      .gif()
      .toBuffer();
    await refused(await post(server, '/v1/score', animation), 413, 'ERR_DIAD_IMAGE_TOO_LARGE', /at most 1 page or frame but the GIF has/);
  });

  it('415 by the first bytes, whatever type is declared; 422 for a damaged picture', async () => {
    const svg = '<svg xmlns="http://www.w3.org/2000/svg"/>';
    for (const type of ['image/png', 'image/svg+xml', 'application/json']) {
      const answer = await post(server, '/v1/score', svg, { 'content-type': type });
      await refused(answer, 415, 'ERR_HTTP_UNSUPPORTED_MEDIA_TYPE', /PNG, JPEG, WebP/);
    }
    const bytes = await example('gear-good.png');
    const named = await post(server, '/v1/score', bytes, { 'content-type': 'text/plain' });
    assert.equal(named.status, 200, 'a picture is a picture');
    await refused(await post(server, '/v1/score', bytes.subarray(0, bytes.length >> 1)), 422, 'ERR_DIAD_IMAGE_DECODE');
    await refused(await post(server, '/v1/reconstruct', bytes.subarray(0, 40)), 422, 'ERR_DIAD_IMAGE_DECODE');
  });

  it('mutated pictures give 200 or 4xx, and then a good one its own score', async () => {
    const bytes = await example('gear-good.png');
    const { score } = await diad.score(bytes);
    let state = 12345;
    const random = (below: number): number => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % below;
    const statuses = new Set<number>();
    for (let i = 0; i < 60; i++) {
      const mutant = Buffer.from(bytes);
      for (let flips = 1 + random(8); flips > 0; flips--) mutant[random(mutant.length)] = random(256);
      const answer = await post(server, '/v1/score', mutant.subarray(0, 1 + random(2 * mutant.length)));
      statuses.add(answer.status);
      assert.ok(answer.status === 200 || (answer.status >= 400 && answer.status < 500), String(answer.status));
    }
    assert.ok(statuses.has(422));
    const clean = (await (await post(server, '/v1/score', bytes)).json()) as ScoreAnswer;
    closeTo(clean.score, score);
  });
});

describe('server: limits', () => {
  it('401 without a known token; with one it is the one that counts', () =>
    withServer({ tokens: [TOKEN, `${TOKEN}-2`], rateLimit: 3 }, async (server) => {
      const bytes = await example('gear-good.png');
      const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
      for (const headers of [{}, bearer(`${TOKEN}x`), bearer(''), { authorization: `Basic ${TOKEN}` }]) {
        const answer = await post(server, '/v1/score', bytes, headers);
        assert.equal(answer.headers.get('www-authenticate'), 'Bearer realm="diad"');
        await refused(answer, 401, 'ERR_HTTP_UNAUTHORIZED');
      }
      for (const route of ['/metrics', '/v2', '/v2/models/demo']) {
        await refused(await fetch(`${server.url}${route}`), 401, 'ERR_HTTP_UNAUTHORIZED');
      }
      for (const route of ['/', '/v2/health/live', '/v2/health/ready', '/openapi.json']) {
        assert.equal((await fetch(`${server.url}${route}`)).status, 200, route);
      }
      // 429 by token: the first has used its share up, the second has not.
      for (let i = 0; i < 3; i++) assert.equal((await post(server, '/v1/score', bytes, bearer(TOKEN))).status, 200);
      const answer = await post(server, '/v1/score', bytes, bearer(TOKEN));
      assert.ok(Number(answer.headers.get('retry-after')) > 0);
      await refused(answer, 429, 'ERR_HTTP_RATE_LIMITED', /at most 3 requests a minute/);
      assert.equal((await post(server, '/v1/score', bytes, bearer(`${TOKEN}-2`))).status, 200);
    }));

  it('403 for pages of other sites and names that are not this machine', () =>
    withServer({}, async (server) => {
      const bytes = await example('gear-good.png');
      await refused(await post(server, '/v1/score', bytes, { origin: 'https://evil.example' }), 403, 'ERR_HTTP_FORBIDDEN', /evil\.example/);
      assert.equal((await post(server, '/v1/score', bytes, { origin: server.url })).status, 200);
      const rebound = await rawRequest(server, '/v2', { host: 'evil.example' });
      assert.equal(rebound.status, 403);
      assert.match(rebound.body, /ERR_HTTP_FORBIDDEN/);
    }));

  it('CORS for the origins that are named, and only for those', () =>
    withServer({ corsOrigins: ['https://line.example'] }, async (server) => {
      const bytes = await example('gear-good.png');
      const answer = await post(server, '/v1/score', bytes, { origin: 'https://line.example' });
      assert.equal(answer.status, 200);
      assert.equal(answer.headers.get('access-control-allow-origin'), 'https://line.example');
      const foreign = await post(server, '/v1/score', bytes, { origin: 'https://other.example' });
      assert.equal(foreign.headers.get('access-control-allow-origin'), null);
      await refused(foreign, 403, 'ERR_HTTP_FORBIDDEN');
    }));

  it('408 for headers or a body that do not come', () =>
    withServer({ requestTimeoutMs: 400 }, async (server) => {
      for (const text of [
        'POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Le',
        'POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\nhalf',
      ]) {
        const received = await converse(server, text);
        assert.match(received, /^HTTP\/1\.1 408 /);
        assert.match(received, /ERR_HTTP_TIMEOUT/);
      }
    }));

  it('431 for oversized headers, 400 for what is not HTTP', () =>
    withServer({}, async (server) => {
      const large = await converse(server, `GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(20_000)}\r\n\r\n`);
      assert.match(large, /^HTTP\/1\.1 431 [\s\S]*ERR_HTTP_HEADERS_TOO_LARGE/);
      const nonsense = await converse(server, 'hello\r\n\r\n');
      assert.match(nonsense, /^HTTP\/1\.1 400 [\s\S]*ERR_HTTP_BAD_REQUEST/);
    }));

  it('413 for too many bytes: announced, chunked, in a form', () =>
    withServer({ bodyLimit: 2048 }, async (server) => {
      const large = Buffer.alloc(5000, 1);
      await refused(await post(server, '/v1/score', large), 413, 'ERR_HTTP_TOO_LARGE');
      await refused(await post(server, '/v1/score', form(large)), 413, 'ERR_HTTP_TOO_LARGE');
      const chunked = 'POST /v1/score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n';
      const received = await converse(server, `${chunked}1388\r\n${'x'.repeat(5000)}\r\n0\r\n\r\n`);
      assert.match(received, /^HTTP\/1\.1 413 [\s\S]*ERR_HTTP_TOO_LARGE/);
    }));

  it('503 with Retry-After on a full queue, on too many pixels and on too many bytes', async () => {
    const bytes = await example('gear-good.png'); // 256 x 256
    const slow = (): Promise<Scorer> => Promise.resolve(stubScorer({ computeMs: 100 }));
    const cases: Partial<ServerOptions>[] = [
      { load: () => Diad.load(undefined, { queueLimit: 1, threads: 1 }) },
      { load: slow, maxPixels: 70_000, pixelsInFlight: 70_000 },
      { load: slow, bodyLimit: bytes.length, bytesInFlight: bytes.length },
    ];
    for (const options of cases) {
      await withServer(options, async (server) => {
        const answers = await Promise.all(Array.from({ length: 6 }, () => post(server, '/v1/score', bytes)));
        const full = answers.filter(({ status }) => status === 503);
        assert.ok(full.length > 0 && full.length < 6, answers.map(({ status }) => status).join());
        for (const answer of full) {
          assert.ok(Number(answer.headers.get('retry-after')) >= 1);
          await refused(answer, 503, 'ERR_DIAD_QUEUE_FULL');
        }
        await Promise.all(answers.filter(({ status }) => status === 200).map((answer) => answer.json()));
        assert.equal((await post(server, '/v1/score', bytes)).status, 200, 'ready again at once');
      });
    }
  });

  it('a full queue refuses by the headers, before a body is sent; else a client that asks is told to go on', () =>
    withServer({ load: () => Promise.resolve(stubScorer({ computeMs: 500, queueLimit: 1 })) }, async (server) => {
      const bytes = await example('gear-good.png');
      const head = (length: number): string =>
        `POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${length}\r\nConnection: close\r\n`;
      const running = post(server, '/v1/score', bytes);
      await sleep(100);
      const started = performance.now();
      const unsent = await Promise.all([
        converse(server, `${head(30_000_000)}\r\n`),
        converse(server, `${head(30_000_000)}Expect: 100-continue\r\n\r\n`),
      ]);
      for (const received of unsent) assert.match(received, /^HTTP\/1\.1 503 [\s\S]*retry-after: [\s\S]*ERR_DIAD_QUEUE_FULL/i);
      assert.ok(performance.now() - started < 400, 'refused while the picture is computed');
      assert.equal((await running).status, 200);
      const told = await converse(server, `${head(5)}Expect: 100-continue\r\n\r\nhello`);
      assert.match(told, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 415 /);
      const stray = await converse(server, `${head(5)}Expect: 100-continue\r\n\r\nhello`.replace('/v1/score', '/nothing'));
      assert.match(stray, /HTTP\/1\.1 404 /);
    }));

  it('refusals in floods are spaced out, a few are not', () => {
    const pacer = new Pacer();
    const take = (count: number, now: number): number[] => Array.from({ length: count }, () => pacer.delay(now));
    assert.deepEqual(take(100, 1000), Array<number>(100).fill(0), 'the first hundred at once');
    assert.deepEqual(take(3, 1000), [5, 10, 15], 'then 200 a second');
    assert.equal(Math.max(...take(1000, 1000)), 1000, 'none later than a second');
    assert.deepEqual(take(1, 2900), [0], 'forgotten when it is over');
  });

  it('503 when a score takes longer than it may', () =>
    withServer({ load: () => Promise.resolve(stubScorer({ computeMs: 1000 })), scoreTimeoutMs: 20 }, async (server) => {
      await refused(await post(server, '/v1/score', await example('gear-good.png')), 503, 'ERR_DIAD_TIMEOUT');
    }));

  it('a client that goes has its picture cancelled between steps', () =>
    withServer({ load: () => Diad.load(undefined, { threads: 1 }) }, async (server) => {
      const bytes = await example('gear-good.png');
      const other = post(server, '/v1/score', bytes); // computed first, so that the next one waits
      await sleep(20);
      const leaving = http.request(`${server.url}/v1/score`, { method: 'POST', headers: { 'content-type': 'image/png' } });
      leaving.on('error', () => undefined);
      leaving.end(bytes);
      await sleep(50);
      leaving.destroy();
      assert.equal((await other).status, 200);
      for (let i = 0; i < 100 && sample(await server.metrics(), 'diad_cancelled_total') === 0; i++) await sleep(20);
      assert.equal(sample(await server.metrics(), 'diad_cancelled_total'), 1);
      assert.equal(sample(await server.metrics(), 'diad_pixels_in_flight'), 0);
      assert.equal((await post(server, '/v1/score', bytes)).status, 200);
    }));
});

describe('server: start, failure, shutdown', () => {
  it('is alive before the bundle is there, ready after the warm-up score', async () => {
    let loaded: (scorer: Scorer) => void = () => undefined;
    const load = (): Promise<Scorer> => new Promise((resolve) => (loaded = resolve));
    await withServer(
      { load },
      async (server) => {
        const status = async (route: string): Promise<number> => (await fetch(`${server.url}/v2/health/${route}`)).status;
        assert.deepEqual([await status('live'), await status('ready')], [200, 503]);
        await refused(await post(server, '/v1/score', await example('gear-good.png')), 503, 'ERR_HTTP_UNAVAILABLE', /being loaded/);
        let warmedUp: () => void = () => undefined;
        const score = (): ReturnType<Scorer['score']> =>
          new Promise((resolve) => {
            warmedUp = () => {
              resolve({ score: 0.5, timings: {}, batchSize: 1 } as Awaited<ReturnType<Scorer['score']>>);
            };
          });
        loaded(stubScorer({ score }));
        await sleep(20);
        assert.equal(await status('ready'), 503, 'loaded but not warmed up');
        warmedUp();
        await server.ready;
        assert.deepEqual([await status('live'), await status('ready')], [200, 200]);
      },
      false,
    );
  });

  it('a bundle that cannot be loaded is told to whoever waits; the process stays alive', () =>
    withServer(
      { load: () => Diad.load('/nowhere') },
      async (server) => {
        await rejects(server.ready, 'ERR_DIAD_BUNDLE_NOT_FOUND');
        assert.equal((await fetch(`${server.url}/v2/health/live`)).status, 200);
        assert.equal((await fetch(`${server.url}/v2/health/ready`)).status, 503);
      },
      false,
    ));

  it('500 tells nothing of the inside', async () => {
    let calls = 0;
    const failing = (error: Error): Scorer =>
      stubScorer({ score: () => (calls++ === 0 ? stubScorer().score(Buffer.alloc(0)) : Promise.reject(error)) });
    for (const [error, code] of [
      [new TypeError('secret in /home/someone/x.js:3'), 'ERR_HTTP_INTERNAL'],
      [new DiadError('ERR_DIAD_INTERNAL', 'secret'), 'ERR_DIAD_INTERNAL'],
    ] as const) {
      calls = 0;
      await withServer({ load: () => Promise.resolve(failing(error)) }, async (server) => {
        const answer = await post(server, '/v1/score', await example('gear-good.png'));
        assert.doesNotMatch(await answer.clone().text(), /secret/);
        await refused(answer, 500, code, /the log says why/);
      });
    }
  });

  it('close() lets a running request end, refuses new ones, and says when it had to cut one off', async () => {
    const bytes = await example('gear-good.png');
    for (const [drainMs, drained] of [
      [20_000, true],
      [30, false],
    ] as const) {
      let calls = 0;
      const slow = stubScorer({
        score: async (_image, options) => {
          if (calls++ > 0) await sleep(600, undefined, options?.signal === undefined ? {} : { signal: options.signal });
          return { score: 1, seed: 0n, timings: { decodeImageMs: 0 }, batchSize: 1 } as unknown as Awaited<ReturnType<Scorer['score']>>;
        },
      });
      const server = await createServer({ load: () => Promise.resolve(slow), port: 0, logLevel: 'silent', drainMs });
      await server.ready;
      const running = post(server, '/v1/score', bytes).then(
        ({ status }) => status,
        () => 'cut off',
      );
      await sleep(200);
      const closed = server.close();
      await sleep(20);
      await assert.rejects(fetch(`${server.url}/v2/health/live`), 'no new connection');
      assert.equal(await closed, drained);
      assert.equal((await running) === 'cut off', !drained);
    }
  });

  it('options are checked: addresses others can reach need a token', async () => {
    const load = (): Promise<Scorer> => Promise.resolve(stubScorer({}));
    await rejects(createServer({ load, host: '0.0.0.0' }), 'ERR_DIAD_INVALID_ARGUMENT', /--token-file/);
    await rejects(createServer({ load, host: '::' }), 'ERR_DIAD_INVALID_ARGUMENT', /loopback/);
    await rejects(createServer({ load, tokens: ['short'] }), 'ERR_DIAD_INVALID_ARGUMENT', /16 characters/);
    await rejects(createServer({ load, port: 70_000 }), 'ERR_DIAD_INVALID_ARGUMENT', /port/);
    await rejects(createServer({} as ServerOptions), 'ERR_DIAD_INVALID_ARGUMENT', /load/);
  });
});
