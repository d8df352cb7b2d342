// Quality of the demo model: what guidance, start, steps and comparison bring, how far scores depend on the seed, and what each mode costs.
//
//   node bench/quality.mjs --checkpoint model.pt --validation DIR --test DIR [--work DIR] [--parts validation,test,modes,python,steps,seeds,time]
//   node bench/quality.mjs --render
//
// DIR: splits that `python -m diad_reference generate` wrote (models/demo/MODEL_CARD.md has the commands). Every choice is made on the validation
// split. What the engine can do runs in it, on one thread; what has no option there runs in the Python reference on the checkpoint. Resumable:
// each picture and row that is done stays in the work folder. Writes bench/results/quality.json and the tables of what has been measured: in
// docs/modes.md and, once test, modes and python are there, in models/demo/MODEL_CARD.md, which changes the model's digest.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { renderQuality } from './quality-tables.mjs';
import { Diad } from '../dist/index.js';
import { evaluateDataSet, readDataSet } from '../dist/evaluation/index.js';
import { circumstances, root } from './reliability/record.mjs';

const { values } = parseArgs({
  options: {
    checkpoint: { type: 'string' },
    validation: { type: 'string' },
    test: { type: 'string' },
    work: { type: 'string', default: path.join(os.tmpdir(), 'diad-quality') },
    parts: { type: 'string', default: 'validation,test,modes,python,steps,seeds,time' },
    render: { type: 'boolean', default: false },
  },
});

const still = { startNoise: 'none' };
/** Of these one is recommended; compared on the validation split. */
const CANDIDATES = [
  {},
  { steps: 5 },
  { startTimestep: 501, ...still, steps: 2 },
  { startTimestep: 501, ...still },
  { startTimestep: 401, ...still, steps: 2 },
  { startTimestep: 401, ...still },
  { startTimestep: 301, ...still, steps: 2 },
];
/** Of the candidates within 0.005 of the largest image AUROC on the validation split the one with the fewest steps. */
const CHOSEN = { startTimestep: 401, ...still, steps: 2 };
/** On every test picture. */
const TEST_ROWS = [{}, CHOSEN];
/** On a part of the test pictures: every mode by itself. */
const MODE_ROWS = [{}, CHOSEN, { startTimestep: 401 }, still, { startTimestep: 401, ...still }, { compareWith: 'autoencoder' }];
/** On the same part: fewer steps; more of them in the Python reference. */
const STEP_ROWS = [{ steps: 2 }, { steps: 4 }, { steps: 6 }];
const MORE_STEPS = { 'ddim 20': { arguments: ['--methods', 'diad', '--ddim-steps', '20'], method: 'diad' } };
/** Pictures of each class in that part, half of them good. */
const PART = 20;
/** Rows of the Python reference on the same part: arguments of `evaluate`, and the method whose numbers count. */
const PYTHON_ROWS = {
  autoencoder: { arguments: ['--methods', 'autoencoder'], method: 'autoencoder' },
  'without SG': { arguments: ['--methods', 'without SG'], method: 'without SG' },
  'without SFF': { arguments: ['--methods', 'without SFF'], method: 'without SFF' },
};
const SEEDS = 10;
const TIMED_PICTURES = 5;
const TIMED_ROUNDS = 5;

const slug = (experimental) =>
  Object.entries(experimental)
    .map(([name, value]) => `${name}-${value}`)
    .join('_') || 'published';

/** Values by a key, in order of appearance. */
function grouped(items, keyOf) {
  const groups = new Map();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return [...groups.values()];
}

/** Every so many-th picture of a class's good and defective ones, so that each kind of defect is among them. */
function thinned(data, perClass) {
  const kinds = grouped(data.pictures, ({ className, defective }) => `${className}/${defective}`);
  const take = (pictures) => {
    const count = Math.min(perClass / 2, pictures.length);
    return Array.from({ length: count }, (_, i) => pictures[Math.floor((i * pictures.length) / count)]);
  };
  return { ...data, pictures: kinds.flatMap(take) };
}

async function row(diad, data, name, experimental, seed = 0) {
  const file = path.join(values.work, `${name}.json`);
  if (existsSync(file)) return JSON.parse(readFileSync(file, 'utf8'));
  process.stderr.write(`${name}\n`);
  const evaluation = await evaluateDataSet(diad, data, { out: path.join(values.work, name), resume: true, experimental, seed });
  await evaluation.scores.close();
  if (evaluation.failed.length > 0) throw new Error(`${evaluation.failed.length} pictures failed: ${evaluation.failed[0].message}`);
  const { mean, pictures } = evaluation;
  const classes = Object.fromEntries(Object.entries(evaluation.classes).map(([key, { metrics }]) => [key, metrics]));
  const found = { experimental, seed, pictures: pictures.length, mean, classes };
  writeFileSync(file, `${JSON.stringify({ ...found, scores: pictures.map(({ className, score }) => [className, score]) })}\n`);
  return row(diad, data, name, experimental, seed);
}

const withoutScores = (found) => ({ ...found, scores: undefined });

async function rows(diad, data, prefix, candidates) {
  const found = [];
  for (const experimental of candidates) found.push(withoutScores(await row(diad, data, `${prefix}_${slug(experimental)}`, experimental)));
  return found;
}

const python = path.join(root, '.venv', 'bin', 'python');
const pythonEnv = { ...process.env, PYTHONPATH: path.join(root, 'python') };

function pythonRows(wanted) {
  const found = {};
  for (const [name, { arguments: more, method }] of Object.entries(wanted)) {
    const out = path.join(values.work, `${name.replaceAll(' ', '-')}.json`);
    if (!existsSync(out)) {
      process.stderr.write(`${name} (Python)\n`);
      const part = ['--data', values.test, '--per-class', String(PART)];
      const command = ['-m', 'diad_reference', 'evaluate', '--checkpoint', values.checkpoint, ...part, '--out', out, ...more];
      execFileSync(python, command, { env: pythonEnv, stdio: ['ignore', 'ignore', 'inherit'] });
    }
    const { pictures, methods } = JSON.parse(readFileSync(out, 'utf8'));
    found[name] = { pictures, mean: methods[method].mean };
  }
  return found;
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
const variance = (numbers) => {
  const centre = mean(numbers);
  return numbers.reduce((sum, number) => sum + (number - centre) ** 2, 0) / (numbers.length - 1);
};

/**
 * How far scores depend on the seed: the standard deviation of a picture's score over the seeds (root mean square over the pictures of a class), over the
 * standard deviation of the pictures' mean scores of that class; the mean of this over classes. And the spread of the metrics.
 */
async function seeds(diad, data, experimental) {
  const runs = [await row(diad, data, `modes_${slug(experimental)}`, experimental)];
  for (let seed = 1; seed < SEEDS; seed++) runs.push(await row(diad, data, `seeds_${slug(experimental)}_${seed}`, experimental, seed));
  const shares = grouped([...runs[0].scores.keys()], (i) => runs[0].scores[i][0]).map((places) => {
    const scores = places.map((i) => runs.map((run) => run.scores[i][1]));
    return Math.sqrt(mean(scores.map(variance))) / Math.sqrt(variance(scores.map(mean)));
  });
  const spread = (metric) => {
    const found = runs.map((run) => run.mean[metric]);
    return { mean: mean(found), deviation: Math.sqrt(variance(found)) };
  };
  return {
    experimental,
    seeds: SEEDS,
    pictures: runs[0].pictures,
    scoreSpread: mean(shares),
    imageAuroc: spread('image_auroc'),
    pixelAuroc: spread('pixel_auroc'),
  };
}

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

/** Time of a picture alone, on one thread: every mode in turn on the same picture, again and again. */
async function times() {
  const { pictures } = thinned(await readDataSet(values.test), 2);
  const diad = await Diad.load(undefined, { maxBatch: 1, threads: 1 });
  const timed = [...MODE_ROWS, ...STEP_ROWS];
  const spent = timed.map(() => []);
  for (let round = 0; round < TIMED_ROUNDS; round++) {
    for (const { file } of pictures.slice(0, TIMED_PICTURES)) {
      const picture = await readFile(file);
      for (const [i, experimental] of timed.entries()) spent[i].push((await diad.score(picture, { experimental })).timings.computeMs);
    }
  }
  await diad.close();
  const rows = timed.map((experimental, i) => ({
    experimental,
    milliseconds: median(spent[i]),
    relative: median(spent[i].map((time, k) => time / spent[0][k])),
  }));
  const more = [path.join(root, 'bench', 'more_steps.py'), values.checkpoint, pictures[0].file];
  return { rows, ddim20: Number(execFileSync(python, more, { env: pythonEnv, encoding: 'utf8' })) };
}

const results = path.join(root, 'bench', 'results', 'quality.json');
const kept = existsSync(results) ? JSON.parse(readFileSync(results, 'utf8')) : {};

if (!values.render) {
  mkdirSync(values.work, { recursive: true });
  const parts = values.parts.split(',');
  const diad = await Diad.load(undefined, { threads: 1 });
  const record = (name, part) => {
    kept[name] = { ...circumstances(), ...part };
    writeFileSync(results, `${JSON.stringify(kept, null, 2)}\n`);
  };
  if (parts.includes('validation')) {
    record('validation', { rows: await rows(diad, await readDataSet(values.validation), 'validation', CANDIDATES), chosen: CHOSEN });
  }
  const test = values.test === undefined ? undefined : await readDataSet(values.test);
  if (parts.includes('test')) record('test', { rows: await rows(diad, test, 'test', TEST_ROWS) });
  if (parts.includes('modes')) record('modes', { rows: await rows(diad, thinned(test, PART), 'modes', MODE_ROWS) });
  if (parts.includes('python')) record('python', { rows: pythonRows(PYTHON_ROWS) });
  if (parts.includes('steps')) {
    record('steps', { rows: await rows(diad, thinned(test, PART), 'modes', STEP_ROWS), more: pythonRows(MORE_STEPS) });
  }
  if (parts.includes('seeds')) record('seeds', { rows: [await seeds(diad, thinned(test, PART), {})] });
  await diad.close();
  if (parts.includes('time')) record('time', await times());
}
const card = renderQuality(kept);
if (card !== undefined) {
  const seal = 'import sys; from diad_reference.export.bundle import replace_card; replace_card(sys.argv[1], sys.stdin.read())';
  const sealed = spawnSync(python, ['-c', seal, path.join(root, 'models', 'demo')], {
    input: card,
    env: pythonEnv,
    stdio: ['pipe', 'inherit', 'inherit'],
  });
  if (sealed.status !== 0) throw new Error('the bundle could not be sealed');
}
