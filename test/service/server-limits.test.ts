// diad serve: requests rejected before an image is scored, and requests that end early, with status and code.
import assert from 'node:assert/strict';
import http from 'node:http';
import { Diad } from '../../lib/index.js';
import type { Scorer, ServerOptions } from '../../lib/server/index.js';
import { RejectionThrottle } from '../../lib/server/pacer.js';
import {
  converse,
  form,
  heldScorer,
  post,
  rawRequest,
  refused,
  sample,
  stubScorer,
  withServer,
} from '../support/server-support.js';
import { example, publishedBundle, until } from '../support/support.js';

const TOKEN = 'a-token-of-twenty-four-c';

describe('server: limits', () => {
  it('answers 401 without a known token; limits rates by token', () =>
    withServer({ tokens: [TOKEN, `${TOKEN}-2`], rateLimit: 3 }, async (server) => {
      const bytes = await example('gear-good.png');
      const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
      for (const headers of [{}, bearer(`${TOKEN}x`), bearer(''), { authorization: `Basic ${TOKEN}` }]) {
        const answer = await post(server, '/v1/score', bytes, headers);
        assert.equal(answer.headers.get('www-authenticate'), 'Bearer realm="diad"');
        await refused(answer, 401, 'ERR_HTTP_UNAUTHORIZED');
      }
      for (const route of ['/metrics', '/v2', '/v2/models/tiny']) {
        await refused(await fetch(`${server.url}${route}`), 401, 'ERR_HTTP_UNAUTHORIZED');
      }
      for (const route of ['/', '/v2/health/live', '/v2/health/ready', '/openapi.json']) {
        assert.equal((await fetch(`${server.url}${route}`)).status, 200, route);
      }
      // 429 by token: the first token has used up its rate, the second has not.
      for (let i = 0; i < 3; i++)
        assert.equal((await post(server, '/v1/score', bytes, bearer(TOKEN))).status, 200);
      const answer = await post(server, '/v1/score', bytes, bearer(TOKEN));
      assert.ok(Number(answer.headers.get('retry-after')) > 0);
      await refused(answer, 429, 'ERR_HTTP_RATE_LIMITED', /at most 3 requests per minute/);
      assert.equal((await post(server, '/v1/score', bytes, bearer(`${TOKEN}-2`))).status, 200);
    }));

  it('answers 403 to pages of other sites and foreign host names', () =>
    withServer({}, async (server) => {
      const bytes = await example('gear-good.png');
      await refused(
        await post(server, '/v1/score', bytes, { origin: 'https://evil.example' }),
        403,
        'ERR_HTTP_FORBIDDEN',
        /evil\.example/,
      );
      assert.equal((await post(server, '/v1/score', bytes, { origin: server.url })).status, 200);
      const rebound = await rawRequest(server, '/v2', { host: 'evil.example' });
      assert.equal(rebound.status, 403);
      assert.match(rebound.body, /ERR_HTTP_FORBIDDEN/);
    }));

  it('allows CORS only for the listed origins', () =>
    withServer({ corsOrigins: ['https://line.example'] }, async (server) => {
      const bytes = await example('gear-good.png');
      const answer = await post(server, '/v1/score', bytes, { origin: 'https://line.example' });
      assert.equal(answer.status, 200);
      assert.equal(answer.headers.get('access-control-allow-origin'), 'https://line.example');
      const foreign = await post(server, '/v1/score', bytes, { origin: 'https://other.example' });
      assert.equal(foreign.headers.get('access-control-allow-origin'), null);
      await refused(foreign, 403, 'ERR_HTTP_FORBIDDEN');
    }));

  it('answers 408 when headers or a body do not arrive', () =>
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

  it('answers 431 to oversized headers, 400 to invalid HTTP', () =>
    withServer({}, async (server) => {
      const large = await converse(
        server,
        `GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(20_000)}\r\n\r\n`,
      );
      assert.match(large, /^HTTP\/1\.1 431 [\s\S]*ERR_HTTP_HEADERS_TOO_LARGE/);
      const nonsense = await converse(server, 'hello\r\n\r\n');
      assert.match(nonsense, /^HTTP\/1\.1 400 [\s\S]*ERR_HTTP_BAD_REQUEST/);
    }));

  it('answers 413 to too many bytes: announced, chunked, in a form', () =>
    withServer({ bodyLimit: 2048 }, async (server) => {
      const large = Buffer.alloc(5000, 1);
      await refused(await post(server, '/v1/score', large), 413, 'ERR_HTTP_TOO_LARGE');
      await refused(await post(server, '/v1/score', form(large)), 413, 'ERR_HTTP_TOO_LARGE');
      const chunked =
        'POST /v1/score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n';
      const received = await converse(server, `${chunked}1388\r\n${'x'.repeat(5000)}\r\n0\r\n\r\n`);
      assert.match(received, /^HTTP\/1\.1 413 [\s\S]*ERR_HTTP_TOO_LARGE/);
    }));

  it('answers 404 and 405 without waiting for a body', () =>
    withServer({ corsOrigins: ['https://line.example'] }, async (server) => {
      for (const [path, status, code] of [
        ['/nope', 404, 'ERR_HTTP_NOT_FOUND'],
        ['/v2/health/live', 405, 'ERR_HTTP_METHOD_NOT_ALLOWED'],
        ['/openapi.json', 405, 'ERR_HTTP_METHOD_NOT_ALLOWED'],
      ] as const) {
        for (const length of ['Content-Length: 10000000', 'Transfer-Encoding: chunked']) {
          const head = `POST ${path} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://line.example\r\nContent-Type: image/png\r\n${length}\r\n\r\n`;
          const received = await converse(server, head);
          assert.match(received, new RegExp(`^HTTP/1\\.1 ${status} [\\s\\S]*${code}`));
          assert.match(received, /\r\nconnection: close\r\n/i);
          assert.match(
            received,
            /\r\nx-content-type-options: nosniff\r\n/i,
            'with the headers of every response',
          );
          assert.match(received, /\r\naccess-control-allow-origin: https:\/\/line\.example\r\n/i);
        }
      }
      // Without a body the connection stays open.
      const kept = await fetch(`${server.url}/nope`, { method: 'DELETE' });
      assert.deepEqual([kept.status, kept.headers.get('connection')], [404, 'keep-alive']);
    }));

  it('answers 503 with Retry-After on a full queue, too many pixels and too many bytes', async () => {
    const bytes = await example('gear-good.png'); // 256 x 256
    const slow = (): Promise<Scorer> => Promise.resolve(stubScorer({ computeMs: 400 }));
    const cases: Partial<ServerOptions>[] = [
      { load: () => Diad.load(publishedBundle, { queueLimit: 1, threads: 1 }) },
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

  it('rejects a request by its headers when the queue is full; otherwise sends 100 Continue', () => {
    const { scorer, begun, end } = heldScorer(1);
    return withServer({ load: () => Promise.resolve(scorer) }, async (server) => {
      const bytes = await example('gear-good.png');
      const head = (length: number): string =>
        `POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${length}\r\nConnection: close\r\n`;
      const running = post(server, '/v1/score', bytes);
      await begun;
      const unsent = await Promise.all([
        converse(server, `${head(30_000_000)}\r\n`),
        converse(server, `${head(30_000_000)}Expect: 100-continue\r\n\r\n`),
      ]);
      for (const received of unsent)
        assert.match(received, /^HTTP\/1\.1 503 [\s\S]*retry-after: [\s\S]*ERR_DIAD_QUEUE_FULL/i);
      end();
      assert.equal((await running).status, 200);
      const told = await converse(server, `${head(5)}Expect: 100-continue\r\n\r\nhello`);
      assert.match(told, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 415 /);
      const stray = await converse(
        server,
        `${head(5)}Expect: 100-continue\r\n\r\nhello`.replace('/v1/score', '/nothing'),
      );
      assert.match(stray, /HTTP\/1\.1 404 /);
    });
  });

  it('delays rejections only in bursts', () => {
    const throttle = new RejectionThrottle();
    const take = (count: number, now: number): number[] =>
      Array.from({ length: count }, () => throttle.delay(now));
    assert.deepEqual(take(100, 1000), Array<number>(100).fill(0), 'the first hundred at once');
    assert.deepEqual(take(3, 1000), [5, 10, 15], 'then 200 a second');
    assert.equal(Math.max(...take(1000, 1000)), 1000, 'none later than a second');
    assert.deepEqual(take(1, 2900), [0], 'forgotten when it is over');
  });

  it('answers 503 when a score exceeds the time limit', () =>
    withServer(
      { load: () => Promise.resolve(stubScorer({ computeMs: 1000 })), scoreTimeoutMs: 20 },
      async (server) => {
        await refused(
          await post(server, '/v1/score', await example('gear-good.png')),
          503,
          'ERR_DIAD_TIMEOUT',
        );
      },
    ));

  it('cancels the image of a disconnected client between steps', async () => {
    const diad = await Diad.load(publishedBundle, { threads: 1 });
    let scored = 0; // encoded images that reached the engine; the warm-up is a frame
    const score: Scorer['score'] = (image, options) => {
      if (image instanceof Uint8Array) scored++;
      return diad.score(image, options);
    };
    const scorer: Scorer = {
      info: diad.info,
      score,
      stats: () => diad.stats(),
      reconstruct: (image, options) => diad.reconstruct(image, options),
      close: () => diad.close(),
    };
    await withServer({ load: () => Promise.resolve(scorer) }, async (server) => {
      const bytes = await example('gear-good.png');
      // Computed first, so that the next one waits.
      const others = Array.from({ length: 4 }, () => post(server, '/v1/score', bytes));
      await until(() => scored === 4, 'the others are queued');
      const leaving = http.request(`${server.url}/v1/score`, {
        method: 'POST',
        headers: { 'content-type': 'image/png' },
      });
      leaving.on('error', () => undefined);
      leaving.end(bytes);
      await until(() => scored === 5, 'the last one is queued');
      leaving.destroy();
      for (const other of others) assert.equal((await other).status, 200);
      await until(async () => sample(await server.metrics(), 'diad_cancelled_total') === 1, 'cancelled');
      assert.equal(sample(await server.metrics(), 'diad_pixels_in_flight'), 0);
      assert.equal((await post(server, '/v1/score', bytes)).status, 200);
    });
  });
});
