// diad watch: each image exactly once over kills and restarts; webhook, MQTT.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  utimes,
  writeFile,
} from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import mqtt from 'mqtt';
import { Diad } from '../../lib/index.js';
import { identify, moveInto } from '../../lib/watch/done.js';
import { mqttSink, signature, watch, webhookSink, type WatchEvent } from '../../lib/watch/index.js';
import { freePort, stubScore, stubScorer, writeImages } from '../support/queue-support.js';
import { example, inFolder, rejects, root, runProgram, withBundleCopy } from '../support/support.js';
import { collecting, eventsIn, journalOf, lines, until, watching } from '../support/watch-support.js';

describe('watch', () => {
  it('scores existing and new files once over a restart, and a replaced file again', () =>
    inFolder(async (folder) => {
      const sink = collecting();
      const images = await writeImages(folder, 3);
      await watching({ folder, sinks: [sink] }, async () => {
        await until(() => sink.events.length === 3, 'the three existing files');
        await mkdir(path.join(folder, 'sub'));
        await writeFile(path.join(folder, 'sub', 'late.PNG'), images[0]!.bytes);
        await writeFile(path.join(folder, 'notes.txt'), 'no image');
        await until(() => sink.events.length === 4, 'the late one');
      });
      const expected = [...images.map(({ file }) => file), path.join('sub', 'late.PNG')];
      assert.deepEqual(sink.events.map(({ file }) => file).sort(), expected.sort());
      for (const { file, score } of sink.events.slice(0, 3)) {
        assert.equal(score, stubScore(images.find((one) => one.file === file)!.bytes));
      }
      await watching({ folder, sinks: [sink] }, async () => {
        await writeFile(
          path.join(folder, '0001.png'),
          Buffer.concat([images[1]!.bytes, Buffer.from('more')]),
        );
        await until(() => sink.events.length === 5, 'the replaced one');
        await sleep(300);
      });
      assert.deepEqual([sink.events.length, sink.events[4]!.file], [5, '0001.png']);
    }));

  it('waits until a file is completely written, and moves scored files', () =>
    inFolder(async (folder) => {
      const [sink, done] = [collecting(), path.join(folder, 'done')];
      const bytes = await example('gear-good.png');
      const file = path.join(folder, 'slow.png');
      await watching({ folder, done, sinks: [sink], settleMs: 3000 }, async () => {
        for (let at = 0; at < bytes.length; at += 30_000) {
          await appendFile(file, bytes.subarray(at, at + 30_000));
          await sleep(150);
        }
        await until(() => sink.events.length > 0, 'the slow one');
        await until(async () => (await readdir(done)).includes('slow.png'), 'moved');
      });
      assert.deepEqual(
        sink.events.map(({ score }) => score),
        [stubScore(bytes)],
      );
      assert.deepEqual((await readdir(folder)).sort(), ['.diad-watch.jsonl', 'done']);
    }));

  it('keeps every scored image: reused names, equal names, existing names', () =>
    inFolder(async (folder) => {
      const [sink, done] = [collecting(), path.join(folder, 'done')];
      const images = (await writeImages(folder, 4)).map(({ bytes }) => bytes);
      for (const name of await readdir(folder)) await rm(path.join(folder, name));
      await mkdir(path.join(folder, 'a'));
      await mkdir(done);
      await writeFile(path.join(done, 'image.png'), 'of an earlier day');
      const log: string[] = [];
      await watching({ folder, done, sinks: [sink], log: (line) => log.push(line) }, async () => {
        for (const [i, name] of ['image.png', 'image.png', 'a/b.png', 'a__b.png'].entries()) {
          await writeFile(path.join(folder, name), images[i]!);
          await until(async () => (await readdir(done)).length === i + 2, `${name} moved`);
        }
        await until(() => sink.events.length === 4, 'all delivered');
      });
      const kept = await Promise.all((await readdir(done)).map((name) => readFile(path.join(done, name))));
      assert.deepEqual(
        kept.map(stubScore).sort(),
        [Buffer.from('of an earlier day'), ...images].map(stubScore).sort(),
      );
      assert.equal(await readFile(path.join(done, 'image.png'), 'utf8'), 'of an earlier day');
      // The original name if it is free, else with the first digits of the event's id; journal and log
      // contain the name.
      const ids = sink.events.map(({ id }) => id);
      const names = [
        `image.${ids[0]!.slice(0, 12)}.png`,
        `image.${ids[1]!.slice(0, 12)}.png`,
        'a__b.png',
        `a__b.${ids[3]!.slice(0, 12)}.png`,
      ];
      const entries = await lines<{ moved?: string; name?: string }>(journalOf(folder));
      assert.deepEqual(
        entries.filter(({ moved }) => moved !== undefined),
        ids.map((moved, i) => ({ moved, name: names[i] })),
      );
      for (const [i, name] of names.entries())
        assert.deepEqual(await readFile(path.join(done, name)), images[i]);
      assert.deepEqual(
        log,
        ['image.png', 'image.png', undefined, 'a__b.png'].flatMap((file, i) =>
          file === undefined ? [] : [`${file}: moved to ${path.join(done, names[i]!)}`],
        ),
      );
    }));

  it('twenty concurrent moves of images with the same name, size and time get different names', () =>
    inFolder(async (folder) => {
      const done = path.join(folder, 'done');
      await mkdir(done);
      const files = Array.from({ length: 20 }, (_, i) => path.join(folder, String(i), 'image.png'));
      for (const [i, file] of files.entries()) {
        await mkdir(path.dirname(file));
        await writeFile(file, String(10 + i));
        await utimes(file, 0, 0);
      }
      const id = await identify(files[0]!, 'image.png');
      const moved = await Promise.all(files.map((file) => moveInto(done, file, 'image.png', id)));
      assert.equal(new Set(moved.map((one) => one!.name)).size, 20);
      const kept = await Promise.all(
        (await readdir(done)).map((name) => readFile(path.join(done, name), 'utf8')),
      );
      assert.deepEqual(
        kept.sort(),
        files.map((_, i) => String(10 + i)),
      );
    }));

  it('shortens a name beyond the limit of file systems, as from a deep folder', () =>
    inFolder(async (folder) => {
      const relative = path.join(...Array.from({ length: 5 }, () => 'ü'.repeat(60)), 'image.png');
      const [file, done] = [path.join(folder, 'image.png'), path.join(folder, 'done')];
      await mkdir(done);
      for (const content of ['one', 'two']) {
        await writeFile(file, content);
        const { name } = (await moveInto(done, file, relative, await identify(file, relative)))!;
        assert.match(name, /^ü+__ü+(\.[0-9a-f]{12})?\.png$/);
        assert.equal(await readFile(path.join(done, name), 'utf8'), content);
      }
    }));

  it('moves scored images to another file system, complete under their name', () =>
    inFolder(async (folder) => {
      const done = await mkdtemp('/dev/shm/diad-');
      try {
        assert.notEqual((await stat(done)).dev, (await stat(folder)).dev, 'two file systems');
        const images = await writeImages(folder, 2);
        await writeFile(path.join(done, '0001.png'), 'earlier');
        const { mtimeMs } = await stat(path.join(folder, '0000.png'));
        const [sink, log] = [collecting(), [] as string[]];
        await watching({ folder, done, sinks: [sink], log: (line) => log.push(line) }, () =>
          until(
            async () => sink.events.length === 2 && (await readdir(folder)).length === 1,
            'only the journal is left',
          ),
        );
        const id = sink.events.find(({ file }) => file === '0001.png')!.id.slice(0, 12);
        assert.deepEqual((await readdir(done)).sort(), ['0000.png', `0001.${id}.png`, '0001.png'].sort());
        assert.deepEqual(await readFile(path.join(done, '0000.png')), images[0]!.bytes);
        assert.deepEqual(await readFile(path.join(done, `0001.${id}.png`)), images[1]!.bytes);
        assert.equal(Math.round((await stat(path.join(done, '0000.png'))).mtimeMs), Math.round(mtimeMs));
        assert.deepEqual(log, [`0001.png: moved to ${path.join(done, `0001.${id}.png`)}`]);
      } finally {
        await rm(done, { recursive: true, force: true });
      }
    }));

  it('scores an image that replaced another during its score, then moves it', () =>
    inFolder(async (folder) => {
      const [sink, done, file] = [collecting(), path.join(folder, 'done'), path.join(folder, 'image.png')];
      const [first, second] = await writeImages(folder, 2);
      await rm(path.join(folder, '0001.png'));
      await rename(path.join(folder, '0000.png'), file);
      const stub = stubScorer(1);
      let calls = 0;
      const score: typeof stub.score = async (image, options) => {
        const result = await stub.score(image, options);
        if (calls++ === 0) {
          await writeFile(path.join(folder, 'next.tmp'), Buffer.concat([second!.bytes, Buffer.from('more')]));
          await rename(path.join(folder, 'next.tmp'), file);
          await sleep(50);
        }
        return result;
      };
      await watching({ folder, done, sinks: [sink], scorer: { info: stub.info, score } }, () =>
        until(async () => sink.events.length === 2 && (await readdir(done)).length > 0, 'moved'),
      );
      const newer = Buffer.concat([second!.bytes, Buffer.from('more')]);
      assert.deepEqual(
        sink.events.map(({ score }) => score),
        [first!.bytes, newer].map(stubScore),
      );
      assert.deepEqual(await readFile(path.join(done, 'image.png')), newer);
    }));

  it("uses thresholds of the folder's class or the given class, also for the normalized score", () =>
    withBundleCopy(async (bundle) => {
      const calibration = {
        threshold: 1000,
        scale: 100,
        classes: { gear: { threshold: 0.001 }, bolt: { threshold: 2000 } },
      };
      await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify(calibration));
      const diad = await Diad.load(bundle, { threads: 1 });
      try {
        const bytes = await example('gear-good.png');
        for (const [named, thresholds] of [
          [undefined, [0.001, 0.001, 1000]],
          ['bolt', [2000, 2000, 2000]],
          ['unknown', [1000, 1000, 1000]],
        ] as const) {
          await inFolder(async (folder) => {
            for (const file of ['gear/1.png', 'gear/late/2.png', 'other/3.png']) {
              await mkdir(path.dirname(path.join(folder, file)), { recursive: true });
              await writeFile(path.join(folder, file), bytes);
            }
            const sink = collecting();
            const options = {
              folder,
              scorer: diad,
              sinks: [sink],
              concurrency: 1,
              ...(named === undefined ? {} : { className: named }),
            };
            await watching(options, () => until(() => sink.events.length === 3, 'all'));
            const events = sink.events.sort((one, other) => one.file.localeCompare(other.file));
            for (const [
              i,
              { score = NaN, threshold, anomalous, normalizedScore = NaN },
            ] of events.entries()) {
              assert.deepEqual([threshold, anomalous], [thresholds[i], score > thresholds[i]!]);
              // The global thresholds have a scale, those of the classes have none.
              const expected =
                threshold === 1000 ? 1 / (1 + Math.exp((1000 - score) / 100)) : score / (score + threshold!);
              assert.ok(Math.abs(normalizedScore - expected) < 1e-12, `${normalizedScore} ${expected}`);
            }
          });
        }
      } finally {
        await diad.close();
      }
    }));

  it('rejects invalid options', () =>
    inFolder(async (folder) => {
      const good = { folder, scorer: stubScorer(1), sinks: [] };
      const start = watch as (options?: unknown) => ReturnType<typeof watch>;
      for (const [options, message] of [
        [undefined, /Expected a folder to watch for folder but received undefined/],
        [null, /Expected an object for watch options but received null/],
        [{ ...good, folder: 7 }, /for folder but received 7 of type number/],
        [{ ...good, folder: '/nowhere' }, /\/nowhere is not a folder/],
        [{ ...good, scorer: {} }, /Expected a loaded bundle for scorer/],
        [{ ...good, sinks: undefined }, /Expected an array of receivers for sinks/],
        [{ ...good, sinks: [collecting(), null] }, /send\(\) and close\(\) for sinks\[1\] but received null/],
        [{ ...good, journal: '' }, /for journal/],
        [{ ...good, done: `${folder}/.` }, /Expected another folder than the watched one for done/],
        [{ ...good, className: 3 }, /for className but received 3/],
        [{ ...good, seed: -1 }, /for seed but received -1/],
        [{ ...good, settleMs: 0.5 }, /Expected an integer from 0 to 3600000 for settleMs but received 0.5/],
        [{ ...good, poll: 0 }, /Expected an integer from 10 to 3600000 for poll but received 0/],
        [{ ...good, concurrency: 0 }, /Expected an integer from 1 to 1000000 for concurrency but received 0/],
        [{ ...good, log: true }, /Expected a function for log/],
        [{ ...good, folders: [] }, /unknown key folders/],
      ] as const) {
        await rejects(start(options), 'ERR_DIAD_INVALID_ARGUMENT', message);
      }
      assert.deepEqual(await readdir(folder), [], 'nothing has been made');
    }));

  it('loses and repeats nothing in a burst of 500 files with a kill -9 in between', () =>
    inFolder(async (folder) => {
      const jsonl = path.join(folder, 'results.jsonl');
      const start = async (): Promise<ChildProcess> => {
        const script = path.join(root, 'test', 'support', 'watch-process.ts');
        const child = spawn(process.execPath, ['--import', 'tsx', script, folder, jsonl], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        await once(child.stdout, 'data');
        return child;
      };
      const first = await start();
      const images = await writeImages(folder, 500);
      await until(async () => (await lines<WatchEvent>(jsonl)).length > 50, 'some');
      first.kill('SIGKILL');
      await once(first, 'exit');
      assert.ok((await lines<WatchEvent>(jsonl)).length < 500, 'killed in the middle');
      const second = await start();
      await until(async () => (await lines<WatchEvent>(jsonl)).length >= 500, 'all');
      await sleep(500);
      second.kill('SIGKILL');
      const events = await lines<WatchEvent>(jsonl);
      assert.deepEqual(
        events.map(({ file }) => file).sort(),
        images.map(({ file }) => file),
      );
      const scores = new Map(events.map(({ file, score }) => [file, score]));
      for (const { file, bytes } of images) assert.equal(scores.get(file), stubScore(bytes));
    }));

  it('webhook: signs requests, and retries while the receiver is unavailable, also after a restart', () =>
    inFolder(async (folder) => {
      const port = await freePort();
      const url = `http://127.0.0.1:${port}/hook`;
      const received: { id: unknown; body: string; signed: boolean }[] = [];
      let refusals = 2;
      const receiver = http.createServer((request, answer) => {
        let body = '';
        request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
        request.once('end', () => {
          if (refusals-- > 0) {
            answer.writeHead(500).end();
            return;
          }
          const expected = signature('secret', String(request.headers['diad-timestamp']), body);
          received.push({
            id: request.headers['diad-event-id'],
            body,
            signed: request.headers['diad-signature'] === `sha256=${expected}`,
          });
          answer.writeHead(204).end();
        });
      });
      const images = await writeImages(folder, 2);
      const log: string[] = [];
      // The receiver is unavailable: the results are kept, and the watch ends.
      await watching(
        { folder, sinks: [webhookSink(url, 'secret')], log: (line) => log.push(line) },
        async () => {
          await until(async () => (await eventsIn(journalOf(folder))).length === 2, 'both in the journal');
          await until(() => log.length > 0, 'a failed attempt');
        },
      );
      receiver.listen(port, '127.0.0.1');
      let computed = 0;
      await watching(
        { folder, sinks: [webhookSink(url, 'secret')], scorer: stubScorer(1, () => computed++) },
        async () => {
          await until(() => received.length === 2, 'both delivered');
        },
      );
      receiver.close();
      assert.equal(computed, 0, 'nothing is scored again');
      assert.ok(received.every(({ signed }) => signed));
      const events = received.map(({ body }) => JSON.parse(body) as WatchEvent);
      assert.deepEqual(
        events.map(({ file }) => file).sort(),
        images.map(({ file }) => file),
      );
      assert.deepEqual(
        received.map(({ id }) => id),
        events.map(({ id }) => id),
      );
    }));

  it('MQTT: publishes with QoS 1 to mosquitto, and retries without a broker @slow', () =>
    inFolder(async (folder) => {
      const port = await freePort();
      const url = `mqtt://127.0.0.1:${port}`;
      await writeImages(folder, 2);
      const sink = await mqttSink(url, 'line/7');
      await assert.rejects(sink.send({ id: 'x', file: 'x', time: '' }), /^Error: not connected/);
      await until(
        () =>
          sink.send({ id: 'x', file: 'x', time: '' }).then(
            () => false,
            (error: unknown) => /not connected: .*ECONNREFUSED/.test(String(error)),
          ),
        'why',
      );
      const hook = webhookSink(`http://127.0.0.1:${port}/`, undefined);
      await assert.rejects(hook.send({ id: 'x', file: 'x', time: '' }), /ECONNREFUSED/);
      await rejects(mqttSink('nonsense', 'line/7'), 'ERR_DIAD_INVALID_ARGUMENT', /mqtt:\/\/, mqtts:/);
      const broker = spawn('/usr/sbin/mosquitto', ['-p', String(port)], { stdio: 'ignore' });
      const listener = mqtt.connect(url, { reconnectPeriod: 100 });
      listener.on('error', () => undefined);
      try {
        await until(() => listener.connected, 'the broker');
        await listener.subscribeAsync('line/7', { qos: 1 });
        const messages: { topic: string; qos: number; event: WatchEvent }[] = [];
        listener.on('message', (topic, payload, { qos }) => {
          messages.push({ topic, qos, event: JSON.parse(payload.toString()) as WatchEvent });
        });
        await watching({ folder, sinks: [sink] }, () => until(() => messages.length === 2, 'both published'));
        for (const { topic, qos } of messages) assert.deepEqual([topic, qos], ['line/7', 1]);
        assert.deepEqual(messages.map(({ event }) => event.file).sort(), ['0000.png', '0001.png']);
      } finally {
        await listener.endAsync(true);
        broker.kill('SIGKILL');
      }
    }));

  it('reports an undecodable image as an event, and a missing folder as an error', () =>
    inFolder(async (folder) => {
      const main = path.join(root, 'dist', 'cli', 'main.js');
      await writeFile(path.join(folder, 'bad.png'), 'no image');
      await writeFile(path.join(folder, 'good.png'), await example('gear-good.png'));
      const jsonl = path.join(folder, 'out.jsonl');
      const done = path.join(folder, 'done');
      const options = [
        '--jsonl',
        jsonl,
        '--done',
        done,
        '--class',
        'gear',
        '--poll',
        '200',
        '--threads',
        '1',
      ];
      const child = spawn(process.execPath, [main, 'watch', folder, ...options], { stdio: 'ignore' });
      await until(async () => (await lines<WatchEvent>(jsonl)).length === 2, 'two events');
      await until(async () => (await readdir(done)).length === 2, 'both moved');
      child.kill('SIGTERM');
      assert.deepEqual(await once(child, 'exit'), [0, null]);
      const events = new Map((await lines<WatchEvent>(jsonl)).map((event) => [event.file, event]));
      assert.equal(events.get('bad.png')!.error?.code, 'ERR_DIAD_IMAGE_DECODE');
      assert.ok(events.get('good.png')!.score! > 0);
      const gone = await runProgram(process.execPath, [main, 'watch', '/nowhere']);
      assert.equal(gone.code, 1);
    }));
});
