// Runs over BullMQ and a real Redis: results, rejections, retries, killed workers, a restarted broker.
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue } from 'bullmq';
import { Redis } from 'ioredis';
import { Diad } from '../../lib/index.js';
import {
  deadLetterName,
  runProgress,
  runResults,
  startWorker,
  submitRun,
  type QueueWorker,
  type RunResult,
  type Submission,
  type WorkerOptions,
} from '../../lib/queue/index.js';
import { sha256 } from '../../lib/queue/reference.js';
import {
  asFile,
  Broker,
  collect,
  freePort,
  STUB_MODEL,
  startWorkerProcess,
  stubInfo,
  stubScore,
  stubScorer,
  writeImages,
} from '../support/queue-support.js';
import { example, inFolder, rejects, root as projectRoot, runProgram } from '../support/support.js';

const scores = (results: readonly RunResult[]): (number | string)[] =>
  results.map((one) => (one.status === 'done' ? one.score : one.status));

describe('queue @slow', () => {
  let folder: string;
  let broker: Broker;
  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'diad-queue-'));
    broker = new Broker(await freePort(), folder);
    await broker.start();
  });
  after(async () => {
    await broker.kill();
    await rm(folder, { recursive: true, force: true });
  });

  async function withWorker(
    options: Partial<WorkerOptions>,
    use: (worker: QueueWorker) => Promise<void>,
  ): Promise<void> {
    const worker = await startWorker({ redis: broker.url, scorer: stubScorer(5), ...options });
    try {
      await use(worker);
    } finally {
      await worker.close();
    }
  }

  it('returns a result per image in order, and computes nothing for a repeated run', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 12);
      let computed = 0;
      const scorer = stubScorer(5, () => computed++);
      await withWorker({ root, scorer }, async () => {
        const submit = (): Promise<string> =>
          submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 1 });
        const results = await collect(await submit(), broker.url);
        assert.deepEqual(
          results,
          images.map(({ file, sha256: digest, bytes }) => ({
            file,
            sha256: digest,
            status: 'done',
            score: stubScore(bytes),
            seed: 1,
            model: STUB_MODEL,
            precision: 'float32',
          })),
        );
        assert.equal(computed, 12);
        const again = await submit();
        assert.deepEqual(await collect(again, broker.url), results);
        assert.equal(computed, 12);
        assert.deepEqual(await runProgress(again, broker.url), {
          done: 12,
          failed: 0,
          waiting: 0,
          expired: 0,
        });
      });
    }));

  it('reports missing results as waiting, and an unknown run as an error', () =>
    inFolder(async (root) => {
      const run = await submitRun((await writeImages(root, 3)).map(asFile), {
        redis: broker.url,
        model: 'cd'.repeat(32),
      });
      assert.deepEqual(await runProgress(run, broker.url), { done: 0, failed: 0, waiting: 3, expired: 0 });
      await rejects(collect('no-such-run', broker.url), 'ERR_DIAD_INVALID_ARGUMENT', /no run no-such-run/);
    }));

  it('runs priority 1 before 9', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 8);
      const model = STUB_MODEL;
      const order: number[] = [];
      const late = await submitRun(images.slice(0, 4).map(asFile), {
        redis: broker.url,
        model,
        seed: 70,
        priority: 9,
      });
      const soon = await submitRun(images.slice(4).map(asFile), {
        redis: broker.url,
        model,
        seed: 70,
        priority: 1,
      });
      const base = stubScorer(5);
      const scorer = {
        ...base,
        score: (image: Uint8Array) => {
          order.push(images.findIndex(({ bytes }) => bytes.equals(image)));
          return base.score(image);
        },
      };
      await withWorker({ root, scorer, concurrency: 1 }, async () => {
        await Promise.all([collect(late, broker.url), collect(soon, broker.url)]);
      });
      assert.deepEqual(
        order.slice(0, 4).every((i) => i >= 4),
        true,
        order.join(),
      );
    }));

  it('fails forbidden and unreadable images immediately with a reason in the dead letters', () =>
    inFolder(async (root) => {
      const [image] = await writeImages(root, 1);
      const { sha256: digest, bytes } = image!;
      await symlink('/etc/hostname', path.join(root, 'link.png'));
      const redirecting = http.createServer((request, answer) => {
        const location =
          request.url === '/private'
            ? 'http://169.254.169.254/latest'
            : request.url === '/loop'
              ? '/loop'
              : undefined;
        answer
          .writeHead(location === undefined ? 404 : 302, location === undefined ? {} : { location })
          .end();
      });
      redirecting.listen(0, '127.0.0.1');
      await once(redirecting, 'listening');
      const local = `http://localhost:${(redirecting.address() as { port: number }).port}`;
      const cases: [Submission['reference'], string, RegExp][] = [
        [{ kind: 'file', path: '../../etc/passwd' }, digest, /outside the allowed root|not found/],
        [{ kind: 'file', path: '/etc/hostname' }, digest, /outside the allowed root/],
        [{ kind: 'file', path: 'link.png' }, digest, /outside the allowed root/],
        [{ kind: 'file', path: '0000.png' }, sha256('other'), /differs from the submitted one/],
        [{ kind: 'url', url: 'https://evil.example/x.png' }, digest, /host evil\.example is not allowed/],
        [{ kind: 'url', url: 'ftp://localhost/x.png' }, digest, /ftp: is not supported/],
        [{ kind: 'url', url: 'http://127.0.0.1:1/x.png' }, digest, /private address/],
        [{ kind: 'url', url: 'http://[::ffff:10.0.0.1]/x.png' }, digest, /private address|not allowed/],
        [{ kind: 'url', url: `${local}/private` }, digest, /169\.254\.169\.254 is not allowed/],
        [{ kind: 'url', url: `${local}/loop` }, digest, /redirects more than 3 times/],
        [{ kind: 'url', url: `${local}/gone` }, digest, /responded with 404/],
        [{ kind: 's3', bucket: 'other', key: 'x' }, digest, /bucket other is not allowed/],
      ];
      const policy = { hosts: ['localhost', '127.0.0.1'], privateHosts: ['localhost'], buckets: ['line-7'] };
      await withWorker({ root, ...policy }, async () => {
        const submissions = cases.map(([reference, hash], i) => ({
          file: `case ${i}`,
          sha256: hash,
          reference,
        }));
        const results = await collect(
          await submitRun(submissions, { redis: broker.url, model: STUB_MODEL, seed: 2 }),
          broker.url,
        );
        for (const [i, [, , message]] of cases.entries()) {
          const result = results[i]!;
          assert.ok(result.status === 'failed', `case ${i}: ${result.status}`);
          assert.match(result.error, message, `case ${i}: ${result.error}`);
        }
        // An allowed host with a private address.
        const byName = {
          file: 'name',
          sha256: digest,
          reference: { kind: 'url', url: 'http://localhost:1/x.png' } as const,
        };
        await withWorker(
          {
            root,
            hosts: ['localhost'],
            scorer: { ...stubScorer(0), info: stubInfo('ef'.repeat(32)) } as WorkerOptions['scorer'],
          },
          async () => {
            const [only] = await collect(
              await submitRun([byName], { redis: broker.url, model: 'ef'.repeat(32) }),
              broker.url,
            );
            assert.ok(only?.status === 'failed');
            assert.match(only.error, /localhost resolves to the private address/);
          },
        );
        const inline = {
          file: 'inline',
          sha256: digest,
          reference: { kind: 'inline', base64: bytes.toString('base64') } as const,
        };
        assert.deepEqual(
          scores(
            await collect(
              await submitRun([inline], { redis: broker.url, model: STUB_MODEL, seed: 3 }),
              broker.url,
            ),
          ),
          [stubScore(bytes)],
        );
      });
      redirecting.close();
      const connection = new Redis(broker.url, { maxRetriesPerRequest: null });
      const dead = new Queue(deadLetterName(STUB_MODEL), { connection });
      const letters = await dead.getJobs();
      assert.equal(letters.length, cases.length);
      assert.ok(letters.every(({ data }) => typeof (data as { reason: unknown }).reason === 'string'));
      await dead.close();
      connection.disconnect();
    }));

  it('has the reason of a job that fails while its result is read', () =>
    inFolder(async (root) => {
      const submission = {
        file: 'outside',
        sha256: sha256('outside'),
        reference: { kind: 'file', path: '/etc/hostname' } as const,
      };
      await withWorker({ root }, async () => {
        for (let i = 0; i < 40; i++) {
          const run = await submitRun([submission], { redis: broker.url, model: STUB_MODEL, seed: 8 });
          let result: RunResult | undefined;
          while (result?.status !== 'failed') {
            for await (const one of runResults(run, { redis: broker.url })) result = one;
            if (result?.status === 'failed') assert.match(result.error, /outside the allowed root/);
          }
        }
      });
    }));

  it('retries a missing file, and names one that never appears', () =>
    inFolder(async (root) => {
      const [image] = await writeImages(root, 1);
      const late = {
        file: 'late',
        sha256: image!.sha256,
        reference: { kind: 'file', path: 'late.png' } as const,
      };
      const never = {
        file: 'never',
        sha256: sha256('never'),
        reference: { kind: 'file', path: 'never.png' } as const,
      };
      await withWorker({ root }, async () => {
        const run = await submitRun([late, never], {
          redis: broker.url,
          model: STUB_MODEL,
          seed: 12,
          attempts: 3,
        });
        await new Promise((resolve) => setTimeout(resolve, 300)); // the first attempt is over
        await writeFile(path.join(root, 'late.png'), image!.bytes);
        const [came, missing] = await collect(run, broker.url);
        assert.equal(came!.status, 'done');
        assert.ok(missing!.status === 'failed');
        assert.match(missing!.error, /never\.png not found/);
      });
    }));

  it('retries a temporary failure', () =>
    inFolder(async (root) => {
      const [image] = await writeImages(root, 1);
      let asked = 0;
      const flaky = http.createServer((_request, answer) => {
        asked++;
        if (asked < 3) answer.writeHead(503).end();
        else answer.end(image!.bytes);
      });
      flaky.listen(0, '127.0.0.1');
      await once(flaky, 'listening');
      const url = `http://127.0.0.1:${(flaky.address() as { port: number }).port}/x.png`;
      await withWorker({ hosts: ['127.0.0.1'], privateHosts: ['127.0.0.1'] }, async () => {
        const submission = { file: url, sha256: image!.sha256, reference: { kind: 'url', url } as const };
        const run = await submitRun([submission], { redis: broker.url, model: STUB_MODEL, seed: 4 });
        assert.deepEqual(scores(await collect(run, broker.url)), [stubScore(image!.bytes)]);
        assert.equal(asked, 3);
      });
      flaky.close();
    }));

  it('rejects invalid submissions immediately', async () => {
    const submit = (submission: Submission): Promise<string> =>
      submitRun([submission], { redis: broker.url, model: STUB_MODEL });
    const reference = { kind: 'file', path: 'x.png' } as const;
    await rejects(submit({ file: 'x', sha256: 'short', reference }), 'ERR_DIAD_INVALID_ARGUMENT', /SHA-256/);
    const large = { kind: 'inline', base64: Buffer.alloc(65 * 1024).toString('base64') } as const;
    await rejects(
      submit({ file: 'x', sha256: 'a'.repeat(64), reference: large }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /65536 bytes/,
    );
    await rejects(
      submitRun([], { redis: 'http://x', model: STUB_MODEL }),
      'ERR_DIAD_INVALID_ARGUMENT',
      /redis:\/\//,
    );
    for (const [wrong, message] of [
      [null, /an object for a submission but received null/],
      [{ sha256: 'a'.repeat(64), reference }, /for file but received undefined/],
      [{ file: 'x', sha256: 'a'.repeat(64) }, /for x: reference but received undefined/],
      [
        { file: 'x', sha256: 'a'.repeat(64), reference: { kind: 'ftp' } },
        /of the kind file, url, s3 or inline for x: reference/,
      ],
      [{ file: 'x', reference }, /SHA-256 in hex but received "undefined"/],
    ] as const) {
      await rejects(submit(wrong as unknown as Submission), 'ERR_DIAD_INVALID_ARGUMENT', message);
    }
  });

  it('rejects an invalid priority, seed or number of attempts before writing anything', async () => {
    const redis = new Redis(broker.url);
    const before = await redis.dbsize();
    const submission = {
      file: 'x',
      sha256: 'a'.repeat(64),
      reference: { kind: 'file', path: 'x.png' },
    } as const;
    for (const wrong of [
      { priority: 3_000_000 },
      { priority: 2 ** 21 },
      { priority: -1 },
      { priority: 1.5 },
      { seed: -1 },
      { attempts: 0 },
    ]) {
      const [name] = Object.keys(wrong);
      const submitted = submitRun([submission], { redis: broker.url, model: 'cd'.repeat(32), ...wrong });
      await rejects(
        submitted,
        'ERR_DIAD_INVALID_ARGUMENT',
        new RegExp(`Expected an integer from \\d+ to \\d+ for ${name} but received`),
      );
    }
    assert.equal(await redis.dbsize(), before);
    await submitRun([submission], { redis: broker.url, model: 'cd'.repeat(32), priority: 2 ** 21 - 1 });
    redis.disconnect();
  });

  it('rejects a broker with eviction or without append-only file unless allowed', () =>
    inFolder(async (data) => {
      const unsafe = new Broker(await freePort(), data, {
        appendonly: 'no',
        'maxmemory-policy': 'allkeys-lru',
      });
      await unsafe.start();
      try {
        const options = { redis: unsafe.url, scorer: stubScorer(0) };
        await rejects(
          startWorker(options),
          'ERR_DIAD_INVALID_ARGUMENT',
          /allkeys-lru: set it to noeviction.*appendonly is no/,
        );
        const lines: string[] = [];
        const worker = await startWorker({
          ...options,
          allowUnsafeBroker: true,
          log: (line) => lines.push(line),
        });
        await worker.close();
        assert.equal(lines.length, 2);
      } finally {
        await unsafe.kill();
      }
    }));

  it('has one result per image after workers were killed with SIGKILL, as in an undisturbed run', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 80);
      const options = { delayMs: 100, lockMs: 1000, maxStalls: 20 };
      const workers: ChildProcess[] = await Promise.all(
        [1, 2].map(() => startWorkerProcess(broker.url, root, options)),
      );
      const run = await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 5 });
      for (let kills = 0; kills < 3; kills++) {
        await sleep(150);
        workers.shift()!.kill('SIGKILL');
        workers.push(await startWorkerProcess(broker.url, root, options));
      }
      assert.deepEqual(
        scores(await collect(run, broker.url)),
        images.map(({ bytes }) => stubScore(bytes)),
      );
      for (const worker of workers) worker.kill('SIGKILL');
    }));

  it('moves a job whose worker dies twice to the dead letters', () =>
    inFolder(async (root) => {
      const [image] = await writeImages(root, 1);
      const options = { delayMs: 60_000, lockMs: 1000, maxStalls: 1 };
      const run = await submitRun([asFile(image!)], { redis: broker.url, model: STUB_MODEL, seed: 6 });
      const connection = new Redis(broker.url, { maxRetriesPerRequest: null });
      const queue = new Queue(`diad-${STUB_MODEL.slice(0, 16)}`, { connection });
      for (let deaths = 0; deaths < 2; deaths++) {
        const doomed = await startWorkerProcess(broker.url, root, options);
        while (((await queue.getJob(`${run}-0`))?.attemptsStarted ?? 0) <= deaths) await sleep(50);
        doomed.kill('SIGKILL');
        await once(doomed, 'exit');
      }
      await withWorker({ root, lockMs: 1000, maxStalls: 1 }, async () => {
        const [result] = await collect(run, broker.url);
        assert.ok(result?.status === 'failed');
        assert.match(result.error, /stalled more than allowable limit/);
      });
      await queue.close();
      connection.disconnect();
    }));

  it('completes all jobs after the broker was killed and restarted', () =>
    inFolder(async (root) => {
      const images = await writeImages(root, 60);
      await withWorker(
        { root, scorer: stubScorer(150), concurrency: 4, lockMs: 2000, silentMs: 2000, maxStalls: 5 },
        async (worker) => {
          const run = await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 7 });
          while (worker.completed < 10) await sleep(20);
          await broker.kill();
          await sleep(500);
          await broker.start();
          assert.deepEqual(
            scores(await collect(run, broker.url)),
            images.map(({ bytes }) => stubScore(bytes)),
          );
        },
      );
    }));

  it('diad submit: reads escaped names in sha256sum files, and rejects an empty list', () =>
    inFolder(async (root) => {
      const main = path.join(projectRoot, 'dist', 'cli', 'main.js');
      const bytes = await example('gear-good.png');
      const name = 'two\nlines\\and a back\rslash.png';
      await writeFile(path.join(root, name), bytes);
      const list = path.join(root, 'list.sha256');
      const { stdout: sums } = await runProgram('sha256sum', [name], {}, root);
      await writeFile(list, sums);
      assert.equal(sums[0], '\\');
      const submitted = await runProgram(process.execPath, [
        main,
        'submit',
        list,
        '--root',
        root,
        '--redis',
        broker.url,
      ]);
      assert.equal(submitted.code, 0, submitted.stderr);
      for await (const { file, sha256: digest } of runResults(submitted.stdout.trim(), {
        redis: broker.url,
      })) {
        assert.deepEqual([file, digest], [name, sha256(bytes)]);
      }
      await writeFile(list, '\n');
      const nothing = await runProgram(process.execPath, [
        main,
        'submit',
        list,
        '--root',
        root,
        '--redis',
        broker.url,
      ]);
      assert.deepEqual([nothing.code, nothing.stdout], [1, '']);
      assert.match(nothing.stderr, /Expected images in .*list\.sha256 but found none/);
    }));

  it('diad submit, worker, results: return the scores of the base bundle', () =>
    inFolder(async (root) => {
      const main = path.join(projectRoot, 'dist', 'cli', 'main.js');
      const names = ['gear-good.png', 'capsule-crack.jpg'];
      for (const name of names) await writeFile(path.join(root, name), await example(name));
      await writeFile(path.join(root, 'list.sha256'), `${sha256('x')}  missing.png\n`);
      const cli = (...args: string[]) => runProgram(process.execPath, [main, ...args]);
      const submitted = await cli(
        'submit',
        ...names.map((name) => path.join(root, name)),
        path.join(root, 'list.sha256'),
        '--root',
        root,
        '--redis',
        broker.url,
      );
      assert.equal(submitted.code, 0, submitted.stderr);
      const run = submitted.stdout.trim();
      assert.equal((await cli('results', run, '--redis', broker.url)).code, 2, 'waiting');
      const { spawn } = await import('node:child_process');
      const working = spawn(process.execPath, [
        main,
        'worker',
        '--redis',
        broker.url,
        '--root',
        root,
        '--threads',
        '1',
      ]);
      const ended = once(working, 'exit');
      const { code, stdout } = await cli('results', run, '--redis', broker.url, '--wait', '--json');
      working.kill('SIGTERM');
      assert.deepEqual(await ended, [0, null]);
      assert.equal(code, 1, 'one failed');
      const rows = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as RunResult);
      const diad = await Diad.load(undefined, { threads: 1 });
      for (const [i, name] of names.entries()) {
        const row = rows[i]!;
        assert.ok(row.status === 'done');
        assert.equal(row.file, name);
        assert.ok(Math.abs(row.score - (await diad.score(await example(name))).score) < 1e-4);
        assert.equal(row.model, diad.info.bundle.digest);
      }
      assert.equal(rows[2]!.status, 'failed');
      await diad.close();
    }));
});
