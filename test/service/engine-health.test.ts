// A failing engine: detection, waiting, and shutdown when it does not recover.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { EngineHealth } from '../../lib/health/engine-health.js';
import { DiadError, type DiadErrorCode } from '../../lib/index.js';
import { runResults, startWorker, submitRun } from '../../lib/queue/index.js';
import { DEVICE_LOST, failingEngine, type FailingEngine } from '../support/failing-engine.js';
import { asFile, Broker, collect, freePort, STUB_MODEL, writeImages } from '../support/queue-support.js';
import { post, refused, withServer } from '../support/server-support.js';
import { example, inFolder, root, runProgram } from '../support/support.js';
import { collecting, until, watching } from '../support/watch-support.js';

const main = path.join(root, 'dist', 'cli', 'main.js');
const failure = (code: DiadErrorCode): DiadError => new DiadError(code, 'as the test has it');

describe('engine health', () => {
  const of = (
    engine: FailingEngine,
    recheckMs = 5,
  ): { health: EngineHealth; changes: boolean[]; said: string[] } => {
    const changes: boolean[] = [];
    const said: string[] = [];
    const { scorer } = engine;
    const health = new EngineHealth({
      scorer,
      recheckMs,
      log: (line) => said.push(line),
      changed: (healthy) => changes.push(healthy),
    });
    return { health, changes, said };
  };

  it('probes after three consecutive engine failures, not earlier and not for image errors', async () => {
    const engine = failingEngine();
    const { health, changes } = of(engine);
    for (const code of [
      'ERR_DIAD_IMAGE_DECODE',
      'ERR_DIAD_QUEUE_FULL',
      'ERR_DIAD_TIMEOUT',
      'ERR_DIAD_INVALID_ARGUMENT',
    ] as const) {
      for (let i = 0; i < 3; i++) health.observe(failure(code));
    }
    for (let i = 0; i < 3; i++) {
      health.observe(failure('ERR_DIAD_INTERNAL'));
      health.observe(failure('ERR_DIAD_OUT_OF_MEMORY'));
      health.observe();
    }
    await sleep(20);
    assert.equal(engine.questions, 0);
    for (let i = 0; i < 3; i++) health.observe(failure('ERR_DIAD_INTERNAL'));
    await until(() => engine.questions === 1, 'probed');
    assert.deepEqual(
      [engine.questions, health.healthy, changes],
      [1, true, []],
      'it scores, so the images were at fault',
    );
  });

  it('is unhealthy while the engine cannot score', async () => {
    const engine = failingEngine();
    const { health, changes, said } = of(engine, 200);
    engine.failing = true;
    for (let i = 0; i < 5; i++) health.observe(failure('ERR_DIAD_INTERNAL'));
    await until(() => engine.questions === 2, 'probed again');
    assert.equal(health.healthy, false);
    engine.failing = false;
    await until(() => health.healthy, 'healthy');
    assert.deepEqual(changes, [false, true]);
    assert.equal(said[0], `the engine fails: ${DEVICE_LOST}`);
    assert.equal(said.at(-1), 'the engine scores again');
    const { questions } = engine;
    await sleep(500);
    assert.equal(engine.questions, questions, 'asked no more');
  });

  it('is lost after six failed probes, and stops probing', async () => {
    const engine = failingEngine();
    const { health, changes } = of(engine);
    engine.failing = true;
    for (let i = 0; i < 3; i++) health.observe(failure('ERR_DIAD_INTERNAL'));
    assert.match((await health.lost).message, new RegExp(DEVICE_LOST));
    for (let i = 0; i < 9; i++) health.observe(failure('ERR_DIAD_INTERNAL'));
    await sleep(30);
    assert.deepEqual([engine.questions, health.healthy, changes], [6, false, [false]]);
  });

  it('waits for memory', async () => {
    const engine = failingEngine();
    let questions = 0;
    const score: typeof engine.scorer.score = (image) =>
      ++questions < 20 ? Promise.reject(failure('ERR_DIAD_OUT_OF_MEMORY')) : engine.scorer.score(image);
    const { health, changes } = of({ ...engine, scorer: { ...engine.scorer, score } });
    for (let i = 0; i < 3; i++) health.observe(failure('ERR_DIAD_OUT_OF_MEMORY'));
    await until(() => questions === 20, 'kept probing');
    await until(() => health.healthy, 'healthy');
    assert.deepEqual(changes, [false, true]);
  });

  it('ignores a full queue, and stops probing when closed', async () => {
    const engine = failingEngine();
    let questions = 0;
    const score = (): Promise<never> =>
      Promise.reject(failure(++questions < 8 ? 'ERR_DIAD_QUEUE_FULL' : 'ERR_DIAD_INTERNAL'));
    const { health } = of({ ...engine, scorer: { ...engine.scorer, score } }, 100);
    for (let i = 0; i < 3; i++) health.observe(failure('ERR_DIAD_INTERNAL'));
    await until(() => !health.healthy, 'unhealthy');
    assert.ok(questions >= 8);
    health.close();
    const before = questions;
    await sleep(300);
    assert.ok(questions <= before + 1, `${questions - before} more`);
  });
});

describe('a failing engine @slow', () => {
  it('server: is not ready while it fails, and ready when it recovers', async () => {
    const engine = failingEngine();
    const load = (): Promise<typeof engine.scorer> => Promise.resolve(engine.scorer);
    await withServer({ load, recheckMs: 1500 }, async (server) => {
      const bytes = await example('gear-good.png');
      const status = async (route: string): Promise<number> =>
        (await fetch(`${server.url}/v2/health/${route}`)).status;
      engine.failing = 'files';
      for (let i = 0; i < 4; i++)
        await refused(await post(server, '/v1/score', bytes), 500, 'ERR_DIAD_INTERNAL');
      assert.equal(await status('ready'), 200, 'other images may be scored');
      engine.failing = true;
      await until(async () => (await post(server, '/v1/score', bytes)).status === 503, 'rejected');
      assert.equal(await status('ready'), 503);
      const answer = await post(server, '/v1/score', bytes);
      assert.equal(answer.headers.get('retry-after'), '5');
      await refused(answer, 503, 'ERR_HTTP_UNAVAILABLE', /engine is failing/);
      assert.equal(await status('live'), 200);
      engine.failing = false;
      await until(async () => (await status('ready')) === 200, 'ready');
      assert.equal((await post(server, '/v1/score', bytes)).status, 200);
    });
  });

  it('server: is not live when it does not recover', async () => {
    const engine = failingEngine();
    const load = (): Promise<typeof engine.scorer> => Promise.resolve(engine.scorer);
    await withServer({ load, recheckMs: 10 }, async (server) => {
      engine.failing = true;
      const bytes = await example('gear-good.png');
      for (let i = 0; i < 3; i++) await post(server, '/v1/score', bytes);
      assert.match((await server.lost).message, new RegExp(DEVICE_LOST));
      const answer = await fetch(`${server.url}/v2/health/live`);
      assert.deepEqual([answer.status, await answer.json()], [503, { live: false }]);
    });
  });

  it('watch: images wait and are not reported as failed; one that always fails is reported in the end', () =>
    inFolder(async (folder) => {
      const engine = failingEngine();
      const sink = collecting();
      await writeImages(folder, 4);
      engine.failing = true;
      await watching({ folder, scorer: engine.scorer, sinks: [sink], recheckMs: 1000 }, async () => {
        await until(() => engine.questions === 2, 'probed');
        const { asked, questions } = engine;
        await until(() => engine.questions === 4, 'probed again');
        assert.equal(engine.asked - asked, engine.questions - questions, 'images wait');
        assert.equal(sink.events.length, 0);
        engine.failing = false;
        await until(() => sink.events.length === 4, 'scored');
        assert.ok(sink.events.every(({ score, error }) => score !== undefined && error === undefined));
        engine.failing = 'files';
        await copyFile(path.join(folder, '0000.png'), path.join(folder, 'odd.png'));
        await until(() => sink.events.length === 5, 'delivered');
        assert.deepEqual(
          [sink.events[4]!.file, sink.events[4]!.error?.code],
          ['odd.png', 'ERR_DIAD_INTERNAL'],
        );
      });
    }));

  it('worker: takes no jobs while it fails, and uses up none of their attempts', () =>
    inFolder(async (folder) => {
      const broker = new Broker(await freePort(), folder);
      await broker.start();
      const engine = failingEngine();
      engine.failing = true;
      const images = await writeImages(folder, 60);
      const worker = await startWorker({
        redis: broker.url,
        scorer: engine.scorer,
        root: folder,
        concurrency: 2,
        recheckMs: 1000,
        silentMs: 2000,
      });
      try {
        const run = await submitRun(images.map(asFile), {
          redis: broker.url,
          model: STUB_MODEL,
          attempts: 2,
        });
        await until(() => engine.questions === 1, 'probed');
        await sleep(500);
        const { asked, questions } = engine;
        assert.ok(asked < 20, `${asked} images were tried`);
        await until(() => engine.questions === 4, 'probed again');
        assert.equal(engine.asked - asked, engine.questions - questions, 'jobs wait');
        engine.failing = false;
        const results = await collect(run, broker.url);
        assert.deepEqual(new Set(results.map(({ status }) => status)), new Set(['done']));
        assert.equal(worker.restarts, 0);
      } finally {
        await worker.close();
        await broker.kill();
      }
    }));

  it('serve, watch and worker exit with 1 when it does not recover', () =>
    inFolder(async (folder) => {
      const broker = new Broker(await freePort(), folder);
      await broker.start();
      // The engine of a child process, failing from its second score on.
      const preload = path.join(folder, 'failing.mjs');
      const library = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
      await writeFile(
        preload,
        `import { Diad, DiadError } from ${JSON.stringify(library)};
         const { score } = Diad.prototype;
         let calls = 0;
         Diad.prototype.score = function (...given) {
           if (calls++ === 0 && process.argv[2] === 'serve') return score.apply(this, given);
           return Promise.reject(new DiadError('ERR_DIAD_INTERNAL', ${JSON.stringify(DEVICE_LOST)}));
         };`,
      );
      const start = (...args: string[]) => {
        const child = spawn(process.execPath, ['--import', preload, main, ...args, '--threads', '1']);
        let log = '';
        child.stderr.setEncoding('utf8').on('data', (chunk: string) => (log += chunk));
        return { child, log: () => log, ended: once(child, 'exit') };
      };
      const images = path.join(folder, 'images');
      await mkdir(images);
      await writeImages(images, 4);
      const serve = start('serve', '--port', '0');
      const watch = start('watch', images, '--settle', '50');
      const worker = start('worker', '--redis', broker.url, '--root', images);
      const all = [serve, watch, worker];
      try {
        await until(() => serve.log().includes('diad: ready\n'), 'ready');
        const url = /diad: listening on (\S+)/.exec(serve.log())![1]!;
        const body = Uint8Array.from(await example('gear-good.png'));
        for (let i = 0; i < 3; i++)
          assert.equal((await fetch(`${url}/v1/score`, { method: 'POST', body })).status, 500);
        const { stdout } = await runProgram(process.execPath, [
          main,
          'submit',
          images,
          '--root',
          images,
          '--redis',
          broker.url,
        ]);
        for (const { ended, log } of all) {
          assert.deepEqual(await ended, [1, null], log());
          assert.match(
            log(),
            new RegExp(`^diad: (the engine is lost|ERR_DIAD_INTERNAL): ${DEVICE_LOST}$`, 'm'),
          );
        }
        const left: string[] = [];
        for await (const { status } of runResults(stdout.trim(), { redis: broker.url })) left.push(status);
        assert.deepEqual(left, ['waiting', 'waiting', 'waiting', 'waiting']);
      } finally {
        for (const { child } of all) child.kill('SIGKILL');
        await broker.kill();
      }
    }));
});
