// Metrics of 1,000 maps of 256 x 256: the native ones against scikit-learn and scikit-image doing the same, in turn, on the same arrays.
//
//   node bench/metrics.mjs [--maps 1000] [--classes 10] [--rounds 3] [--mode exact]
//
// Prints medians and the ratio; needs what `npm test` sets up.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { python, root, setUp } from '../scripts/setup.mjs';

const { values } = parseArgs({
  options: {
    maps: { type: 'string', default: '1000' },
    classes: { type: 'string', default: '10' },
    rounds: { type: 'string', default: '3' },
    mode: { type: 'string', default: 'exact' },
  },
});

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

setUp({ withPython: true });
const { evaluateArrays, readEvaluationNpz } = await import('../dist/evaluation/index.js');
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
  const pixels = arrays.maps.length / 1e6;
  console.log(
    `${values.maps} maps of ${arrays.height} x ${arrays.width} (${pixels.toFixed(1)} million pixels), ${values.classes} classes, mode ${values.mode}`,
  );
  console.log(`machine: ${os.availableParallelism()} cores, load average ${os.loadavg()[0].toFixed(1)} (a quiet machine starts near 0)`);
  console.log(`diad                          ${median(native).toFixed(2)} s`);
  console.log(`scikit-learn + scikit-image   ${median(reference).toFixed(2)} s`);
  console.log(`ratio                         ${(median(reference) / median(native)).toFixed(1)}`);
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
