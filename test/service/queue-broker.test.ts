// Brokers that are unreachable, reject connections or do not answer: clients fail within seconds, workers log
// and wait.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import { Redis } from 'ioredis';
import { runResults, startWorker, submitRun } from '../../lib/queue/index.js';
import { brokerProblems } from '../../lib/queue/broker.js';
import { asFile, Broker, freePort, STUB_MODEL, stubScorer, writeImages } from '../support/queue-support.js';
import { inFolder, rejects, root, runProgram } from '../support/support.js';

const PASSWORD = 'a-secret';

/**
 * Asserts that submitting and reading results both fail within seconds, with this reason and without the
 * password.
 */
async function refused(redis: string, reason: RegExp): Promise<void> {
  const ask = async (): Promise<void> => {
    for await (const result of runResults('any', { redis, wait: true })) assert.fail(result.status);
  };
  const withoutSecret = async (asked: Promise<unknown>): Promise<unknown> => {
    try {
      return await asked;
    } catch (error) {
      assert.doesNotMatch(inspect(error, { depth: 10 }), new RegExp(PASSWORD));
      throw error;
    }
  };
  const asked = [submitRun([], { redis, model: STUB_MODEL }), ask()];
  await Promise.all(asked.map((one) => rejects(withoutSecret(one), 'ERR_DIAD_BROKER_UNAVAILABLE', reason)));
}

/** A server that accepts connections and does not answer; `taken` counts them. */
async function silentServer(port: number): Promise<{ readonly taken: number; close: () => void }> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => sockets.add(socket)).listen(port, '127.0.0.1');
  await once(server, 'listening');
  const close = (): void => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  return {
    get taken() {
      return sockets.size;
    },
    close,
  };
}

describe('queue: the broker @slow', () => {
  it('names a broker that is unreachable or does not answer', async () => {
    const [port, silentPort] = [await freePort(), await freePort()];
    const silent = await silentServer(silentPort);
    await Promise.all([
      refused(
        `redis://user:${PASSWORD}@127.0.0.1:${port}`,
        new RegExp(`at 127\\.0\\.0\\.1:${port} cannot be reached: .*ECONNREFUSED`),
      ),
      refused('redis://nowhere.invalid', /at nowhere\.invalid:6379 cannot be reached: .*nowhere\.invalid/),
      refused(
        `redis://127.0.0.1:${silentPort}`,
        new RegExp(`at 127\\.0\\.0\\.1:${silentPort} does not answer`),
      ),
    ]);
    silent.close();
  });

  it('reports a wrong or missing password and an invalid database', () =>
    inFolder(async (folder) => {
      const broker = new Broker(await freePort(), folder, { requirepass: 'right' });
      await broker.start();
      const place = broker.url.replace(/.*@/, '');
      try {
        await refused(
          `redis://:${PASSWORD}@${place}`,
          new RegExp(`The broker at ${place} rejects the user or password of the URL`),
        );
        await refused(`redis://${place}`, new RegExp(`The broker at ${place} requires a password`));
        await refused(`${broker.url}/99`, /reports: ERR DB index is out of range/);
        const worker = (redis: string): Promise<unknown> =>
          startWorker({ redis, scorer: stubScorer(0), allowUnsafeBroker: true });
        await rejects(
          worker(`redis://:${PASSWORD}@${place}`),
          'ERR_DIAD_BROKER_UNAVAILABLE',
          /rejects the user or password of the URL/,
        );
        await rejects(worker(`redis://${place}`), 'ERR_DIAD_BROKER_UNAVAILABLE', /requires a password/);
        await submitRun([], { redis: broker.url, model: STUB_MODEL });
      } finally {
        await broker.kill();
      }
    }));

  it('ends the commands with the reason', async () => {
    const redis = `redis://127.0.0.1:${await freePort()}`;
    const main = path.join(root, 'dist', 'cli', 'main.js');
    const commands = [
      ['submit', 'examples/gear-good.png'],
      ['results', 'any', '--wait'],
    ];
    const ended = commands.map((args) => runProgram(process.execPath, [main, ...args, '--redis', redis]));
    for (const { code, stderr } of await Promise.all(ended)) {
      assert.equal(code, 1, stderr);
      assert.match(
        stderr,
        /^diad: ERR_DIAD_BROKER_UNAVAILABLE: The broker at 127\.0\.0\.1:\d+ cannot be reached: [^\n]*\n$/,
      );
    }
  });

  it('rejects URLs outside a list and mentions lists', async () => {
    const main = path.join(root, 'dist', 'cli', 'main.js');
    for (const address of ['https://images.example.com/a.png?b', 's3://parts/a.png']) {
      const { code, stderr } = await runProgram(process.execPath, [
        main,
        'submit',
        address,
        '--redis',
        'redis://127.0.0.1:1',
      ]);
      assert.equal(code, 1);
      assert.match(stderr, /^diad: ERR_DIAD_INVALID_ARGUMENT: .*in a file NAME\.sha256/);
    }
  });

  it('rejects invalid worker options before taking a job, and leaves nothing open', () =>
    inFolder(async (folder) => {
      const redis = `redis://127.0.0.1:${await freePort()}`; // no listener: a valid worker would wait
      const start = (options: object): Promise<unknown> =>
        startWorker({ redis, scorer: stubScorer(0), ...options });
      const root = path.join(folder, 'not-mounted');
      await rejects(
        start({ root }),
        'ERR_DIAD_INVALID_ARGUMENT',
        /Expected a folder for root but .*not-mounted is not a folder/,
      );
      await rejects(start({ concurrency: 0 }), 'ERR_DIAD_INVALID_ARGUMENT', /for concurrency/);
      await rejects(start({ lockMs: 0 }), 'ERR_DIAD_INVALID_ARGUMENT', /for lockMs/);
      await rejects(start({ maxBytes: 0 }), 'ERR_DIAD_INVALID_ARGUMENT', /for maxBytes/);
    }));

  it('a worker reports an unreachable broker once, starts when it is up, and can be closed without it', () =>
    inFolder(async (folder) => {
      const broker = new Broker(await freePort(), folder);
      const lines: string[] = [];
      const started = startWorker({
        redis: broker.url,
        scorer: stubScorer(0),
        silentMs: 2000,
        log: (line) => lines.push(line),
      });
      while (lines.length < 1) await sleep(50);
      await sleep(4000); // several attempts
      await broker.start();
      const worker = await started;
      const soFar = lines.length;
      await broker.kill();
      await sleep(5000);
      await broker.start();
      while (lines.length < soFar + 2) await sleep(50);
      await broker.kill();
      while (lines.length < soFar + 3) await sleep(50);
      await worker.close(); // ends without the broker
      await sleep(500);
      // A broker that dies with unread data resets its connections. Others close them, and only the next
      // attempt fails.
      const away =
        /^The broker at 127\.0\.0\.1:\d+ cannot be reached: .*(ECONNREFUSED|ECONNRESET|EPIPE).*; trying again$/;
      const back = /^The broker at 127\.0\.0\.1:\d+ is available again$/;
      assert.equal(lines.length, 5, lines.join('\n'));
      for (const [i, line] of lines.entries()) assert.match(line, i % 2 === 0 ? away : back);
    }));

  it('a worker finishes running jobs and closes when the broker dies or hangs meanwhile', async () => {
    const closes = async (fail: (broker: Broker) => unknown, jobs: number): Promise<void> =>
      inFolder(async (folder) => {
        const broker = new Broker(await freePort(), folder);
        await broker.start();
        const lines: string[] = [];
        let begun = 0;
        let ended = 0;
        const stub = stubScorer(1500, () => begun++);
        const score = (...args: Parameters<typeof stub.score>): ReturnType<typeof stub.score> =>
          stub.score(...args).finally(() => ended++);
        const scorer = { info: stub.info, score } as typeof stub;
        const worker = await startWorker({
          redis: broker.url,
          scorer,
          root: folder,
          log: (line) => lines.push(line),
        });
        try {
          if (jobs > 0)
            await submitRun((await writeImages(folder, jobs)).map(asFile), {
              redis: broker.url,
              model: STUB_MODEL,
            });
          while (begun < jobs) await sleep(20);
          const closed = worker.close();
          await fail(broker);
          await closed;
          assert.equal(ended, jobs);
          assert.equal(worker.completed, 0);
          await broker.kill();
          const inItsPlace = await silentServer(Number(new URL(broker.url).port));
          await sleep(3000); // longer than the interval between two attempts
          inItsPlace.close();
          assert.equal(inItsPlace.taken, 0, 'something still looks for the broker');
          assert.deepEqual(
            lines.filter((line) => !line.startsWith('The broker at')),
            [],
          );
        } finally {
          await broker.kill();
        }
      });
    const dies = (broker: Broker): Promise<void> => broker.kill();
    const silent = (broker: Broker): void => {
      broker.freeze();
    };
    await Promise.all([closes(dies, 3), closes(silent, 3), closes(dies, 0), closes(silent, 0)]);
  });

  it('a worker reports a broker that accepts connections but does not answer', () =>
    inFolder(async (folder) => {
      const port = await freePort();
      const silent = await silentServer(port);
      const broker = new Broker(port, folder);
      const lines: string[] = [];
      const started = startWorker({
        redis: broker.url,
        scorer: stubScorer(0),
        log: (line) => lines.push(line),
      });
      while (lines.length < 1) await sleep(50);
      assert.match(lines.join('\n'), /^The broker at 127\.0\.0\.1:\d+ does not answer; trying again$/);
      silent.close();
      await broker.start();
      await (await started).close();
      await broker.kill();
    }));

  it('skips the broker check only if CONFIG is forbidden', () =>
    inFolder(async (folder) => {
      const answering = (message: string): Redis =>
        ({ config: () => Promise.reject(new Error(message)) }) as unknown as Redis;
      for (const forbidden of [
        "NOPERM User worker has no permissions to run the 'config|get' command",
        "ERR unknown command 'CONFIG', with args beginning with: 'GET'",
        "ERR Command is not available: 'CONFIG'",
      ]) {
        assert.deepEqual(await brokerProblems(answering(forbidden)), []);
      }
      for (const other of [
        'WRONGPASS invalid username-password pair',
        'NOAUTH Authentication required.',
        'Connection is closed.',
      ]) {
        await assert.rejects(brokerProblems(answering(other)), new RegExp(other));
      }
      const broker = new Broker(await freePort(), folder, { appendonly: 'no' });
      await broker.start();
      const admin = new Redis(broker.url);
      await admin.call('ACL', 'SETUSER', 'worker', 'on', '>right', '~*', '&*', '+@all', '-config');
      try {
        await rejects(
          startWorker({ redis: broker.url, scorer: stubScorer(0) }),
          'ERR_DIAD_INVALID_ARGUMENT',
          /appendonly is no/,
        );
        const limited = await startWorker({
          redis: broker.url.replace('//', '//worker:right@'),
          scorer: stubScorer(0),
        });
        await limited.close();
      } finally {
        admin.disconnect();
        await broker.kill();
      }
    }));
});
