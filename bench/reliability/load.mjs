// Many connections at once against the base bundle: refused in order or answered, the engine kept busy, memory flat, ready again at once.
import autocannon from 'autocannon';
import { setMaxListeners } from 'node:events';
import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { quantile } from './record.mjs';
import { golden, residentMiB, score, serving } from './serving.mjs';

const CONNECTIONS = 200;
const FEW = 8;
const QUEUE_LIMIT = 64;

/** Connections that each send the next image the moment they have an answer, whatever it says. */
async function hammer(url, bytes, connections, seconds) {
  const scored = [];
  const onResponse = (status, body) => {
    if (status === 200) scored.push({ at: performance.now(), ...JSON.parse(body).timings });
  };
  const request = {
    method: 'POST',
    path: '/v1/score',
    headers: { 'content-type': 'image/png' },
    body: bytes,
    onResponse,
  };
  const { statusCodeStats, errors, timeouts } = await autocannon({
    url,
    connections,
    duration: seconds,
    timeout: 60,
    requests: [request],
  });
  const codes = Object.fromEntries(Object.entries(statusCodeStats).map(([code, { count }]) => [code, count]));
  return { scored, codes, failed: errors + timeouts };
}

/** Connections that wait as long as Retry-After says, and up to half of that more, so that they do not come back together. */
async function polite(url, bytes, connections, seconds) {
  const [scored, codes] = [[], {}];
  const agent = new http.Agent({ keepAlive: true, maxSockets: connections });
  const end = performance.now() + seconds * 1000;
  const until = AbortSignal.timeout(seconds * 1000);
  setMaxListeners(0, until); // one per connection
  let failed = 0;
  const send = () =>
    new Promise((resolve, reject) => {
      const headers = { 'content-type': 'image/png', 'content-length': bytes.length };
      const request = http.request(
        `${url}/v1/score`,
        { method: 'POST', agent, headers, signal: until },
        async (answer) => {
          try {
            const chunks = await answer.toArray();
            resolve({
              status: answer.statusCode,
              retryAfter: Number(answer.headers['retry-after']),
              body: Buffer.concat(chunks),
            });
          } catch (error) {
            reject(error);
          }
        },
      );
      request.once('error', reject).end(bytes);
    });
  const client = async () => {
    while (performance.now() < end) {
      try {
        const { status, retryAfter, body } = await send();
        codes[status] = (codes[status] ?? 0) + 1;
        if (status === 200) scored.push({ at: performance.now(), ...JSON.parse(body).timings });
        else await sleep(retryAfter * 1000 * (1 + Math.random() / 2), undefined, { signal: until });
      } catch (error) {
        if (until.aborted) return;
        failed++;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: connections }, client));
  agent.destroy();
  return { scored, codes, failed };
}

/** Images a second between the first batch that came back and the last: whole batches, whatever the window cuts. */
function rate(scored) {
  const times = scored.map(({ at }) => at).sort((a, b) => a - b);
  const [first, last] = [times[0], times.at(-1)];
  const later = times.filter((at) => at > first + 100).length;
  return later === 0 ? 0 : (later / (last - first)) * 1000;
}

/** Waits until the queue of the clients that have left is given up. */
async function scoresAgain(url, bytes) {
  const started = performance.now();
  let answer = await score(url, bytes);
  while (answer.status === 503 && performance.now() - started < 60_000) {
    await sleep(20);
    answer = await score(url, bytes);
  }
  return { status: answer.status, ms: performance.now() - started };
}

export async function run({ short }) {
  const seconds = short ? 6 : 60;
  const { bytes } = await golden();
  const args = ['--queue-limit', String(QUEUE_LIMIT), '--rate-limit', '1000000000'];
  const { result, exit } = await serving(args, async ({ url, pid }) => {
    const few = await hammer(url, bytes, FEW, short ? 5 : 30);
    const memory = [];
    let stop = false;
    const watch = (async () => {
      for (; !stop; await sleep(250)) memory.push(await residentMiB(pid));
    })();
    const many = await hammer(url, bytes, CONNECTIONS, seconds);
    stop = true;
    await watch;
    const ready = (await fetch(`${url}/v2/health/ready`)).status;
    const after = await scoresAgain(url, bytes);
    const waiting = await polite(url, bytes, CONNECTIONS, seconds);
    return { few, many, waiting, memory, ready, after };
  });
  const { few, many, waiting, memory, ready, after } = result;
  const half = memory.length >> 1;
  const [early, late] = [Math.max(...memory.slice(0, half)), Math.max(...memory.slice(half))];
  const [fewRate, manyRate, waitingRate] = [few, many, waiting].map(({ scored }) => rate(scored));
  const times = (name) => many.scored.map((timings) => timings[name]);
  const figures = {
    [`images/s, ${FEW} connections`]: fewRate,
    [`images/s, ${CONNECTIONS} connections that do not wait`]: manyRate,
    [`images/s, ${CONNECTIONS} connections that wait as Retry-After says`]: waitingRate,
    'seconds of each of these two': seconds,
    'scored, without waiting': many.codes['200'] ?? 0,
    'refused with 503, without waiting': many.codes['503'] ?? 0,
    'refused with 503, with waiting': waiting.codes['503'] ?? 0,
    'queue p50, ms': quantile(times('queueMs'), 0.5),
    'queue p99, ms': quantile(times('queueMs'), 0.99),
    'compute p50, ms': quantile(times('computeMs'), 0.5),
    'compute p99, ms': quantile(times('computeMs'), 0.99),
    'memory peak of the first half, MiB': early,
    'of the second half, MiB': late,
    'scores again after, ms': after.ms,
  };
  const all = [few, many, waiting];
  const only = all.every(
    ({ codes }) =>
      Object.keys(codes).every((code) => code === '200' || code === '503') && (codes['200'] ?? 0) > 0,
  );
  const busy = (name, measured) => [
    `${name}: at least 85 % of the images/s of ${FEW} connections (${measured.toFixed(2)} of ${fewRate.toFixed(2)})`,
    measured >= 0.85 * fewRate,
  ];
  // The short form sees two or three batches on a slow machine, which says nothing of speed.
  const speed = [
    busy(`${CONNECTIONS} connections that do not wait`, manyRate),
    busy(`${CONNECTIONS} connections that wait`, waitingRate),
  ];
  const soon = short ? 30 : 5;
  return {
    figures,
    expectations: [
      [`every answer is 200 or 503 (${JSON.stringify(all.map(({ codes }) => codes))})`, only],
      ['no connection failed', all.every(({ failed }) => failed === 0)],
      ...(short ? [] : speed),
      // The short form ends while buffers of the 200 connections are still being made.
      [
        `memory of the second half within ${short ? 25 : 10} % of the first`,
        late < early * (short ? 1.25 : 1.1),
      ],
      [
        `ready when the load has ended, and a score within ${soon} s`,
        ready === 200 && after.status === 200 && after.ms < soon * 1000,
      ],
      ['SIGTERM ends it with code 0', exit === 0],
    ],
  };
}
