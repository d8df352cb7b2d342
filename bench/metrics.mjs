// Compares the native metrics with scikit-learn and scikit-image on 1,000 maps of 256 x 256, alternating on
// the same arrays.
//
//   node scripts/setup.mjs --python
//   node bench/metrics.mjs [--maps 1000] [--classes 10] [--rounds 3] [--mode exact]
//
// Prints medians and the ratio. Writes bench/results/metrics.json and the text in docs/benchmarks.md.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { evaluateArrays, readEvaluationNpz } from '../dist/evaluation/index.js';
import { python, root } from '../scripts/setup.mjs';
import { circumstances, fill } from './reliability/record.mjs';

const { values } = parseArgs({
  options: {
    maps: { type: 'string', default: '1000' },
    classes: { type: 'string', default: '10' },
    rounds: { type: 'string', default: '3' },
    mode: { type: 'string', default: 'exact' },
  },
});

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-bench-'));
try {
  const file = path.join(scratch, 'maps.npz');
  const script = path.join(root, 'bench', 'metrics_reference.py');
  execFileSync(python, [script, 'make', file, values.maps, values.classes]);
  const arrays = await readEvaluationNpz(file);
  const native = [];
  const reference = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    const started = performance.now();
    await evaluateArrays(arrays, { mode: values.mode });
    native.push((performance.now() - started) / 1000);
    reference.push(Number(execFileSync(python, [script, 'time', file, values.mode], { encoding: 'utf8' })));
  }
  const result = {
    ...circumstances(),
    load: os.loadavg()[0], // from near 0 to near 1 on an idle machine
    maps: Number(values.maps),
    side: arrays.height,
    classes: Number(values.classes),
    mode: values.mode,
    rounds: native.length,
    seconds: { diad: median(native), reference: median(reference) },
  };
  writeFileSync(path.join(root, 'bench', 'results', 'metrics.json'), `${JSON.stringify(result, null, 2)}\n`);
  const { seconds } = result;
  const text =
    `Measured on ${result.date} with \`node bench/metrics.mjs\` (commit ${result.commit}; ${result.cpu}, ` +
    `${result.cores} cores): all metrics of ${result.maps} maps of ${result.side} x ${result.side} in ` +
    `${result.classes} classes, mode \`${result.mode}\`, take ${seconds.diad.toFixed(1)} s. ` +
    `scikit-learn and scikit-image take ${seconds.reference.toFixed(0)} s on the same arrays, ` +
    `${(seconds.reference / seconds.diad).toFixed(1)} times as long.`;
  fill('benchmarks.md', 'metrics', text);
  console.log(text);
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
