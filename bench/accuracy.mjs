// npm run accuracy: compares results of Node with the reference. Writes bench/results/accuracy.json and the
// table in docs/benchmarks.md.
//
//   node bench/accuracy.mjs [--full] [--keep DIR]
//
// Without --full: the base bundle (golden results) and a converted medium checkpoint, in all precisions of
// the CPU. With --full: also a converted checkpoint of the published size with seeded random weights, one
// image in Node and in the published reference, with times and peak memory. Needs about 12 GB of disk space
// and 8 GB of memory.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { verifyBundle } from '../dist/index.js';
import { readNpy } from '../dist/io/npy.js';
import { CPU_FLOAT32, largestDifference } from '../dist/verify/verify.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const python = path.join(root, '.venv', 'bin', 'python');
const { values } = parseArgs({
  options: { full: { type: 'boolean', default: false }, keep: { type: 'string' } },
});
const image = path.join(root, 'examples', 'circuit_board-missing_part.png');
const SEED = 1;

/** Runs a program and measures wall-clock seconds and peak resident set. */
function measured(command, args) {
  const script =
    'import json, os, resource, subprocess, sys, time\n' +
    'started = time.time()\n' +
    'code = subprocess.call(sys.argv[1:])\n' +
    'peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024\n' +
    "print(json.dumps({'code': code, 'seconds': time.time() - started, 'peakMiB': peak}))";
  const env = { ...process.env, PYTHONPATH: path.join(root, 'python'), OMP_WAIT_POLICY: 'PASSIVE' };
  const run = spawnSync(python, ['-c', script, command, ...args], {
    env,
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = run.stdout.trim().split('\n');
  const result = JSON.parse(lines.at(-1));
  if (result.code !== 0) throw new Error(`${[command, ...args].join(' ')} failed:\n${run.stdout}`);
  return { ...result, output: lines.slice(0, -1) };
}

const cli = (...args) => measured(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args]);
const reference = (...args) => measured(python, ['-m', 'diad_reference', ...args]);

async function compareDumps(mine, expected) {
  const differences = {};
  for (const stage of Object.keys(CPU_FLOAT32)) {
    const [a, b] = await Promise.all(
      [mine, expected].map((folder) => readNpy(path.join(folder, `000.${stage}.npy`))),
    );
    differences[stage] = largestDifference(a.data, b.data);
    if (stage === 'score') differences[stage] /= Math.abs(b.data[0]);
  }
  return differences;
}

/** Converts a checkpoint of the given size and scores one image in Node and in the published reference. */
async function published(config, folder) {
  if (!existsSync(path.join(folder, 'model.ckpt')))
    measured(python, ['bench/full_checkpoint.py', folder, '--config', config]);
  const files = Object.fromEntries(
    ['model.ckpt', 'diad.yaml', 'resnet50.pth', 'context.pt'].map((name) => [name, path.join(folder, name)]),
  );
  const sources = ['--extractor', files['resnet50.pth'], '--context', files['context.pt']];
  const bundle = path.join(folder, 'bundle');
  process.stderr.write(`${config}: converting\n`);
  const convert = cli(
    'convert',
    '--checkpoint',
    files['model.ckpt'],
    '--config',
    files['diad.yaml'],
    ...sources,
    '--out',
    bundle,
  );
  const dumps = { node: path.join(folder, 'node'), reference: path.join(folder, 'reference') };
  process.stderr.write(`${config}: Node\n`);
  const node = cli('score', '--model', bundle, '--seed', String(SEED), '--json', '--dump', dumps.node, image);
  process.stderr.write(`${config}: published reference\n`);
  const model = ['--published', files['model.ckpt'], '--config-file', files['diad.yaml'], ...sources];
  const asPublished = reference(
    'score',
    ...model,
    '--as-published',
    '--seed',
    String(SEED),
    '--dump',
    dumps.reference,
    image,
  );
  const weightsMiB = statSync(files['model.ckpt']).size / 2 ** 20;
  const of = ({ seconds, peakMiB }) => ({ seconds, peakMiB });
  return {
    name: config,
    checkpointMiB: weightsMiB,
    convert: of(convert),
    node: of(node),
    reference: of(asPublished),
    differences: await compareDumps(dumps.node, dumps.reference),
  };
}

async function precisions(name, bundle) {
  const rows = [];
  for (const precision of ['float32', 'bfloat16', 'float16', 'int8']) {
    const report = await verifyBundle(bundle, { device: 'cpu', precision }).catch((error) => {
      if (error.code !== 'ERR_DIAD_DEVICE_UNAVAILABLE') throw error;
      process.stderr.write(`${precision} skipped: ${error.message}\n`);
    });
    if (report === undefined) continue;
    const of = (stage) => report.stages.find((found) => found.stage === stage);
    const [reconstruction, map, score] = ['reconstruction', 'map', 'score'].map(of);
    rows.push({
      name,
      precision,
      reconstruction: reconstruction.maxAbsolute,
      map: map.maxAbsolute,
      score: score.maxRelative,
      passed: report.passed,
    });
  }
  return rows;
}

const short = (value) => (value === 0 ? '0' : value.toExponential(1));

function tables(result) {
  const lines = [
    `Measured on ${result.date} with \`npm run accuracy${result.full ? ' -- --full' : ''}\` ` +
      `(commit ${result.commit}; ${result.cpu}, ${result.cores} cores; LibTorch ${result.libtorch}).`,
    '',
    '| bundle | device, precision | reconstruction, max abs | map, max abs | score, relative ' +
      '| within tolerance |',
    '|---|---|---|---|---|---|',
    ...result.precisions.map(
      (row) =>
        `| ${row.name} | cpu, ${row.precision} | ${short(row.reconstruction)} | ${short(row.map)} | ` +
        `${short(row.score)} | ${row.passed ? 'yes' : 'NO'} |`,
    ),
    '',
    'Node compared with the published reference, float32, one image: largest absolute difference per stage ' +
      '(relative for the score):',
    '',
    `| stage | tolerance | ${result.published.map((row) => row.name).join(' | ')} |`,
    `|---|---|${'---|'.repeat(result.published.length)}`,
    ...Object.entries(CPU_FLOAT32).map(
      ([stage, tolerance]) =>
        `| ${stage} | ${tolerance} | ` +
        `${result.published.map((row) => short(row.differences[stage])).join(' | ')} |`,
    ),
    '',
    '| size | checkpoint | convert | Node, process start to result ' +
      '| published reference, process start to result |',
    '|---|---|---|---|---|',
    ...result.published.map((row) => {
      const cell = ({ seconds, peakMiB }) =>
        `${seconds.toFixed(0)} s, peak ${(peakMiB / 1024).toFixed(2)} GiB`;
      const checkpoint = `${(row.checkpointMiB / 1024).toFixed(2)} GiB`;
      const cells = [row.name, checkpoint, cell(row.convert), cell(row.node), cell(row.reference)];
      return `| ${cells.join(' | ')} |`;
    }),
  ];
  return lines.join('\n');
}

const folder = values.keep ?? mkdtempSync(path.join(os.tmpdir(), 'diad-accuracy-'));
try {
  mkdirSync(folder, { recursive: true });
  const sizes = values.full ? ['medium', 'published'] : ['medium'];
  const rows = [];
  for (const size of sizes) {
    const sizeFolder = path.join(folder, size);
    mkdirSync(sizeFolder, { recursive: true });
    rows.push(await published(size, sizeFolder));
  }
  const demo = path.join(root, 'models', 'base');
  const git = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' });
  const result = {
    date: new Date().toISOString().slice(0, 10),
    full: values.full,
    commit: git.stdout.trim(),
    cpu: os.cpus()[0].model,
    cores: os.availableParallelism(),
    libtorch: (await verifyBundle(demo)).libtorch,
    precisions: [
      ...(await precisions('small', demo)),
      ...(await precisions('medium', path.join(folder, 'medium', 'bundle'))),
    ],
    published: rows,
  };
  mkdirSync(path.join(root, 'bench', 'results'), { recursive: true });
  writeFileSync(path.join(root, 'bench', 'results', 'accuracy.json'), `${JSON.stringify(result, null, 2)}\n`);
  const page = path.join(root, 'docs', 'benchmarks.md');
  const [start, end] = ['<!-- measured: npm run accuracy -->', '<!-- end of measured -->'];
  const text = readFileSync(page, 'utf8');
  const [before, after] = [text.slice(0, text.indexOf(start) + start.length), text.slice(text.indexOf(end))];
  writeFileSync(page, `${before}\n\n${tables(result)}\n\n${after}`);
  console.log(tables(result));
} finally {
  if (values.keep === undefined) rmSync(folder, { recursive: true, force: true });
}
