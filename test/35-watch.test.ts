// diad watch: each picture once, over kills and restarts; webhook, MQTT.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import mqtt from 'mqtt';
import { mqttSink, signature, watch, webhookSink, type Sink, type WatchEvent, type WatchOptions } from '../lib/watch/index.js';
import { freePort, stubScore, stubScorer, writePictures } from './queue-support.js';
import { example, inFolder, rejects, root, runProgram } from './support.js';

/** Waits until a condition holds. */
async function until(holds: () => boolean | Promise<boolean>, what: string, limitMs = 40_000): Promise<void> {
  const end = Date.now() + limitMs;
  while (!(await holds())) {
    if (Date.now() > end) assert.fail(`never: ${what}`);
    await sleep(50);
  }
}

function collecting(): Sink & { events: WatchEvent[] } {
  const events: WatchEvent[] = [];
  const send = (event: WatchEvent): Promise<void> => {
    events.push(event);
    return Promise.resolve();
  };
  return { name: 'test', events, send, close: () => Promise.resolve() };
}

async function watching(options: Omit<WatchOptions, 'scorer'> & Partial<WatchOptions>, use: () => Promise<void>): Promise<void> {
  const running = await watch({ scorer: stubScorer(1), settleMs: 100, ...options });
  try {
    await running.scanned;
    await use();
  } finally {
    await running.close();
  }
}

const lines = async (file: string): Promise<WatchEvent[]> => {
  const text = await readFile(file, 'utf8').catch(() => '');
  const complete = text.slice(0, text.lastIndexOf('\n') + 1);
  return complete
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as WatchEvent);
};

const journalOf = (folder: string): string => path.join(folder, '.diad-watch.jsonl');

describe('watch', () => {
  it('scores what is there and what comes, once each over a restart; a file that is replaced again', () =>
    inFolder(async (folder) => {
      const sink = collecting();
      const pictures = await writePictures(folder, 3);
      await watching({ folder, sinks: [sink] }, async () => {
        await until(() => sink.events.length === 3, 'the three that were there');
        await mkdir(path.join(folder, 'sub'));
        await writeFile(path.join(folder, 'sub', 'late.PNG'), pictures[0]!.bytes);
        await writeFile(path.join(folder, 'notes.txt'), 'no picture');
        await until(() => sink.events.length === 4, 'the late one');
      });
      const expected = [...pictures.map(({ file }) => file), path.join('sub', 'late.PNG')];
      assert.deepEqual(sink.events.map(({ file }) => file).sort(), expected.sort());
      for (const { file, score } of sink.events.slice(0, 3)) {
        assert.equal(score, stubScore(pictures.find((one) => one.file === file)!.bytes));
      }
      await watching({ folder, sinks: [sink] }, async () => {
        await writeFile(path.join(folder, '0001.png'), Buffer.concat([pictures[1]!.bytes, Buffer.from('more')]));
        await until(() => sink.events.length === 5, 'the replaced one');
        await sleep(300);
      });
      assert.deepEqual([sink.events.length, sink.events[4]!.file], [5, '0001.png']);
    }));

  it('waits until a file is completely written; moves what is done', () =>
    inFolder(async (folder) => {
      const [sink, done] = [collecting(), path.join(folder, 'done')];
      const bytes = await example('gear-good.png');
      const file = path.join(folder, 'slow.png');
      await watching({ folder, done, sinks: [sink], settleMs: 400 }, async () => {
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

  it('a burst of 500 files with a kill -9 in the middle: none lost, none twice', () =>
    inFolder(async (folder) => {
      const jsonl = path.join(folder, 'results.jsonl');
      const start = async (): Promise<ChildProcess> => {
        const script = path.join(import.meta.dirname, 'watch-process.ts');
        const child = spawn(process.execPath, ['--import', 'tsx', script, folder, jsonl], { stdio: ['ignore', 'pipe', 'inherit'] });
        await once(child.stdout, 'data');
        return child;
      };
      const first = await start();
      const pictures = await writePictures(folder, 500);
      await until(async () => (await lines(jsonl)).length > 50, 'some');
      first.kill('SIGKILL');
      await once(first, 'exit');
      assert.ok((await lines(jsonl)).length < 500, 'killed in the middle');
      const second = await start();
      await until(async () => (await lines(jsonl)).length >= 500, 'all', 80_000);
      await sleep(500);
      second.kill('SIGKILL');
      const events = await lines(jsonl);
      assert.deepEqual(
        events.map(({ file }) => file).sort(),
        pictures.map(({ file }) => file),
      );
      const scores = new Map(events.map(({ file, score }) => [file, score]));
      for (const { file, bytes } of pictures) assert.equal(scores.get(file), stubScore(bytes));
    })).timeout(150_000);

  it('webhook: signed, again while the receiver is away, also after a restart', () =>
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
          received.push({ id: request.headers['diad-event-id'], body, signed: request.headers['diad-signature'] === `sha256=${expected}` });
          answer.writeHead(204).end();
        });
      });
      const pictures = await writePictures(folder, 2);
      const log: string[] = [];
      // The receiver is away: the results are kept, and the watch ends.
      await watching({ folder, sinks: [webhookSink(url, 'secret')], log: (line) => log.push(line) }, async () => {
        await until(async () => (await lines(journalOf(folder))).length === 2, 'both in the journal');
        await until(() => log.length > 0, 'a failed attempt');
      });
      receiver.listen(port, '127.0.0.1');
      let computed = 0;
      await watching({ folder, sinks: [webhookSink(url, 'secret')], scorer: stubScorer(1, () => computed++) }, async () => {
        await until(() => received.length === 2, 'both delivered');
      });
      receiver.close();
      assert.equal(computed, 0, 'nothing is scored again');
      assert.ok(received.every(({ signed }) => signed));
      const events = received.map(({ body }) => JSON.parse(body) as WatchEvent);
      assert.deepEqual(
        events.map(({ file }) => file).sort(),
        pictures.map(({ file }) => file),
      );
      assert.deepEqual(
        received.map(({ id }) => id),
        events.map(({ id }) => id),
      );
    }));

  it('MQTT with QoS 1 against mosquitto; without it a failure that is tried again', () =>
    inFolder(async (folder) => {
      const port = await freePort();
      const url = `mqtt://127.0.0.1:${port}`;
      await writePictures(folder, 2);
      const sink = await mqttSink(url, 'line/7');
      await assert.rejects(sink.send({ id: 'x', file: 'x', time: '' }), /not connected/);
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

  it('a picture that cannot be decoded is an event with the error; a folder that is not there is an error', () =>
    inFolder(async (folder) => {
      const main = path.join(root, 'dist', 'cli', 'main.js');
      await writeFile(path.join(folder, 'bad.png'), 'no picture');
      await writeFile(path.join(folder, 'good.png'), await example('gear-good.png'));
      const jsonl = path.join(folder, 'out.jsonl');
      const child = spawn(process.execPath, [main, 'watch', folder, '--jsonl', jsonl, '--threads', '1'], { stdio: 'ignore' });
      await until(async () => (await lines(jsonl)).length === 2, 'two events');
      child.kill('SIGTERM');
      assert.deepEqual(await once(child, 'exit'), [0, null]);
      const events = new Map((await lines(jsonl)).map((event) => [event.file, event]));
      assert.equal(events.get('bad.png')!.error?.code, 'ERR_DIAD_IMAGE_DECODE');
      assert.ok(events.get('good.png')!.score! > 0);
      const gone = await runProgram(process.execPath, [main, 'watch', '/nowhere']);
      assert.equal(gone.code, 1);
      await rejects(watch({ folder: '/nowhere', scorer: stubScorer(1), sinks: [] }), 'ERR_DIAD_INVALID_ARGUMENT', /\/nowhere is none/);
    })).timeout(120_000);
});
