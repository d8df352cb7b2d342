// Stored results of runs: by precision, thresholds and class; lifetime of results and runs.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue } from 'bullmq';
import { Redis } from 'ioredis';
import { classOfPath } from '../../lib/calibration/class-of-path.js';
import { Diad } from '../../lib/index.js';
import {
  queueName,
  runProgress,
  startWorker,
  submitRun,
  type RunResult,
  type Submission,
  type WorkerOptions,
  type WorkerScorer,
} from '../../lib/queue/index.js';
import { classPath, sha256, type Reference } from '../../lib/queue/reference.js';
import {
  asFile,
  Broker,
  collect,
  freePort,
  STUB_MODEL,
  stubScore,
  stubScorer,
  writeImages,
} from '../support/queue-support.js';
import { example, inFolder, root as projectRoot, runProgram, withBundleCopy } from '../support/support.js';

/** A stub with a threshold and a configurable precision. */
function judge(precision: string, threshold: number, onScore: () => void): WorkerScorer {
  const { info } = stubScorer(0);
  const score = (image: Uint8Array): Promise<unknown> => {
    onScore();
    const its = stubScore(image);
    return Promise.resolve({ score: its, threshold, anomalous: its > threshold });
  };
  return {
    info: { ...info, precision, bundle: { ...info.bundle, threshold } },
    score,
  } as unknown as WorkerScorer;
}

const verdicts = (results: readonly RunResult[]): unknown[] =>
  results.map((one) => (one.status === 'done' ? [one.threshold, one.anomalous, one.className] : one.status));

describe('queue: results @slow', () => {
  let folder: string;
  let broker: Broker;
  let redis: Redis;
  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'diad-results-'));
    broker = new Broker(await freePort(), folder);
    await broker.start();
    redis = new Redis(broker.url);
  });
  after(async () => {
    redis.disconnect();
    await broker.kill();
    await rm(folder, { recursive: true, force: true });
  });
  beforeEach(() => redis.flushall());

  async function working<T>(options: Partial<WorkerOptions>, use: () => Promise<T>): Promise<T> {
    const worker = await startWorker({ redis: broker.url, scorer: stubScorer(0), ...options });
    try {
      return await use();
    } finally {
      await worker.close();
    }
  }
  const score = async (submissions: Submission[], model = STUB_MODEL): Promise<RunResult[]> =>
    collect(await submitRun(submissions, { redis: broker.url, model }), broker.url);

  it('stores separate results per precision and threshold, and reuses equal ones', () =>
    inFolder(async (root) => {
      const images = (await writeImages(root, 3)).map(asFile);
      let computed = 0;
      const by = (precision: string, threshold: number): Promise<RunResult[]> =>
        working({ root, scorer: judge(precision, threshold, () => computed++) }, () => score(images));
      for (const [precision, threshold, after] of [
        ['float32', -1, 3],
        ['bfloat16', -1, 6],
        ['float32', 2, 9],
        ['float32', -1, 9],
        ['bfloat16', -1, 9],
      ] as const) {
        const results = await by(precision, threshold);
        for (const one of results) {
          assert.ok(one.status === 'done');
          assert.deepEqual(
            [one.precision, one.threshold, one.anomalous],
            [precision, threshold, threshold < 0],
          );
        }
        assert.equal(computed, after, `${precision}, ${threshold}`);
      }
    }));

  it('two workers of different precision: each result names its precision', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 40);
      const slow = (precision: string): WorkerScorer => {
        const { info, score: its } = stubScorer(20);
        return { info: { ...info, precision }, score: its };
      };
      const results = await working({ root, scorer: slow('float32'), concurrency: 1 }, () =>
        working({ root, scorer: slow('bfloat16'), concurrency: 1 }, () => score(images.map(asFile))),
      );
      assert.deepEqual(
        new Set(results.map((one) => one.status === 'done' && one.precision)),
        new Set(['float32', 'bfloat16']),
      );
    }));

  it('uses and reports class thresholds for images below the folder of the class', () =>
    withBundleCopy((bundle) =>
      inFolder(async (root) => {
        const bytes = await example('gear-good.png');
        const digest = sha256(bytes);
        for (const name of ['gear', 'other']) {
          await mkdir(path.join(root, name));
          await writeFile(path.join(root, name, 'a.png'), bytes);
        }
        const server = http.createServer((_request, answer) => answer.end(bytes)).listen(0, '127.0.0.1');
        await once(server, 'listening');
        const url = `http://127.0.0.1:${(server.address() as { port: number }).port}/line/gear/a.png`;
        const policy = { root, hosts: ['127.0.0.1'], privateHosts: ['127.0.0.1'] };
        const submissions = [
          ...['gear/a.png', 'other/a.png'].map((file) => asFile({ file, sha256: digest })),
          { file: 'url', sha256: digest, reference: { kind: 'url', url } as const },
        ];
        const judged = async (calibration: object): Promise<unknown[]> => {
          await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify(calibration));
          const diad = await Diad.load(bundle, { threads: 1 });
          try {
            return await working({ ...policy, scorer: diad }, async () =>
              verdicts(await score(submissions, diad.info.bundle.digest)),
            );
          } finally {
            await diad.close();
          }
        };
        const kept = async (): Promise<number> => (await redis.keys('diad:result:*')).length;
        const [gear, other] = [
          [0, true, 'gear'],
          [1000, false, undefined],
        ];
        const calibration = { threshold: 1000, classes: { gear: { threshold: 0 } } };
        assert.deepEqual(await judged(calibration), [gear, other, gear]);
        assert.equal(await kept(), 2);
        // Fields that do not affect the verdict do not affect the key.
        assert.deepEqual(await judged({ ...calibration, createdAt: new Date().toISOString(), images: 200 }), [
          gear,
          other,
          gear,
        ]);
        assert.equal(await kept(), 2);
        assert.deepEqual(await judged({ threshold: 1000, classes: { gear: { threshold: 999 } } }), [
          [999, false, 'gear'],
          other,
          [999, false, 'gear'],
        ]);
        assert.equal(await kept(), 3);
        server.close();
      }),
    ));

  it('determines the folders that can name a class', () => {
    const cases: [Reference, string | undefined][] = [
      [{ kind: 'file', path: 'gear/good/1.png' }, 'gear'],
      [{ kind: 'file', path: 'screw/gear/1.png' }, 'gear'],
      [{ kind: 'file', path: '1.png' }, 'screw'], // of the root
      [{ kind: 'file', path: 'gear.png' }, 'screw'],
      [{ kind: 'url', url: 'https://gear.example/a/screw/1.png?gear/' }, 'screw'],
      [{ kind: 'url', url: 'https://x.example/hex%20nut/1.png' }, 'hex nut'],
      [{ kind: 'url', url: 'https://x.example/gear/%zz.png' }, 'gear'],
      [{ kind: 'url', url: 'https://x.example/gear' }, undefined],
      [{ kind: 's3', bucket: 'gear', key: 'screw/1.png' }, 'screw'],
      [{ kind: 's3', bucket: 'gear', key: '1.png' }, undefined],
      [{ kind: 'inline', base64: '' }, 'hex nut'],
    ];
    for (const [reference, expected] of cases) {
      const found = classOfPath(classPath(reference, 'hex nut/7', '/data/screw'), [
        'gear',
        'screw',
        'hex nut',
      ]);
      assert.equal(found, expected, JSON.stringify(reference));
    }
  });

  it('ends the wait for expired results with a separate exit code', () =>
    inFolder(async (root) => {
      const images = (await writeImages(root, 2)).map(asFile);
      await working({ root, keepSeconds: 60 }, async () => {
        const run = await submitRun(images, { redis: broker.url, model: STUB_MODEL });
        assert.deepEqual(
          (await collect(run, broker.url)).map(({ status }) => status),
          ['done', 'done'],
        );
        const keys = await redis.keys('diad:result:*');
        assert.equal(keys.length, 2);
        for (const key of keys) {
          const seconds = await redis.ttl(key);
          assert.ok(seconds > 0 && seconds <= 60, `${seconds} s`);
          await redis.pexpire(key, 1); // as if a minute had passed
        }
        while ((await redis.exists(keys)) > 0) await sleep(5);
        assert.deepEqual(
          await collect(run, broker.url),
          images.map(({ file, sha256: digest }) => ({ file, sha256: digest, status: 'expired' })),
        );
        assert.deepEqual(await runProgress(run, broker.url), { done: 0, failed: 0, waiting: 0, expired: 2 });
        const cli = [
          path.join(projectRoot, 'dist', 'cli', 'main.js'),
          'results',
          run,
          '--redis',
          broker.url,
          '--wait',
        ];
        const { code, stdout } = await runProgram(process.execPath, cli);
        assert.equal(stdout, 'expired  0000.png\nexpired  0001.png\n');
        assert.equal(code, 3);
        // The image can be submitted again.
        assert.deepEqual(
          (await score(images)).map(({ status }) => status),
          ['done', 'done'],
        );
      });
    }));

  it('expires a run after its last result, and only when all its images have ended', () =>
    inFolder(async (root) => {
      const images = (await writeImages(root, 3)).map(asFile);
      const gone = {
        file: 'gone',
        sha256: sha256('gone'),
        reference: { kind: 'file', path: 'gone.png' } as const,
      };
      const left = async (run: string): Promise<number[]> => {
        const keys = (await redis.keys(`diad:run:${run}*`)).sort();
        assert.equal(keys.length, 3, keys.join());
        return Promise.all(keys.map((key) => redis.ttl(key)));
      };
      const stub = stubScorer(0);
      let [scored, release] = [0, (): void => undefined];
      const released = new Promise<void>((resolve) => (release = resolve));
      const scorer: WorkerScorer = {
        ...stub,
        score: async (image) => {
          if (++scored === 3) await released;
          return stub.score(image);
        },
      };
      await working({ root, scorer, keepSeconds: 600 }, async () => {
        const run = await submitRun([...images, gone], { redis: broker.url, model: STUB_MODEL });
        while ((await redis.hlen(`diad:run:${run}:ended`)) < 3) await sleep(20);
        assert.deepEqual(await left(run), [-1, -1, -1]);
        release();
        while ((await left(run)).includes(-1)) await sleep(20);
        for (const seconds of await left(run)) assert.ok(seconds > 600 + 3600, String(seconds));
        assert.deepEqual(await runProgress(run, broker.url), { done: 3, failed: 1, waiting: 0, expired: 0 });
      });
      // An existing result lives as long as a new one would; a run as long as the longest lifetime of its
      // workers.
      await working({ root, keepSeconds: 6000 }, async () => {
        const run = await submitRun(images, { redis: broker.url, model: STUB_MODEL });
        await collect(run, broker.url);
        const [key] = await redis.keys('diad:result:*');
        assert.ok((await redis.ttl(key!)) > 600);
        for (const seconds of await left(run)) assert.ok(seconds > 6000, String(seconds));
      });
      await working({ root }, async () => {
        const run = await submitRun(images, { redis: broker.url, model: STUB_MODEL });
        await collect(run, broker.url);
        for (const key of await redis.keys('diad:result:*')) assert.equal(await redis.ttl(key), -1);
        assert.deepEqual(await left(run), [-1, -1, -1]);
      });
    }));

  it('removes failed jobs a day after the lifetime of results; keeps them without --keep', () =>
    inFolder(async (root) => {
      const failed = `bull:${queueName(STUB_MODEL)}:failed`;
      const missing = (name: string): Submission => ({
        file: name,
        sha256: sha256(name),
        reference: { kind: 'file', path: '/etc/hostname' },
      });
      for (const [keepSeconds, left] of [
        [0, 2],
        [60, 1],
      ] as const) {
        await redis.flushall();
        await working({ root, keepSeconds }, async () => {
          await score([missing('old')]);
          const [old] = await redis.zrange(failed, '0', '-1');
          await redis.zadd(failed, String(Date.now() - 86_400_000 - 61_000), old!);
          assert.equal((await score([missing('new')]))[0]!.status, 'failed');
          assert.equal(await redis.zcard(failed), left);
        });
      }
    }));

  it('does not append twice when a command is sent again after a lost answer', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 20);
      let cut = 0;
      // A proxy between submitRun and the broker: forwards an appending script and closes the connection
      // before its answer.
      const between = net.createServer((client) => {
        const server = net.connect(Number(new URL(broker.url).port), '127.0.0.1');
        let losing = false;
        client.on('data', (sent) => {
          losing ||= cut === 0 && /rpush/i.test(sent.toString());
          server.write(sent);
        });
        server.on('data', (answer) => {
          if (!losing) client.write(answer);
        });
        const appended = setInterval(() => {
          if (losing)
            void redis.keys('diad:run:*:items').then(({ length }) => {
              if (length === 0 || client.destroyed) return;
              cut++;
              client.destroy();
            });
        }, 20);
        client.once('close', () => {
          clearInterval(appended);
        });
        for (const [one, other] of [
          [client, server],
          [server, client],
        ] as const) {
          one.on('error', () => undefined).on('close', () => other.destroy());
        }
      });
      await once(between.listen(0, '127.0.0.1'), 'listening');
      try {
        const url = `redis://127.0.0.1:${(between.address() as net.AddressInfo).port}`;
        const run = await submitRun(images.map(asFile), { redis: url, model: STUB_MODEL });
        assert.equal(cut, 1);
        const results = await working({ root }, () => collect(run, broker.url));
        assert.deepEqual(
          results.map((one) => [one.file, one.status === 'done' && one.score]),
          images.map(({ file, bytes }) => [file, stubScore(bytes)]),
        );
      } finally {
        between.close();
      }
    }));

  it('does not wait for an image whose job was removed', () =>
    inFolder(async (root) => {
      const run = await submitRun((await writeImages(root, 1)).map(asFile), {
        redis: broker.url,
        model: STUB_MODEL,
      });
      const connection = new Redis(broker.url, { maxRetriesPerRequest: null });
      const queue = new Queue(queueName(STUB_MODEL), { connection });
      await queue.remove(`${run}-0`);
      await queue.close();
      connection.disconnect();
      const [result] = await collect(run, broker.url);
      assert.ok(result?.status === 'failed');
      assert.match(result.error, /no longer has a job or result/);
    }));
});
