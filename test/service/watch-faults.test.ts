// diad watch: large journals and result files, full disks, unavailable receivers and shares.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import fs from 'node:fs';
import {
  appendFile,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
  type FileHandle,
} from 'node:fs/promises';
import http from 'node:http';
import { syncBuiltinESMExports } from 'node:module';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { identify } from '../../lib/watch/done.js';
import { jsonlSink, mqttSink, webhookSink, type Sink, type WatchEvent } from '../../lib/watch/index.js';
import { shownAddress } from '../../lib/watch/sinks.js';
import { freePort, stubScorer, writeImages } from '../support/queue-support.js';
import { inFolder, rejects } from '../support/support.js';
import { collecting, eventsIn, journalOf, lines, until, watching } from '../support/watch-support.js';

/**
 * Creates a file longer than the longest string: a hole without disk space, read as zeros, then these lines.
 */
async function afterHole(file: string, ...entries: object[]): Promise<void> {
  await writeFile(file, '');
  await truncate(file, 600 * 2 ** 20);
  await appendFile(file, `\n${entries.map((entry) => `${JSON.stringify(entry)}\n`).join('')}`);
}

const eventOf = (file: string, id: string): WatchEvent => ({
  id,
  file,
  time: '2026-01-01T00:00:00.000Z',
  score: 1,
});

/** A receiver that is unavailable until released. */
function away(name: string): Sink & { events: WatchEvent[]; here: boolean } {
  const sink = {
    ...collecting(),
    name,
    here: false,
    send: (event: WatchEvent): Promise<void> => {
      if (!sink.here) return Promise.reject(new Error('away'));
      sink.events.push(event);
      return Promise.resolve();
    },
  };
  return sink;
}

/** Replaces functions of a module or prototype while `use` runs. */
async function replacing(
  target: object,
  functions: Readonly<Record<string, unknown>>,
  use: () => Promise<void>,
): Promise<void> {
  const kept = Object.fromEntries(
    Object.keys(functions).map((name) => [name, (target as Record<string, unknown>)[name]]),
  );
  Object.assign(target, functions);
  syncBuiltinESMExports();
  try {
    await use();
  } finally {
    Object.assign(target, kept);
    syncBuiltinESMExports();
  }
}

const failure = (code: string): Error => Object.assign(new Error(`${code}: as the test has it`), { code });

async function listening(
  answer: (event: WatchEvent, request: http.IncomingMessage) => number,
  use: (port: number) => Promise<void>,
): Promise<void> {
  const server = http.createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    request.once('end', () => response.writeHead(answer(JSON.parse(body) as WatchEvent, request)).end());
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    await use((server.address() as net.AddressInfo).port);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

describe('watch: faults @slow', () => {
  it('reads a version 1 journal of more than 512 MiB: skips known images, delivers undelivered events', () =>
    inFolder(async (folder) => {
      await writeImages(folder, 2);
      const ids = await Promise.all(
        ['0000.png', '0001.png'].map((file) => identify(path.join(folder, file), file)),
      );
      const [sent, unsent, gone] = [
        eventOf('0000.png', ids[0]!),
        eventOf('0001.png', ids[1]!),
        eventOf('gone.png', 'of one that is gone'),
      ];
      const journal = journalOf(folder);
      await afterHole(
        journal,
        { event: sent },
        { sent: sent.id },
        { event: unsent },
        { event: gone },
        { sent: gone.id },
      );
      const sink = collecting();
      let computed = 0;
      await watching({ folder, sinks: [sink], scorer: stubScorer(1, () => computed++) }, async () => {
        await until(() => sink.events.length === 1, 'the undelivered one');
        await sleep(400);
      });
      assert.deepEqual([computed, sink.events], [0, [unsent]]);
      assert.ok((await stat(journal)).size < 2000, 'compacted');
      assert.doesNotMatch(await readFile(journal, 'utf8'), /gone/);
      assert.deepEqual((await readdir(folder)).sort(), ['.diad-watch.jsonl', '0000.png', '0001.png']);
    }));

  it('does not repeat the last events in a result file of more than 512 MiB', () =>
    inFolder(async (folder) => {
      const file = path.join(folder, 'results.jsonl');
      const [one, two] = [eventOf('1.png', '1'), eventOf('2.png', '2')];
      await afterHole(file, one);
      const { size } = await stat(file);
      await appendFile(file, '{"id":'); // truncated by a kill
      const sink = await jsonlSink(file);
      for (const event of [one, two]) await sink.send(event);
      await sink.close();
      const handle = await open(file);
      const { buffer, bytesRead } = await handle.read({ position: size });
      await handle.close();
      assert.equal(buffer.toString('utf8', 0, bytesRead), `{"id":\n${JSON.stringify(two)}\n`);
    }));

  it('ignores a named pipe with the name of an image', () =>
    inFolder(async (folder) => {
      const sink = collecting();
      for (const name of ['a.png', 'b.png', 'c.png', 'd.png', 'e.png'])
        execFileSync('mkfifo', [path.join(folder, name)]);
      await writeImages(folder, 2);
      await watching({ folder, sinks: [sink], concurrency: 4 }, () =>
        until(() => sink.events.length === 2, 'all delivered'),
      );
    }));

  it('rejects publishing to a wildcard topic', async () => {
    for (const topic of ['a/#', '+/b', '']) {
      await rejects(
        mqttSink('mqtt://127.0.0.1:9', topic),
        'ERR_DIAD_INVALID_ARGUMENT',
        /Expected a topic without \+ and # for topic/,
      );
    }
  });

  it('compacts the journal at each start: ids of existing images, undelivered events, positions', () =>
    inFolder(async (folder) => {
      const [here, late] = [collecting(), away('late')];
      const images = await writeImages(folder, 3);
      const journal = journalOf(folder);
      const run = (use: () => Promise<void>): Promise<void> =>
        watching({ folder, sinks: [here, late], concurrency: 1 }, use);
      await run(() => until(() => here.events.length === 3, 'all delivered'));
      const [first, ...others] = here.events;
      await rm(path.join(folder, first!.file));
      await run(() => sleep(300));
      assert.deepEqual(await eventsIn(journal), here.events, 'one has had none yet');
      late.here = true;
      await run(() => until(() => late.events.length === 3, 'delivered late'));
      await run(() => sleep(300));
      const [header, ...entries] = await lines<object>(journal);
      assert.deepEqual(header, { version: 2, inode: String((await stat(folder, { bigint: true })).ino) });
      const ids = others.map(({ id, file }) => ({ known: id, file }));
      const to = [header, ...ids].reduce((sum, entry) => sum + JSON.stringify(entry).length + 1, 0);
      assert.deepEqual(entries, [...ids, { sink: 'test', to }, { sink: 'late', to }]);
      assert.deepEqual([here.events.length, late.events], [images.length, here.events]);
    }));

  it('keeps images in the journal when the share is not mounted at the start', () =>
    inFolder(async (outside) => {
      const [folder, journal, sink] = [
        path.join(outside, 'share'),
        path.join(outside, 'journal'),
        collecting(),
      ];
      await fs.promises.mkdir(folder);
      await writeImages(folder, 2);
      await watching({ folder, journal, sinks: [sink] }, () => until(() => sink.events.length === 2, 'both'));
      await rename(folder, path.join(outside, 'mounted'));
      await fs.promises.mkdir(folder);
      for (let start = 0; start < 2; start++)
        await watching({ folder, journal, sinks: [sink] }, () => sleep(50));
      await rm(folder, { recursive: true });
      await rename(path.join(outside, 'mounted'), folder);
      await watching({ folder, journal, sinks: [sink] }, () => sleep(400));
      assert.equal(sink.events.length, 2);
    }));

  it('full disk: removes a partial write, retries it, and delivers nothing before', () =>
    inFolder(async (folder) => {
      const [sink, log] = [collecting(), [] as string[]];
      const journal = journalOf(folder);
      const handle = await open(path.join(folder, 'any'), 'w');
      const prototype = Object.getPrototypeOf(handle) as FileHandle;
      await handle.close();
      let failures = 0;
      const writing = async (file: FileHandle, text: string): Promise<never> => {
        failures++;
        await half.call(file, text.slice(0, text.length / 2));
        throw failure('ENOSPC');
      };
      const half = prototype.write as (this: FileHandle, text: string) => Promise<unknown>;
      function full(this: FileHandle, text: string): Promise<never> {
        return writing(this, text);
      }
      await watching({ folder, sinks: [sink], log: (line) => log.push(line) }, async () => {
        await replacing(prototype, { write: full, appendFile: full }, async () => {
          await writeImages(folder, 3);
          await until(() => failures >= 3, 'three failures');
          assert.deepEqual([sink.events, await eventsIn(journal)], [[], []]);
        });
        await until(() => sink.events.length === 3, 'delivered when there is space');
      });
      for (const line of (await readFile(journal, 'utf8')).trimEnd().split('\n')) JSON.parse(line);
      assert.deepEqual(await eventsIn(journal), sink.events);
      assert.ok(
        log.length >= 3 && log.every((line) => /^journal: ENOSPC: .*; retrying in \d+ ms$/.test(line)),
        log.join('\n'),
      );
      await watching({ folder, sinks: [sink] }, () => sleep(300));
      assert.equal(sink.events.length, 3, 'none twice');
    }));

  it('scores an image at the next start when the watch was closed while the disk was full', () =>
    inFolder(async (folder) => {
      const [sink, log] = [collecting(), [] as string[]];
      const handle = await open(path.join(folder, 'any'), 'w');
      const prototype = Object.getPrototypeOf(handle) as FileHandle;
      await handle.close();
      const full = (): Promise<never> => Promise.reject(failure('ENOSPC'));
      await replacing(prototype, { write: full, appendFile: full }, () =>
        watching({ folder, sinks: [sink], log: (line) => log.push(line) }, async () => {
          await writeImages(folder, 1);
          await until(() => log.length > 0, 'a failed attempt');
        }),
      );
      assert.match(log.at(-1)!, /0000\.png: ENOSPC: .*; will retry at the next start$/);
      await watching({ folder, sinks: [sink] }, () => until(() => sink.events.length === 1, 'delivered'));
      assert.equal((await eventsIn(journalOf(folder))).length, 1);
    }));

  it('delivers to each receiver independently; sets rejected events aside and continues', () =>
    inFolder(async (folder) => {
      const [here, gone, log] = [collecting(), away('gone'), [] as string[]];
      const [received, attempts]: [string[], string[]] = [[], []];
      const images = await inFolder((other) => writeImages(other, 3));
      const answer = ({ file }: WatchEvent): number => {
        attempts.push(file);
        if (file === '0000.png') return 400;
        received.push(file);
        return 204;
      };
      await listening(answer, async (port) => {
        const hook = webhookSink(`http://127.0.0.1:${port}/`, undefined);
        const options = {
          folder,
          sinks: [gone, hook, here],
          concurrency: 1,
          log: (line: string) => log.push(line),
        };
        await watching(options, async () => {
          for (const { file, bytes } of images) {
            await writeFile(path.join(folder, file), bytes);
            await until(() => here.events.some((event) => event.file === file), file);
          }
          assert.deepEqual(received, [], 'two of three receivers have taken none');
          await until(() => received.length === 2, 'both delivered');
        });
        assert.deepEqual(received.sort(), ['0001.png', '0002.png']);
        assert.equal(attempts.filter((file) => file === '0000.png').length, 6);
        const aside = await lines<{ sink: string; event: WatchEvent }>(`${journalOf(folder)}.refused`);
        assert.deepEqual(aside, [{ sink: hook.name, event: here.events[0] }]);
        assert.ok(
          log.includes(
            `${hook.name}: responded with 400, 6 times: 0000.png goes to ${journalOf(folder)}.refused`,
          ),
          log.join('\n'),
        );
        gone.here = true;
        await watching(options, () =>
          until(() => gone.events.length === here.events.length, 'finally delivered'),
        );
        assert.deepEqual(gone.events, here.events);
        assert.equal(attempts.length, 8, 'not delivered again');
      });
    }));

  it('close() does not wait for a hanging broker or receiver', () =>
    inFolder(async (folder) => {
      const port = await freePort();
      const broker = spawn('/usr/sbin/mosquitto', ['-p', String(port)], { stdio: 'ignore' });
      try {
        const sink = await mqttSink(`mqtt://127.0.0.1:${port}`, 'line/7');
        const dead: Sink = { ...collecting(), name: 'dead', send: () => new Promise(() => undefined) };
        const probe = eventOf('probe.png', 'probe');
        await until(
          () =>
            sink.send(probe).then(
              () => true,
              () => false,
            ),
          'the broker',
        );
        broker.kill('SIGSTOP');
        await watching({ folder, sinks: [sink, dead] }, async () => {
          await writeImages(folder, 1);
          await until(async () => (await eventsIn(journalOf(folder))).length === 1, 'scored');
          await sleep(200);
        });
        const late = collecting();
        await watching({ folder, sinks: [late] }, () =>
          until(() => late.events.length === 1, 'the journal keeps undelivered events'),
        );
      } finally {
        broker.kill('SIGKILL');
      }
    }));

  it('poll finds changes that the system does not report', () =>
    inFolder(async (folder) => {
      const sink = collecting();
      const silent = (): EventEmitter =>
        Object.assign(new EventEmitter(), {
          close: () => undefined,
          ref: () => undefined,
          unref: () => undefined,
        });
      await replacing(fs, { watch: silent }, async () => {
        await watching({ folder, sinks: [sink] }, async () => {
          await writeImages(folder, 1);
          await sleep(600);
          assert.deepEqual(sink.events, [], 'as on a share');
        });
        await watching({ folder, sinks: [sink], poll: 50 }, async () => {
          await until(() => sink.events.length === 1, 'existing files');
          await writeImages(folder, 3);
          await until(() => sink.events.length >= 3, 'new files');
        });
      });
      assert.deepEqual([...new Set(sink.events.map(({ file }) => file))].sort(), [
        '0000.png',
        '0001.png',
        '0002.png',
      ]);
    }));

  it('retries a temporarily unreadable image, but not a removed one', () =>
    inFolder(async (folder) => {
      const [sink, log] = [collecting(), [] as string[]];
      const { readFile: read } = fs.promises;
      let reads = 0;
      const busy = (file: string): Promise<Buffer> => {
        if (file.endsWith('0001.png')) return Promise.reject(failure('ENOENT'));
        return ++reads <= 2 ? Promise.reject(failure('EBUSY')) : read(file);
      };
      await writeImages(folder, 2);
      await replacing(fs.promises, { readFile: busy }, () =>
        watching({ folder, sinks: [sink], log: (line) => log.push(line) }, () =>
          until(() => sink.events.length === 1, 'delivered'),
        ),
      );
      assert.deepEqual([reads, sink.events[0]!.file, sink.events[0]!.error], [3, '0000.png', undefined]);
      assert.equal(log.length, 2);
      for (const line of log) assert.match(line, /0000\.png: EBUSY: .*; retrying in \d+ ms$/);
    }));

  it('logs URLs without user, password and tokens; sends user and password to a webhook', () =>
    inFolder(async (folder) => {
      const token = 'xoxb0123456789abcdefghij';
      for (const [address, shown] of [
        [
          `https://me:secret@host:8443/hooks/${token}?token=${token}&a=1#${token}`,
          'https://host:8443/hooks/…?token=…&a=…',
        ],
        ['mqtts://me:secret@broker', 'mqtts://broker'],
        ['me:secret@broker', 'me:…'],
        ['secret', '…'],
      ]) {
        assert.equal(shownAddress(address!), shown);
      }
      const [log, users]: [string[], unknown[]] = [[], []];
      const mqttAddress = `mqtt://me:secret@127.0.0.1:${await freePort()}`;
      const answer = (_: WatchEvent, request: http.IncomingMessage): number => {
        users.push(request.headers.authorization);
        return 503;
      };
      await listening(answer, async (port) => {
        const sinks = [
          webhookSink(`http://me:sec%20ret@127.0.0.1:${port}/${token}?key=${token}`, undefined),
          await mqttSink(mqttAddress, 't'),
        ];
        await writeImages(folder, 1);
        await watching({ folder, sinks, log: (line) => log.push(line) }, () =>
          until(() => log.length >= 4, 'failed attempts'),
        );
        assert.ok(
          log.some((line) =>
            line.startsWith(`http://127.0.0.1:${port}/…?key=…: responded with 503; retrying`),
          ),
          log.join('\n'),
        );
      });
      assert.equal(users[0], `Basic ${Buffer.from('me:sec ret').toString('base64')}`);
      const kept = log.join('\n') + (await readFile(journalOf(folder), 'utf8'));
      for (const secret of ['secret', 'sec%20ret', 'me:', token]) assert.ok(!kept.includes(secret), kept);
      await rejects(
        Promise.resolve().then(() => webhookSink('me:secret@host/', undefined)),
        'ERR_DIAD_INVALID_ARGUMENT',
        /^Expected an http:\/\/ or https:\/\/ URL for the webhook$/,
      );
    }));
});
