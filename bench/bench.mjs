// npm run bench: the demo model from Node against the Python reference, interleaved in one run; cold start; overheads; memory.
//
//   node bench/bench.mjs [--rounds 12] [--soak 1000] [--out bench/results/NAME.json]
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Diad } from '../dist/index.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const python = path.join(root, '.venv', 'bin', 'python');
const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '12' }, soak: { type: 'string', default: '1000' }, out: { type: 'string' } },
});
const rounds = Number(values.rounds);
const soak = Number(values.soak);
const pictureFile = path.join(root, 'examples', 'gear-good.png');
const picture = readFileSync(pictureFile);

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
const spread = (numbers) => ({ median: median(numbers), min: Math.min(...numbers), max: Math.max(...numbers), n: numbers.length });

/** A reference process that times one picture per request. */
async function reference(mode) {
  const env = { ...process.env, PYTHONPATH: path.join(root, 'python') };
  const child = spawn(python, ['bench/reference_timing.py', '--mode', mode], { cwd: root, env, stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    time: async () => {
      child.stdin.write('\n');
      return Number((await lines.next()).value);
    },
    stop: () => child.stdin.end(),
  };
}

/** Milliseconds from process start to the first score, in fresh processes. */
function coldStarts(count) {
  const source = `import { Diad } from ${JSON.stringify(path.join(root, 'dist', 'index.js'))}; import { readFileSync } from 'node:fs';
    const diad = await Diad.load(undefined, { warmup: false }); await diad.score(readFileSync(${JSON.stringify(pictureFile)}));
    console.log(performance.now()); process.exit(0);`;
  const run = () => Number(execFileSync(process.execPath, ['--input-type=module', '-e', source], { encoding: 'utf8' }));
  run(); // files into the page cache
  return Array.from({ length: count }, run);
}

async function interleaved(diad) {
  const [published, lossless] = [await reference('as-published'), await reference('lossless')];
  const times = { node: [], published: [], lossless: [] };
  const shares = [];
  for (let round = 0; round < rounds + 2; round++) {
    const started = performance.now();
    const { timings } = await diad.score(picture);
    const node = performance.now() - started;
    const [a, b] = [await published.time(), await lossless.time()];
    if (round < 2) continue; // warm-up
    times.node.push(node);
    times.published.push(a);
    times.lossless.push(b);
    shares.push({ overhead: (node - timings.computeMs) / node, stages: timings });
  }
  published.stop();
  lossless.stop();
  const names = ['decodeImageMs', 'resizeMs', 'encodeMs', 'denoiseMs', 'decodeMs', 'extractMs', 'mapMs'];
  return {
    nodeMs: spread(times.node),
    referenceAsPublishedMs: spread(times.published),
    referenceLosslessMs: spread(times.lossless),
    speedupOverPublished: median(times.published.map((time, i) => time / times.node[i])),
    speedupOverLossless: median(times.lossless.map((time, i) => time / times.node[i])),
    bindingAndDecodingShare: median(shares.map(({ overhead }) => overhead)),
    stagesMs: Object.fromEntries(names.map((name) => [name, median(shares.map(({ stages }) => stages[name]))])),
  };
}

async function saturated(diad) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const rss = {};
  let done = 0;
  const source = function* () {
    for (let i = 0; i < soak; i++) yield picture;
  };
  const started = performance.now();
  delay.enable();
  for await (const { score } of diad.scoreMany(source())) {
    if (!(score > 0)) throw new Error(`score ${score}`);
    done++;
    if (done === Math.min(100, soak >> 1)) rss.early = process.memoryUsage.rss();
  }
  delay.disable();
  rss.late = process.memoryUsage.rss();
  return {
    pictures: done,
    picturesPerSecond: (1000 * done) / (performance.now() - started),
    eventLoopDelayP99Ms: delay.percentile(99) / 1e6 - 1, // the histogram counts from the timer's own resolution of 1 ms
    rssEarlyMiB: rss.early / 2 ** 20,
    rssLateMiB: rss.late / 2 ** 20,
    rssGrowth: rss.late / rss.early - 1,
  };
}

const diad = await Diad.load();
const { libtorch, threads, bundle } = diad.info;
const machine = { cpu: os.cpus()[0].model, cores: os.availableParallelism(), node: process.version, libtorch: libtorch.version, threads };
const results = { date: new Date().toISOString(), machine, model: bundle.name };
results.coldStartMs = spread(coldStarts(5));
results.batch1 = await interleaved(diad);
results.saturated = await saturated(diad);
await diad.close();

const { batch1, saturated: flat, coldStartMs } = results;
const ms = ({ median: middle, min, max }) => `${middle.toFixed(0)} ms (${min.toFixed(0)} to ${max.toFixed(0)})`;
const rows = [
  ['process start to first score', ms(coldStartMs)],
  ['score, one at a time', ms(batch1.nodeMs)],
  ['reference as published', ms(batch1.referenceAsPublishedMs)],
  ['reference, lossless savings', ms(batch1.referenceLosslessMs)],
  ['faster than as published', `${batch1.speedupOverPublished.toFixed(2)}x (median of the rounds' ratios)`],
  ['faster than lossless', `${batch1.speedupOverLossless.toFixed(2)}x`],
  ['binding and decoding', `${(100 * batch1.bindingAndDecodingShare).toFixed(1)} % of a picture's time`],
  ['saturated', `${flat.picturesPerSecond.toFixed(1)} pictures/s over ${flat.pictures}`],
  ['event-loop delay p99', `${flat.eventLoopDelayP99Ms.toFixed(1)} ms while saturated`],
  [
    'RSS',
    `${flat.rssEarlyMiB.toFixed(0)} MiB early, ${flat.rssLateMiB.toFixed(0)} MiB at the end (${(100 * flat.rssGrowth).toFixed(1)} %)`,
  ],
];
for (const [name, value] of rows) console.log(`${name.padEnd(30)} ${value}`);
const name = `${machine.cpu.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase()}-${machine.cores}-cores.json`;
const out = values.out ?? path.join(root, 'bench', 'results', name);
mkdirSync(path.dirname(out), { recursive: true });
writeFileSync(out, `${JSON.stringify(results, null, 2)}\n`);
console.log(`\n${path.relative(process.cwd(), out)}`);
