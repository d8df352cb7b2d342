// Times diad batch by batch on request: the counterpart of reference_timing.py, with the same lines.
//
//   node bench/speed/node_timing.mjs --bundle DIR [--device D] [--precision P] [--max-batch N]
//
// A number N scores N images together and answers with JSON: wall-clock milliseconds and the engine's own timings; "memory" answers with the
// peak resident set in MiB.
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { Diad, tuneAllocator } from '../../dist/index.js';
import { noisePixels } from './noise.mjs';

const { values } = parseArgs({
  options: {
    bundle: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
    precision: { type: 'string', default: 'float32' },
    'max-batch': { type: 'string', default: '8' },
  },
});
const image = { data: noisePixels(256), width: 256, height: 256, channels: 3 };

tuneAllocator();
const { device, precision, bundle } = values;
const diad = await Diad.load(bundle, { device, precision, maxBatch: Number(values['max-batch']) });
const { sizeBytes } = diad.info.bundle;
console.log(
  JSON.stringify({
    loadMs: diad.info.loadMs,
    sizeBytes,
    threads: diad.info.threads,
    libtorch: diad.info.libtorch.version,
  }),
);

/** VmHWM of this process, MiB; Linux only. */
function peakMemory() {
  const line = /VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(line[1]) / 1024;
}

for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'memory') {
    console.log(peakMemory());
    continue;
  }
  const started = performance.now();
  const results = await Promise.all(Array.from({ length: Number(line) }, () => diad.score(image)));
  const ms = performance.now() - started;
  console.log(JSON.stringify({ ms, timings: results[0].timings }));
}
await diad.close();
