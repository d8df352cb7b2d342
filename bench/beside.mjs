// Scoring beside other busy processes: node bench/beside.mjs
//
// For 0, 1 and 2 processes that do nothing but compute, and for one thread and all: the median time of an image of the base bundle, a process
// of its own for each, the rounds interleaved.
import { spawn } from 'node:child_process';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const ROUNDS = 3;
const IMAGES = 10;
const BUSY = [0, 1, 2];

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function measure(threads) {
  const { default: sharp } = await import('sharp');
  const { Diad } = await import('../dist/index.js');
  const image = await sharp({
    create: {
      width: 256,
      height: 256,
      channels: 3,
      background: '#888',
      noise: { type: 'gaussian', mean: 128, sigma: 30 },
    },
  })
    .png()
    .toBuffer();
  const model = await Diad.load(path.join(root, 'models/base'), { threads });
  const times = [];
  for (let i = 0; i < IMAGES; i++) {
    const started = performance.now();
    await model.score(image);
    times.push(performance.now() - started);
  }
  await model.close();
  process.stdout.write(String(median(times)));
}

function run(threads) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [fileURLToPath(import.meta.url), String(threads)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let output = '';
    child.stdout.on('data', (data) => (output += data));
    child.on('close', (code) =>
      code === 0 ? resolve(Number(output)) : reject(new Error(`a process ended with ${code}`)),
    );
  });
}

async function main() {
  const all = os.availableParallelism();
  for (const busy of BUSY) {
    const others = Array.from({ length: busy }, () =>
      spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' }),
    );
    const times = { one: [], all: [] };
    try {
      for (let round = 0; round < ROUNDS; round++) {
        times.one.push(await run(1));
        times.all.push(await run(all));
      }
    } finally {
      for (const other of others) other.kill('SIGKILL');
    }
    console.log(
      `${busy} busy beside: ${Math.round(median(times.one))} ms with 1 thread, ${Math.round(median(times.all))} ms with ${all}`,
    );
  }
}

if (process.argv[2]) await measure(Number(process.argv[2]));
else await main();
