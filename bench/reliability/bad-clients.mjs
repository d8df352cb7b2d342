// Malicious and broken clients and jobs: rejected with the correct code, and the next image is scored.
import { once } from 'node:events';
import http from 'node:http';
import { readFile, symlink } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Diad } from '../../lib/index.ts';
import { startWorker, submitRun } from '../../lib/queue/index.ts';
import { createServer } from '../../lib/server/index.ts';
import { STUB_MODEL, stubScorer } from '../../test/support/queue-support.ts';
import { converse, pngBomb } from '../../test/support/server-support.ts';
import { root } from './record.mjs';
import { collect, withImages } from './runs.mjs';

const TOKEN = 'the-token-of-this-measurement';
const BEARER = `Authorization: Bearer ${TOKEN}`;

/** Sends a request byte by byte until the server closes the connection. */
function drip(port, text, everyMs) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1');
    let [received, sent] = ['', 0];
    const timer = setInterval(() => {
      if (socket.writable && sent < text.length) socket.write(text[sent++]);
    }, everyMs);
    socket.setEncoding('utf8').on('data', (part) => (received += part));
    socket.on('error', (error) => {
      if (!['ECONNRESET', 'EPIPE'].includes(error.code)) reject(error);
    });
    socket.once('close', () => {
      clearInterval(timer);
      resolve(received);
    });
  });
}

async function overHttp(requestTimeoutMs) {
  const image = await readFile(path.join(root, 'examples', 'gear-good.png'));
  const load = () => Diad.load(undefined, { threads: 1 });
  const server = await createServer({ load, port: 0, logLevel: 'silent', tokens: [TOKEN], requestTimeoutMs });
  try {
    await server.ready;
    const url = `${server.url}/v1/score`;
    const post = (body, token = TOKEN) =>
      fetch(url, { method: 'POST', body, headers: { authorization: `Bearer ${token}` } });
    const answered = async (answer) => [answer.status, (await answer.json()).code];
    const parsed = (text) => [Number(/^HTTP\/1\.1 (\d{3})/.exec(text)?.[1]), /ERR_[A-Z_]+/.exec(text)?.[0]];
    const head = `POST /v1/score HTTP/1.1\r\nHost: localhost\r\n${BEARER}\r\n`;
    // A client that disconnects in the middle of its body gets no response. The server must release its
    // resources.
    const leave = net.connect(server.port, '127.0.0.1');
    await once(leave, 'connect');
    leave.end(`${head}Content-Length: 90000\r\n\r\nhalf of it`);
    leave.resume();
    const cases = [
      [
        'slow client, one byte at a time',
        [408, 'ERR_HTTP_TIMEOUT'],
        parsed(await drip(server.port, `${head}X-Slow: ${'x'.repeat(4000)}`, 50)),
      ],
      [
        'half-sent body',
        [408, 'ERR_HTTP_TIMEOUT'],
        parsed(await converse(server, `${head}Content-Length: 90000\r\n\r\nhalf of it`)),
      ],
      [
        'PNG of 10,000 x 10,000 pixels',
        [413, 'ERR_DIAD_IMAGE_TOO_LARGE'],
        await answered(await post(pngBomb(10_000, 10_000))),
      ],
      ['wrong token', [401, 'ERR_HTTP_UNAUTHORIZED'], await answered(await post(image, `${TOKEN}x`))],
      [
        'header of 20 KB',
        [431, 'ERR_HTTP_HEADERS_TOO_LARGE'],
        parsed(await converse(server, `${head}X-Long: ${'x'.repeat(20_000)}\r\n\r\n`)),
      ],
    ];
    const clean = await post(image);
    await clean.arrayBuffer();
    await sleep(100);
    const metrics = await server.metrics();
    const inFlight = Number(/^diad_pixels_in_flight (\S+)$/m.exec(metrics)?.[1]);
    return { cases, clean: clean.status, inFlight };
  } finally {
    await server.close();
  }
}

async function overQueue() {
  return withImages(1, async ({ root: images, broker, images: [image] }) => {
    await symlink('/etc/hostname', path.join(images, 'link.png'));
    const redirecting = http.createServer((_request, answer) =>
      answer.writeHead(302, { location: 'http://169.254.169.254/latest' }).end(),
    );
    redirecting.listen(0, '127.0.0.1');
    await once(redirecting, 'listening');
    const url = `http://localhost:${redirecting.address().port}/x.png`;
    const hosts = ['localhost', '169.254.169.254'];
    const worker = await startWorker({
      redis: broker.url,
      root: images,
      hosts,
      privateHosts: ['localhost'],
      scorer: stubScorer(0),
    });
    try {
      const references = [
        [
          'path outside the root',
          { kind: 'file', path: '../../../etc/hostname' },
          'ERR_DIAD_INVALID_ARGUMENT',
        ],
        ['link out of the root', { kind: 'file', path: 'link.png' }, 'ERR_DIAD_INVALID_ARGUMENT'],
        ['redirect to a private address', { kind: 'url', url }, 'ERR_DIAD_INVALID_ARGUMENT'],
      ];
      const submissions = references.map(([file, reference]) => ({ file, reference, sha256: image.sha256 }));
      const run = await submitRun(submissions, { redis: broker.url, model: STUB_MODEL });
      const results = await collect(run, broker.url);
      return references.map(([name, , code], i) => [
        name,
        ['failed', code],
        [results[i].status, /ERR_[A-Z_]+/.exec(results[i].error)?.[0]],
      ]);
    } finally {
      await worker.close();
      redirecting.close();
    }
  });
}

export async function run({ short }) {
  const { cases, clean, inFlight } = await overHttp(short ? 1500 : 30_000);
  const all = [...cases, ...(await overQueue())];
  return {
    figures: Object.fromEntries(all.map(([name, , got]) => [name, got.join(' ')])),
    expectations: [
      ...all.map(([name, expected, got]) => [
        `${name}: ${expected.join(' ')}`,
        got.join() === expected.join(),
      ]),
      ['a valid image is scored afterward, and no pixels remain in flight', clean === 200 && inFlight === 0],
    ],
  };
}
