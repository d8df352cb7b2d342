// What computing in another precision than float32 does to the base bundle's scores, maps and metrics, on its test images.
//
//   node bench/precisions.mjs --test DIR [--work DIR] [--device cpu]
//
// DIR: the split that `python -m diad_reference generate` wrote (models/base/MODEL_CARD.md has the command). Every image is scored in float32, bfloat16,
// float16 and int8 by `evaluateDataSet`, the maps of one part of them compared value by value. Resumable. Writes bench/results/precisions.json and its table in
// docs/accuracy.md.
import { mkdirSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { Diad } from '../dist/index.js';
import { evaluateDataSet, readDataSet } from '../dist/evaluation/index.js';
import { circumstances, fill, quantile, root } from './reliability/record.mjs';

const { values } = parseArgs({
  options: {
    test: { type: 'string' },
    work: { type: 'string', default: path.join(os.tmpdir(), 'diad-precisions') },
    device: { type: 'string', default: 'cpu' },
  },
});
const PRECISIONS = ['float32', 'bfloat16', 'float16', 'int8'];
const PROMISED_SCORE = 5e-3; // relative; docs/accuracy.md
const COMPARED_MAPS = 40;

const data = await readDataSet(values.test);
mkdirSync(values.work, { recursive: true });

/** Metrics, every image's score, and the maps of every so many-th image. */
async function measure(precision) {
  const diad = await Diad.load(undefined, { device: values.device, precision });
  const evaluation = await evaluateDataSet(diad, data, {
    out: path.join(values.work, precision),
    resume: true,
    seed: 0,
  });
  await evaluation.scores.close();
  if (evaluation.failed.length > 0)
    throw new Error(`${evaluation.failed.length} images failed: ${evaluation.failed[0].message}`);
  const maps = [];
  for (let i = 0; i < COMPARED_MAPS; i++) {
    const { file } = data.images[Math.floor((i * data.images.length) / COMPARED_MAPS)];
    maps.push((await diad.score(await readFile(file), { seed: 0 })).map.data);
  }
  await diad.close();
  return { mean: evaluation.mean, scores: evaluation.images.map(({ score }) => score), maps };
}

const largest = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

const found = {};
for (const precision of PRECISIONS) {
  try {
    found[precision] = await measure(precision);
  } catch (error) {
    if (error.code !== 'ERR_DIAD_DEVICE_UNAVAILABLE' || precision === 'float32') throw error;
    console.log(`${precision} left out: ${error.message}`);
  }
}
const exact = found.float32;
const rows = Object.keys(found).map((precision) => {
  const { mean, scores, maps } = found[precision];
  const relative = scores.map((score, i) => Math.abs(score / exact.scores[i] - 1));
  return {
    precision,
    mean,
    score: { median: quantile(relative, 0.5), p99: quantile(relative, 0.99), largest: Math.max(...relative) },
    within: relative.filter((difference) => difference <= PROMISED_SCORE).length,
    map: Math.max(...maps.map((map, i) => largest(map, exact.maps[i]))),
  };
});
const where = { ...circumstances(), device: values.device, images: exact.scores.length, maps: COMPARED_MAPS };
writeFileSync(
  path.join(root, 'bench', 'results', 'precisions.json'),
  `${JSON.stringify({ ...where, rows }, null, 2)}\n`,
);

const four = (value) => value.toFixed(4);
const short = (value) => (value === 0 ? '0' : value.toExponential(1));
fill(
  'accuracy.md',
  'precisions',
  [
    `Measured on ${where.date} with \`bench/precisions.mjs\` (commit ${where.commit}; ${where.cpu}, ${where.device}): ${where.images} test images of the base bundle, maps of ${where.maps}.`,
    '',
    `| precision | score, relative: median | 99 % | largest | within ${PROMISED_SCORE} | map, max abs | image AUROC | image AP | pixel AUROC | pixel AP |`,
    '|---|---|---|---|---|---|---|---|---|---|',
    ...rows.map(({ precision, mean, score, within, map }) => {
      const metrics = [mean.image_auroc, mean.image_ap, mean.pixel_auroc, mean.pixel_ap].map(four);
      const differences = [score.median, score.p99, score.largest].map(short);
      const share = `${((100 * within) / where.images).toFixed(1)} %`;
      return `| ${[precision, ...differences, share, short(map), ...metrics].join(' | ')} |`;
    }),
  ].join('\n'),
);
