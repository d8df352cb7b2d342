// diad serve as a process: options, signals, several processes, TLS.
import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFile, rm, writeFile } from 'node:fs/promises';
import https from 'node:https';
import path from 'node:path';
import { sample } from '../support/server-support.js';
import {
  example,
  HANG_GUARD_MS,
  inFolder,
  publishedBundle,
  root,
  runProgram,
  until,
  withBundleCopy,
} from '../support/support.js';

const main = path.join(root, 'dist', 'cli', 'main.js');
const TOKEN = 'token-of-the-command-line';

interface Serving {
  readonly child: ChildProcess;
  readonly url: string;
  readonly exited: Promise<number | null>;
  log(): string;
}

/** Lists the server processes of a primary. */
function workersOf({ pid }: ChildProcess): number[] {
  const listed = execFileSync('ps', ['--ppid', String(pid), '-o', 'pid='], { encoding: 'utf8' });
  return listed.trim().split(/\s+/).map(Number);
}

/** Checks whether a process exists and is not a zombie. */
async function runs(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return status !== '' && !/\) Z /.test(status);
}

/** Runs `use` with a ready `diad serve` on a free port, and ends it afterwards. */
async function serving(args: readonly string[], use: (serving: Serving) => Promise<void>): Promise<void> {
  const child = spawn(process.execPath, [main, 'serve', '--port', '0', '--threads', '1', ...args], {
    cwd: root,
  });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (log += chunk));
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
  try {
    await until(() => log.includes('diad: ready\n') || child.exitCode !== null, 'ready');
    assert.equal(child.exitCode, null, log);
    const url = /diad: listening on (\S+)/.exec(log)![1]!;
    await use({ child, url, exited, log: () => log });
  } finally {
    child.kill('SIGKILL');
    await exited;
  }
}

describe('diad serve', () => {
  it('SIGTERM: answers running and waiting requests, then exits with 0', () =>
    serving(
      ['--drain', String(HANG_GUARD_MS), '--timeout', String(HANG_GUARD_MS)],
      async ({ child, url, exited }) => {
        const body = Uint8Array.from(await example('gear-good.png'));
        const answered: Response[] = [];
        const running = Array.from({ length: 24 }, async () => {
          const answer = await fetch(`${url}/v1/score`, { method: 'POST', body });
          answered.push(answer);
        });
        await Promise.race(running);
        const before = answered.length;
        assert.ok(before < running.length);
        child.kill('SIGTERM');
        await Promise.all(running);
        assert.deepEqual([...new Set(answered.map((answer) => answer.status))], [200]);
        assert.equal(answered.at(-1)!.headers.get('connection'), 'close');
        for (const answer of answered) assert.ok(((await answer.json()) as { score: number }).score > 0);
        assert.equal(await exited, 0);
      },
    ));

  it('SIGTERM while the bundle is loading: exits with 0 without output', async () => {
    const child = spawn(
      process.execPath,
      [main, 'serve', '--port', '0', '--threads', '1', '--log-level', 'silent'],
      { cwd: root },
    );
    let log = '';
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      log += chunk;
      if (log.includes('diad: listening on ')) child.kill('SIGTERM');
    });
    const [code] = (await once(child, 'close')) as [number | null];
    assert.equal(code, 0, log);
    assert.match(log, /^diad: listening on \S+\n$/);
  });

  it('a token file allows other addresses and is enforced; the log contains no token', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'tokens');
      await writeFile(file, `# of line 7\n${TOKEN}\n`);
      await serving(
        ['--host', '0.0.0.0', '--token-file', file, '--log-level', 'trace'],
        async ({ url, log }) => {
          assert.match(url, /^http:\/\/0\.0\.0\.0:\d+$/, 'the address that was bound');
          const local = url.replace('0.0.0.0', '127.0.0.1');
          assert.equal((await fetch(`${local}/v2`)).status, 401);
          assert.equal(
            (await fetch(`${local}/v2`, { headers: { authorization: `Bearer ${TOKEN}` } })).status,
            200,
          );
          assert.match(log(), /request rejected/);
          assert.doesNotMatch(log(), new RegExp(TOKEN));
        },
      );
    }));

  it('--workers: shares port and metrics, replaces a dead process, exits with 0 on SIGTERM', () =>
    serving(['--workers', '2'], async ({ child, url, exited, log }) => {
      const bytes = await example('gear-good.png');
      const alive = async (): Promise<boolean> =>
        (await fetch(`${url}/v2/health/ready`).catch(() => ({ ok: false }))).ok;
      await until(() => log().split('diad: ready\n').length >= 3, 'ready');
      for (let i = 0; i < 4; i++) {
        const answer = await fetch(`${url}/v1/score`, {
          method: 'POST',
          body: Uint8Array.from(bytes),
          headers: { connection: 'close' },
        });
        assert.equal(answer.status, 200);
      }
      const metrics = await (await fetch(`${url}/metrics`)).text();
      assert.match(metrics, /diad_http_requests_total\{[^}]*route="\/v1\/score"[^}]*code="200"[^}]*\} 4\n/);
      const workers = workersOf(child);
      assert.equal(workers.length, 2);
      process.kill(workers[0]!, 'SIGKILL');
      await until(() => log().split('diad: ready\n').length >= 4, 'ready');
      assert.match(log(), /server process \d+ ended \(SIGKILL\); starting another/);
      assert.ok(await alive());
      child.kill('SIGTERM');
      assert.equal(await exited, 0);
    }));

  it('--workers: answers 503 for incomplete metrics and continues', () =>
    serving(['--workers', '2'], async ({ child, url, exited, log }) => {
      await until(() => log().split('diad: ready\n').length >= 3, 'ready');
      const ask = (): Promise<Response> => fetch(`${url}/metrics`, { headers: { connection: 'close' } });
      const [stopped] = workersOf(child);
      process.kill(stopped!, 'SIGSTOP');
      // One of them can be assigned to the stopped process.
      const asked = [ask(), ask(), ask()];
      const first = await Promise.race(asked);
      assert.equal(first.status, 503);
      assert.match(
        await first.text(),
        /ERR_HTTP_UNAVAILABLE.*Not every server process has reported its metrics in time/,
      );
      process.kill(stopped!, 'SIGCONT');
      await Promise.all(asked);
      assert.equal((await ask()).status, 200);
      assert.match(log(), /the metrics cannot be aggregated/);
      child.kill('SIGTERM');
      assert.equal(await exited, 0);
    }));

  it('--workers: exits with 1 and leaves no process when the bundle cannot be loaded', async () => {
    const { code, stderr } = await runProgram(process.execPath, [
      main,
      'serve',
      '--workers',
      '2',
      '--port',
      '0',
      '--model',
      '/nowhere',
    ]);
    assert.equal(code, 1, stderr);
    assert.match(stderr, /ERR_DIAD_BUNDLE_NOT_FOUND/);
    const pids = [...stderr.matchAll(/"pid":(\d+)/g)].map(([, pid]) => Number(pid));
    assert.ok(pids.length > 0);
    for (const pid of pids) assert.equal(await runs(pid), false);
  });

  it('--workers: gives up after five failed loads; the others continue, and the last ends with 1', () =>
    withBundleCopy((bundle) =>
      serving(['--workers', '2', '--model', bundle], async ({ child, url, exited, log }) => {
        await until(() => log().split('diad: ready\n').length >= 3, 'ready');
        const [first, second] = workersOf(child);
        await rm(path.join(bundle, 'manifest.json'));
        process.kill(first!, 'SIGKILL');
        await until(() => log().includes('not restarting after 5 failed starts in a row'), 'given up');
        assert.equal(log().split('ended before it was ready').length - 1, 5);
        assert.equal((await fetch(`${url}/v2/health/ready`)).status, 200);
        process.kill(second!, 'SIGKILL');
        assert.equal(await exited, 1);
      }),
    ));

  it('--workers: answers running requests when the primary dies, then exits', () =>
    serving(
      [
        '--workers',
        '2',
        '--model',
        publishedBundle,
        '--drain',
        String(HANG_GUARD_MS),
        '--timeout',
        String(HANG_GUARD_MS),
      ],
      async ({ child, url, log }) => {
        await until(() => log().split('diad: ready\n').length >= 3, 'ready');
        const workers = workersOf(child);
        const body = Uint8Array.from(await example('gear-good.png'));
        let answered = false;
        const running = fetch(`${url}/v1/score?tile=32&overlap=16`, { method: 'POST', body }).finally(
          () => (answered = true),
        );
        // A request that no server process has accepted yet ends with the primary.
        const inFlight = async (): Promise<boolean> =>
          sample(await (await fetch(`${url}/metrics`)).text(), 'diad_pixels_in_flight') > 0;
        await until(async () => (await inFlight()) || answered, 'a server process scores');
        assert.equal(answered, false, 'the test needs an image that takes longer');
        child.kill('SIGKILL');
        assert.equal((await running).status, 200);
        for (const worker of workers) await until(async () => !(await runs(worker)), 'the processes end');
      },
    ));

  it('serves TLS with --tls-cert and --tls-key', () =>
    inFolder(async (folder) => {
      const [key, cert] = [path.join(folder, 'key.pem'), path.join(folder, 'cert.pem')];
      const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
      execFileSync(
        'openssl',
        [
          'req',
          '-x509',
          '-newkey',
          'rsa:2048',
          '-nodes',
          '-days',
          '1',
          '-keyout',
          key,
          '-out',
          cert,
          ...subject,
        ],
        {
          stdio: 'ignore',
        },
      );
      await serving(['--tls-cert', cert, '--tls-key', key], async ({ url }) => {
        const { port } = new URL(url);
        const ca = await readFile(cert);
        const status = await new Promise((resolve, reject) => {
          https
            .get({ host: 'localhost', port, path: '/v2/health/live', ca }, (answer) => {
              resolve([answer.statusCode, 'strict-transport-security' in answer.headers]);
            })
            .once('error', reject);
        });
        assert.deepEqual(status, [200, true]);
      });
    }));

  it('reports invalid options with exit code 1', async () => {
    for (const [args, message] of [
      [['--workers', '0'], /Expected an integer from 1 to 1024 for --workers but received 0/],
      [['--workers', '1025'], /for --workers but received 1025/],
      [
        ['--no-auth', '--token-file', 'SECURITY.md'],
        /Expected no tokens \(--token-file\) with auth: false \(--no-auth\)/,
      ],
      [
        ['--host', '0.0.0.0'],
        /Expected a loopback address, or tokens \(--token-file\), or auth: false \(--no-auth\), for host/,
      ],
      [['--token-file', '/nowhere'], /--token-file: \/nowhere cannot be read/],
      [['--tls-cert', 'x.pem'], /--tls-cert and --tls-key together/],
      [
        ['--cors-origin', 'line.example'],
        /Expected an origin like .* for corsOrigins \(--cors-origin\) but received "line\.example"/,
      ],
      [['--cors-origin', 'https://line.example/'], /Expected an origin/],
      [['--port', '99999'], /Expected an integer from 0 to 65535 for port/],
      [['--model', '/nowhere', '--port', '0'], /ERR_DIAD_BUNDLE_NOT_FOUND/],
      [['--host', '203.0.113.7', '--no-auth', '--port', '0'], /EADDRNOTAVAIL/],
    ] as const) {
      const { code, stderr } = await runProgram(process.execPath, [main, 'serve', ...args]);
      assert.equal(code, 1, args.join(' '));
      assert.match(stderr, message);
    }
  });
});
