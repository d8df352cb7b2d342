// npm run bench: compares diad with the Python reference at three sizes, interleaved in one run. Also
// measures cold start, load and memory.
//
//   npm run bench -- [--quick] [--sizes small,medium,published] [--keep-load] [--rounds N] [--soak N]
//                    [--device cpu]
//
// Writes bench/results/<machine>.json and the tables of docs/benchmarks.md. --quick: small model only, few
// rounds, under three minutes; writes nothing unless --write is given. Sizes that are not run keep the rows
// of the previous run. With --keep-load, so do cold start and load.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Diad } from '../dist/index.js';
import { coldStarts } from './speed/cold_start.mjs';
import { compare } from './speed/comparison.mjs';
import { python, root } from './speed/contenders.mjs';
import { poisson, saturated } from './speed/load.mjs';
import { operatorProfile } from './speed/profile.mjs';
import { median, spread } from './speed/statistics.mjs';
import { performancePage } from './speed/tables.mjs';

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    sizes: { type: 'string' },
    rounds: { type: 'string' },
    soak: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
    write: { type: 'boolean', default: false },
    'keep-load': { type: 'boolean', default: false },
  },
});
const sizes = (values.sizes ?? (values.quick ? 'small' : 'small,medium,published')).split(',');
const GIB = 2 ** 30;
const CPU_INFO = '/proc/cpuinfo';
const NVIDIA_DRIVER = '/proc/driver/nvidia/version';
const onCuda = values.device !== 'cpu';
const CUDA_BATCHES = [1, 2, 4, 8, 16, 32];

/** Settings per size. profiled: images to profile; memory: needed by all processes together. */
const PLANS = {
  small: {
    modes: ['as-published', 'lossless', 'compiled'],
    batches: [1, 2, 4, 8],
    rounds: 12,
    warmUp: 2,
    profiled: 20,
    memory: 4 * GIB,
  },
  medium: {
    modes: ['as-published', 'lossless', 'compiled'],
    batches: [1, 4],
    rounds: 4,
    warmUp: 1,
    profiled: 4,
    memory: 8 * GIB,
  },
  published: {
    modes: ['as-published', 'lossless'],
    batches: [1],
    rounds: 3,
    warmUp: 0,
    profiled: 2,
    memory: 20 * GIB,
  },
};

/** Returns the base bundle for 'small', otherwise a cached bundle with seeded random weights. */
function bundleOf(size) {
  if (size === 'small') return path.join(root, 'models', 'base');
  const folder = path.join(root, 'out', 'bench', size);
  if (existsSync(path.join(folder, 'manifest.json'))) return folder;
  console.log(`${size}: writing a bundle of random weights to ${path.relative(root, folder)}`);
  mkdirSync(path.dirname(folder), { recursive: true });
  const args = [
    '-m',
    'diad_reference',
    'export',
    '--random',
    '--config',
    size,
    '--storage',
    'float32',
    '--out',
    folder,
  ];
  const { status } = spawnSync(python, args, {
    cwd: root,
    env: { ...process.env, PYTHONPATH: path.join(root, 'python') },
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error(`Could not write the bundle of size ${size}`);
  return folder;
}

async function load() {
  const image = readFileSync(path.join(root, 'examples', 'gear-good.png'));
  const diad = await Diad.load(undefined, { device: values.device });
  const flat = await saturated(diad, image, Number(values.soak ?? (values.quick ? 60 : 1000)));
  const rates = values.quick ? [0.5] : [0.3, 0.5, 0.7, 0.9];
  let state = 1;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const arrivals = [];
  for (const share of rates) {
    arrivals.push({
      share,
      ...(await poisson(diad, image, share * flat.imagesPerSecond, values.quick ? 10 : 60, random)),
    });
  }
  await diad.close();
  return { saturated: flat, poisson: arrivals };
}

// Lossy precisions, and the CPU features with which they are faster than float32.
const FASTER = { bfloat16: /\b(amx_bf16|avx512_bf16)\b/, int8: /\bavx512_vnni\b/ };

/** Lists the lossy precisions that the device has instructions for. */
function fasterPrecisions() {
  if (onCuda) return ['bfloat16', 'float16'];
  const flags = existsSync(CPU_INFO) ? readFileSync(CPU_INFO, 'utf8') : '';
  return Object.keys(FASTER).filter((precision) => FASTER[precision].test(flags));
}

/** Returns the processor name, with the model number if the name is generic, as on virtual machines. */
function processor() {
  const name = os.cpus()[0].model;
  const number = existsSync(CPU_INFO) ? /^model\s*: (\d+)$/m.exec(readFileSync(CPU_INFO, 'utf8')) : null;
  return number === null || /\d/.test(name) ? name : `${name} (model ${number[1]})`;
}

const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], {
  cwd: root,
  encoding: 'utf8',
}).stdout.trim();
const cpu = processor();
const machineName = `${cpu}-${os.availableParallelism()}-cores${onCuda ? '-cuda' : ''}`;
const name = `${machineName.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase()}.json`;
const file = path.join(root, 'bench', 'results', name);
const last = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
const results = {
  date: new Date().toISOString().slice(0, 10),
  commit,
  machine: {
    cpu,
    cores: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / GIB),
    node: process.version,
    ...(onCuda ? { device: values.device } : {}),
  },
  sizes: { ...(last.sizes ?? {}) },
  notRun: {},
};
if (!onCuda) {
  results.notRun.cuda = existsSync(NVIDIA_DRIVER)
    ? 'run `npm run bench -- --device cuda` separately'
    : 'no CUDA device on this machine';
}
if (values['keep-load']) {
  const { coldStartMs, load: lastLoad, loadCommit } = last;
  if (lastLoad) Object.assign(results, { coldStartMs, load: lastLoad, loadCommit });
  else results.notRun.load = 'skipped because of --keep-load';
} else {
  results.coldStartMs = spread(
    coldStarts(values.quick ? 3 : 9, path.join(root, 'examples', 'gear-good.png'), values.device),
  );
  console.log(`small: process start to first score ${results.coldStartMs.median.toFixed(0)} ms`);
  results.load = await load();
  results.loadCommit = commit;
  console.log(`small: ${results.load.saturated.imagesPerSecond.toFixed(1)} images/s saturated`);
}
const precisions = fasterPrecisions();
for (const precision of Object.keys(FASTER)) {
  if (!onCuda && !precisions.includes(precision))
    results.notRun[precision] = `this device has no instructions for ${precision}`;
}
for (const size of sizes) {
  const plan = PLANS[size];
  if (!plan) throw new Error(`Expected sizes of ${Object.keys(PLANS).join(', ')} but received ${size}`);
  if (os.freemem() < plan.memory) {
    results.notRun[size] = `needs ${plan.memory / GIB} GiB of free memory`;
    continue;
  }
  const modes = values.quick ? plan.modes.filter((mode) => mode !== 'compiled') : plan.modes;
  const rounds = Number(values.rounds ?? (values.quick ? 5 : plan.rounds));
  const batches = onCuda ? CUDA_BATCHES : plan.batches;
  const row = await compare(size, bundleOf(size), {
    ...plan,
    modes,
    batches,
    rounds,
    precisions,
    device: values.device,
  });
  const profile = operatorProfile(bundleOf(size), { device: values.device, repeat: plan.profiled });
  results.sizes[size] = { ...row, profile, date: results.date, commit };
  const ratios = Object.entries(row.speedup).map(([mode, ratio]) => `${ratio.toFixed(2)}x ${mode}`);
  for (const precision of precisions)
    ratios.push(`${precision} ${row[precision].speedup.toFixed(2)}x as-published`);
  console.log(
    `${size}: ${median([row.imageMs.diad.median]).toFixed(0)} ms per image; ${ratios.join(', ')}; ` +
      `saturated ${row.saturatedSpeedup.toFixed(2)}x`,
  );
}
if (!values.quick || values.write) {
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
  const page = path.join(root, 'docs', 'benchmarks.md');
  const folder = path.dirname(file);
  const machines = readdirSync(folder).filter((entry) => /-cores(-cuda)?\.json$/.test(entry));
  const read = (entry) => JSON.parse(readFileSync(path.join(folder, entry), 'utf8'));
  writeFileSync(page, performancePage(readFileSync(page, 'utf8'), machines.sort().map(read)));
  console.log(`\nbench/results/${name}, docs/benchmarks.md`);
}
