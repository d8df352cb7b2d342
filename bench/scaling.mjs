// npm run scaling: measures the queue overhead and the engine speed, and derives the resources for many
// images. Writes tables to docs/benchmarks.md.
//
//   npm run scaling -- [--short] [--write]
//
// --short: fewer jobs; writes nothing unless --write is given.
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Queue } from 'bullmq';
import { Redis } from 'ioredis';
import { queueName } from '../lib/queue/broker.ts';
import { startWorker, submitRun } from '../lib/queue/index.ts';
import { startWorkerProcess, STUB_MODEL, stubScorer } from '../test/support/queue-support.ts';
import { Diad } from '../dist/index.js';
import { quantile, root, write } from './reliability/record.mjs';
import { asFile, withImages } from './reliability/runs.mjs';

const { values } = parseArgs({
  options: { short: { type: 'boolean', default: false }, write: { type: 'boolean', default: false } },
});
const DAY = 86_400;
const HEADROOM = 0.7; // share of the measured speed that the plan uses

const memory = async (redis) => Number(/used_memory:(\d+)/.exec(await redis.info('memory'))[1]);
const commands = async (redis) => Number(/total_commands_processed:(\d+)/.exec(await redis.info('stats'))[1]);

/**
 * Measures the overhead per job in milliseconds, for a worker with one job at a time and an instant engine.
 */
async function overhead({ root: folder, images, broker }) {
  const starts = [];
  const scorer = stubScorer(0, () => starts.push(performance.now()));
  await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 1 });
  const worker = await startWorker({ redis: broker.url, root: folder, scorer, concurrency: 1 });
  while (worker.completed < images.length) await new Promise((resolve) => setTimeout(resolve, 20));
  await worker.close();
  const gaps = starts.slice(1).map((at, i) => at - starts[i]);
  return { median: quantile(gaps, 0.5), p99: quantile(gaps, 0.99) };
}

/** Measures the bytes of a waiting job with its item in Redis. */
async function footprint({ images, broker }, redis) {
  const before = await memory(redis);
  const model = 'cd'.repeat(32); // no worker serves this model
  await submitRun(images.map(asFile), { redis: broker.url, model, seed: 2 });
  const queued = (await memory(redis)) - before;
  return queued / images.length;
}

/** Measures jobs per second and broker commands per job, for worker processes with an instant engine. */
async function throughput({ root: folder, images, broker }, redis, processes) {
  const workers = await Promise.all(
    Array.from({ length: processes }, () =>
      startWorkerProcess(broker.url, folder, { delayMs: 0, lockMs: 30_000, maxStalls: 1 }),
    ),
  );
  const queue = new Queue(queueName(STUB_MODEL), { connection: redis });
  try {
    const asked = await commands(redis);
    await queue.pause();
    await submitRun(images.map(asFile), { redis: broker.url, model: STUB_MODEL, seed: 10 + processes });
    const started = performance.now();
    await queue.resume();
    for (;;) {
      const { waiting, paused, active } = await queue.getJobCounts('waiting', 'paused', 'active');
      if (waiting + paused + active === 0) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const seconds = (performance.now() - started) / 1000;
    return {
      perSecond: images.length / seconds,
      commands: ((await commands(redis)) - asked) / images.length,
    };
  } finally {
    await queue.close();
    for (const worker of workers) {
      const ended = once(worker, 'exit');
      worker.kill('SIGKILL');
      await ended;
    }
  }
}

/** Measures images per second of the base bundle on one core, in full batches. */
async function engineOnOneCore(count) {
  const image = await readFile(path.join(root, 'examples', 'gear-good.png'));
  const diad = await Diad.load(undefined, { device: 'cpu', threads: 1 });
  try {
    const images = Array.from({ length: count }, () => image);
    const started = performance.now();
    for await (const _ of diad.scoreMany(images)) void _;
    return count / ((performance.now() - started) / 1000);
  } finally {
    await diad.close();
  }
}

async function run({ short }) {
  const jobs = short ? 300 : 5000;
  return withImages(jobs, async (given) => {
    const redis = new Redis(given.broker.url, { maxRetriesPerRequest: null });
    try {
      const cost = await overhead(given);
      const bytes = await footprint(given, redis);
      const rates = {};
      let asked = 0;
      for (const processes of [1, 2, 4]) {
        const { perSecond, commands: each } = await throughput(given, redis, processes);
        rates[processes] = perSecond;
        asked = each;
      }
      const engine = await engineOnOneCore(short ? 16 : 200);
      const best = Math.max(...Object.values(rates));
      const perCoreDay = engine * DAY * HEADROOM;
      const brokerDay = best * DAY * HEADROOM;
      const figures = {
        jobs,
        'overhead per job, median ms': cost.median,
        'overhead per job, p99 ms': cost.p99,
        'jobs/s, 1 process': rates[1],
        'jobs/s, 2 processes': rates[2],
        'jobs/s, 4 processes': rates[4],
        'commands to Redis per job (4 processes)': asked,
        'Redis bytes per queued job': bytes,
        'base bundle, images/s on one core': engine,
      };
      const model = [1e6, 1e9].flatMap((daily) => [
        [`${daily.toExponential(0)} images per day, average images/s`, daily / DAY],
        [
          `${daily.toExponential(0)} images per day, cores for the base bundle`,
          Math.ceil(daily / perCoreDay),
        ],
        [
          `${daily.toExponential(0)} images per day, brokers at the measured jobs/s`,
          Math.ceil(daily / brokerDay),
        ],
        [
          `${daily.toExponential(0)} images per day, GiB of Redis for a backlog of one hour`,
          ((daily / 24) * bytes) / 2 ** 30,
        ],
      ]);
      const costs = {
        'images per day and core, base bundle': Math.round(perCoreDay),
        'images per day and GPU': 'not measured',
        ...Object.fromEntries(model),
      };
      return { figures, costs };
    } finally {
      redis.disconnect();
    }
  });
}

const started = performance.now();
const { figures, costs } = await run(values);
const seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify({ ...figures, ...costs }, null, 2));
const finite = Object.values(figures).every((value) => Number.isFinite(value) && value > 0);
if (!finite) process.exitCode = 1;
else if (!values.short || values.write) {
  const rest = { short: values.short, seconds, expectations: [] };
  write('scaling', 'queue', { ...rest, figures });
  write('scaling', 'cost', { ...rest, figures: costs });
}
