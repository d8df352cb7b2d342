// diad serve from start to shutdown: health, failures, draining.
import assert from 'node:assert/strict';
import os from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { Diad, DiadError } from '../../lib/index.js';
import { createServer, type Scorer, type ServerOptions } from '../../lib/server/index.js';
import { isLoopback } from '../../lib/server/options.js';
import { heldScorer, post, refused, stubScorer, withServer } from '../support/server-support.js';
import { example, rejects } from '../support/support.js';

const hasIPv6 = Object.values(os.networkInterfaces()).some((of) =>
  of?.some(({ family }) => family === 'IPv6'),
);

describe('server: start, failure, shutdown', () => {
  it('is live before the bundle is loaded and ready after the warm-up score', async () => {
    let loaded: (scorer: Scorer) => void = () => undefined;
    const load = (): Promise<Scorer> => new Promise((resolve) => (loaded = resolve));
    await withServer(
      { load },
      async (server) => {
        const status = async (route: string): Promise<number> =>
          (await fetch(`${server.url}/v2/health/${route}`)).status;
        assert.deepEqual([await status('live'), await status('ready')], [200, 503]);
        await refused(
          await post(server, '/v1/score', await example('gear-good.png')),
          503,
          'ERR_HTTP_UNAVAILABLE',
          /is loading/,
        );
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

  it('rejects ready when the bundle cannot be loaded; the process stays alive', () =>
    withServer(
      { load: () => Diad.load('/nowhere') },
      async (server) => {
        await rejects(server.ready, 'ERR_DIAD_BUNDLE_NOT_FOUND');
        assert.equal((await fetch(`${server.url}/v2/health/live`)).status, 200);
        assert.equal((await fetch(`${server.url}/v2/health/ready`)).status, 503);
      },
      false,
    ));

  it('reveals no internals with status 500', async () => {
    let calls = 0;
    const failing = (error: Error): Scorer =>
      stubScorer({
        score: () => (calls++ === 0 ? stubScorer().score(Buffer.alloc(0)) : Promise.reject(error)),
      });
    for (const [error, code] of [
      [new TypeError('secret in /home/someone/x.js:3'), 'ERR_HTTP_INTERNAL'],
      [new DiadError('ERR_DIAD_INTERNAL', 'secret'), 'ERR_DIAD_INTERNAL'],
    ] as const) {
      calls = 0;
      await withServer({ load: () => Promise.resolve(failing(error)) }, async (server) => {
        const answer = await post(server, '/v1/score', await example('gear-good.png'));
        assert.doesNotMatch(await answer.clone().text(), /secret/);
        await refused(answer, 500, code, /see the log/);
      });
    }
  });

  it('close() finishes running requests, rejects new ones, and returns whether all completed', async () => {
    const bytes = await example('gear-good.png');
    for (const [drainMs, drained] of [
      [20_000, true],
      [30, false],
    ] as const) {
      const { scorer, begun, end } = heldScorer();
      const server = await createServer({
        load: () => Promise.resolve(scorer),
        port: 0,
        logLevel: 'silent',
        drainMs,
      });
      await server.ready;
      const running = post(server, '/v1/score', bytes).then(
        ({ status }) => status,
        () => 'cut off',
      );
      await begun;
      const closed = server.close();
      await sleep(20);
      await assert.rejects(fetch(`${server.url}/v2/health/live`), 'no new connection');
      if (drained) end();
      assert.equal(await closed, drained);
      assert.equal((await running) === 'cut off', !drained);
      end();
    }
  });

  it('close() does not wait for a loading bundle, which is released later', async () => {
    let loaded: (scorer: Scorer) => void = () => undefined;
    const load = (): Promise<Scorer> => new Promise((resolve) => (loaded = resolve));
    const server = await createServer({ load, port: 0, logLevel: 'silent' });
    assert.equal(await server.close(), true);
    const closed = new Promise<void>((resolve) => {
      const close = (): Promise<void> => {
        resolve();
        return Promise.resolve();
      };
      loaded(stubScorer({ close }));
    });
    await closed;
    await rejects(server.ready, 'ERR_DIAD_CLOSED', /while the bundle was loading/);
  });

  it('validates options: non-loopback addresses require a token', async () => {
    const load = (): Promise<Scorer> => Promise.resolve(stubScorer({}));
    await rejects(createServer({ load, host: '0.0.0.0' }), 'ERR_DIAD_INVALID_ARGUMENT', /--token-file/);
    await rejects(createServer({ load, host: '::' }), 'ERR_DIAD_INVALID_ARGUMENT', /loopback/);
    await rejects(createServer({ load, tokens: ['short'] }), 'ERR_DIAD_INVALID_ARGUMENT', /16 characters/);
    await rejects(
      createServer({ load, auth: false, tokens: ['t'.repeat(16)] }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /no tokens .* auth: false/,
    );
    await rejects(createServer({ load, port: 70_000 }), 'ERR_DIAD_INVALID_ARGUMENT', /port/);
    await rejects(createServer({} as ServerOptions), 'ERR_DIAD_INVALID_ARGUMENT', /load/);
  });

  it('returns the URL of the bound address', async () => {
    for (const [host, expected] of [
      ['127.0.0.1', '127.0.0.1'],
      ['0.0.0.0', '0.0.0.0'],
      ['::', '[::]'],
      ['::1', '[::1]'],
    ] as const) {
      if (host.includes(':') && !hasIPv6) continue;
      await withServer({ host, auth: isLoopback(host) }, async (server) => {
        assert.equal(server.url, `http://${expected}:${server.port}`);
        assert.equal((await fetch(`${server.url}/v2/health/live`)).status, 200);
      });
    }
  });
});
