// Closing, process exit and worker threads.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Diad } from '../../lib/index.js';
import { example, rejects, root, runModule } from '../support/support.js';

const IMAGE = path.join(root, 'examples', 'gear-good.png');
const LIBRARY = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
const PRELUDE = `import { readFileSync } from 'node:fs'; const image = readFileSync(${JSON.stringify(IMAGE)}); const diad = await Diad.load();\n`;

describe('lifecycle', () => {
  it('close() rejects pending and later calls, and can be repeated', async () => {
    const diad = await Diad.load(undefined, { maxBatch: 3 });
    const gear = await example('gear-good.png');
    const pending = Array.from({ length: 7 }, (_, seed) => diad.score(gear, { seed }));
    const outcomes = Promise.allSettled(pending);
    await new Promise((resolve) => setTimeout(resolve, 60));
    await Promise.all([diad.close(), diad.close()]);
    const codes = (await outcomes).map((outcome) =>
      outcome.status === 'fulfilled' ? 'done' : (outcome.reason as { code: string }).code,
    );
    assert.ok(codes.includes('ERR_DIAD_CLOSED'), codes.join());
    assert.deepEqual(
      [...new Set(codes)].filter((code) => code !== 'done'),
      ['ERR_DIAD_CLOSED'],
    );
    await rejects(diad.score(gear), 'ERR_DIAD_CLOSED', /load it again/);
    await rejects(diad.reconstruct(gear), 'ERR_DIAD_CLOSED');
    assert.throws(() => diad.stats(), { name: 'DiadError', code: 'ERR_DIAD_CLOSED' });
    await diad.close();
  });

  it('rejects invalid arguments in the addon without keeping the process alive', async () => {
    const { stdout, stderr, code } = await runModule(`
      import { createRequire } from 'node:module';
      await (await Diad.load()).close();
      const addon = createRequire(import.meta.url)(${JSON.stringify(path.join(root, 'build', 'Release', 'diad.node'))});
      const trap = new Proxy({}, { get() { throw new Error('trapped'); } });
      const libtorch = { toString() { throw new Error('trapped'); } };
      for (const call of [
        () => addon.load('bundle', trap), () => addon.open(libtorch, ''), () => addon.classMetrics(trap), () => addon.classMetrics({}),
      ]) {
        try { await call(); console.log('done'); } catch (error) { console.log(error.code ?? error.message); }
      }
      const made = await addon.load(${JSON.stringify(path.join(root, 'models', 'base'))}, { device: 'cpu', precision: 'float32', threads: 0, maxBatch: 1,
        maxDelayMs: 0, queueLimit: 1, preferredBatches: [], verify: true, warmup: false });
      const own = new made.constructor();
      for (const method of ['stats', 'submit', 'cancel', 'close']) {
        try { own[method]({}, {}); console.log('done'); } catch (error) { console.log(error.name); }
      }
      await made.close();`);
    const invalid = 'ERR_DIAD_INVALID_ARGUMENT';
    assert.deepEqual(
      stdout.trim().split('\n'),
      ['trapped', 'trapped', invalid, invalid, ...Array<string>(4).fill('TypeError')],
      stderr,
    );
    assert.equal(code, 0);
  });

  it('closes with await using', async () => {
    const outcome = await runModule(
      `${PRELUDE} await diad[Symbol.asyncDispose](); await diad.score(image).catch((e) => console.log(e.code));`,
    );
    assert.equal(outcome.stdout.trim(), 'ERR_DIAD_CLOSED');
    assert.equal(outcome.code, 0);
  });

  it('lets an idle process exit without close()', async () => {
    const { code, signal, stdout } = await runModule(
      `${PRELUDE} console.log((await diad.score(image)).score > 0);`,
    );
    assert.deepEqual([code, signal, stdout.trim()], [0, null, 'true']);
  });

  it('keeps the process alive while a score is pending', async () => {
    const { code, stdout } = await runModule(
      `${PRELUDE} diad.score(image).then(({ score }) => console.log(score > 0));`,
    );
    assert.deepEqual([code, stdout.trim()], [0, 'true']);
  });

  for (const [what, source, code, signal] of [
    ['process.exit()', 'setTimeout(() => process.exit(7), 40);', 7, null],
    ['an uncaught throw', "setTimeout(() => { throw new Error('unlucky'); }, 40);", 1, null],
    ['SIGTERM', "setTimeout(() => process.kill(process.pid, 'SIGTERM'), 40);", null, 'SIGTERM'],
    ['SIGINT', "setTimeout(() => process.kill(process.pid, 'SIGINT'), 40);", null, 'SIGINT'],
    ['an unhandled rejection', "diad.score('x');", 1, null],
  ] as const) {
    it(`exits like Node on ${what} during work`, async () => {
      const busy = `for (let seed = 0; seed < 20; seed++) diad.score(image, { seed }).catch(() => {});\n`;
      const outcome = await runModule(PRELUDE + busy + source);
      assert.deepEqual([outcome.code, outcome.signal], [code, signal], outcome.stderr);
      assert.doesNotMatch(outcome.stderr, /terminate called|Segmentation|core dumped/);
    });
  }

  it('returns equal scores in worker threads, and survives their termination', async () => {
    const source = `
      import { parentPort, workerData } from 'node:worker_threads';
      import { Diad } from ${JSON.stringify(LIBRARY)};
      const diad = await Diad.load();
      do parentPort.postMessage((await diad.score(workerData.image, { onStep: () => {} })).score); while (workerData.forever);
      await diad.close();`;
    const start = (forever: boolean): Worker =>
      new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
        execArgv: [], // without the tests' TypeScript loader, which starts a thread in each worker
        workerData: { image: readFileSync(IMAGE), forever },
      });
    const firstMessage = (worker: Worker): Promise<number> =>
      new Promise((resolve, reject) => {
        worker.once('message', resolve).once('error', reject);
      });
    const diad = await Diad.load();
    const expected = (await diad.score(readFileSync(IMAGE))).score;
    const once = start(false);
    const ended = new Promise((resolve) => once.once('exit', resolve)); // can arrive with the message
    assert.equal(await firstMessage(once), expected);
    await ended;
    for (const delay of [0, 30, 90, 150]) {
      const workers = [start(true), start(true)];
      await Promise.all(workers.map(firstMessage));
      await new Promise((resolve) => setTimeout(resolve, delay));
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    assert.equal((await diad.score(readFileSync(IMAGE))).score, expected);
    await diad.close();
  });

  it('gives a model loaded after others as many threads as the first', async () => {
    const threadsOf = async (...given: object[]): Promise<string[]> => {
      const { stdout } = await runModule(
        `for (const options of JSON.parse(process.argv[1])) {
          const diad = await Diad.load(undefined, options);
          console.log(diad.info.threads);
          await diad.close();
        }`,
        [JSON.stringify(given)],
      );
      return stdout.trim().split('\n');
    };
    const [first, second, third] = await threadsOf({}, {}, { maxBatch: 2 });
    assert.ok(Number(first) >= 1, first);
    assert.deepEqual([second, third], [first, first]); // not meaningful on a machine with one core
    assert.deepEqual(await threadsOf({ threads: 3 }, {}), ['3', first]);
  });

  it('exits cleanly when the addon is used only in a worker', async () => {
    const inner = `import { Diad } from ${JSON.stringify(LIBRARY)}; const diad = await Diad.load(); await diad.close();`;
    const source = `import { Worker } from 'node:worker_threads';
      const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(inner)})));
      worker.on('exit', (code) => console.log('worker', code));`;
    const { code, stdout } = await runModule(source);
    assert.deepEqual([code, stdout.trim()], [0, 'worker 0']);
  });

  it('does not block the event loop while scoring', async () => {
    const diad = await Diad.load();
    const gear = await example('gear-good.png');
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    await Promise.all(Array.from({ length: 8 }, (_, seed) => diad.score(gear, { seed })));
    clearInterval(timer);
    assert.ok(ticks >= 10, `${ticks} ticks`);
    await diad.close();
  });
});
