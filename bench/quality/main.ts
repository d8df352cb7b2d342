// npm run bench:quality: trains one model for all classes of a data set and compares it with simpler methods.
//
//   npm run bench:quality -- --data DIR [--minutes 60] [--out results.json] [--base BUNDLE] [--work DIR]
//
// DIR is in MVTec-AD layout. CLASS/train/good is used for training. CLASS/test is used for evaluation only,
// not for selection. Compares:
//
//   trained           the trained model with all evidence
//   reconstruction    the trained model without memory
//   memory            the trained model without reconstruction: nearest neighbors of feature vectors
//   calibrated base   the untrained base bundle, calibrated on CLASS/train/good
//
// The work folder keeps the trained model, so a second run of the same command skips training. Prints
// Markdown tables.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { readSplit, SPLIT } from '../../lib/cli/training-run.js';
import { writeAtomic } from '../../lib/io/atomic-file.js';
import { copyBundle } from '../../lib/evaluation/calibration-files.js';
import { readGoodImages } from '../../lib/evaluation/datasets/good.js';
import { evaluateDataSet, readDataSet, type DataSet } from '../../lib/evaluation/index.js';
import { median } from '../../lib/evaluation/thresholds.js';
import { Diad } from '../../lib/index.js';
import { baseBundle, packageRoot, tuneAllocator } from '../../lib/native/addon.js';
import { markdown, type VariantResult } from './tables.js';
import { calibrateBundle, deriveBundle } from './variants.js';

const MEASURED_IMAGES = 24;

const { values } = parseArgs({
  options: {
    data: { type: 'string' },
    minutes: { type: 'string', default: '60' },
    out: { type: 'string', default: 'out/quality/results.json' },
    base: { type: 'string', default: baseBundle },
    work: { type: 'string', default: 'out/quality' },
  },
});

/** Trains with `diad train` and returns the minutes, including those of earlier runs that it resumed. */
async function train(data: string, out: string, run: string): Promise<number> {
  const [note, finished] = [path.join(run, 'minutes.json'), existsSync(path.join(run, 'trained.json'))];
  const before = existsSync(note) ? Number(await readFile(note, 'utf8')) : 0;
  const started = performance.now();
  const cli = path.join(packageRoot, 'dist', 'cli', 'main.js');
  const args = [
    'train',
    '--data',
    data,
    '--out',
    out,
    '--base',
    values.base,
    '--minutes',
    values.minutes,
    '--run',
    run,
  ];
  const child = spawn(process.execPath, [cli, ...args], { stdio: 'inherit' });
  const [code] = (await once(child, 'close')) as [number | null];
  // If training had already finished, the command only repeated the calibration.
  const minutes = before + (finished ? 0 : (performance.now() - started) / 60_000);
  await writeAtomic(note, String(minutes));
  if (code === 0) return minutes;
  process.exitCode = code ?? 1;
  throw new Error('Training did not finish; run the same command again to resume');
}

/** Measures the median latency in milliseconds, one image at a time. */
async function speed(diad: Diad, data: DataSet): Promise<number> {
  const step = Math.max(1, Math.floor(data.images.length / MEASURED_IMAGES));
  const times: number[] = [];
  for (const { file, className } of data.images.filter((_, i) => i % step === 0).slice(0, MEASURED_IMAGES)) {
    const bytes = await readFile(file);
    const started = performance.now();
    await diad.score(bytes, { className });
    times.push(performance.now() - started);
  }
  return median(times);
}

async function evaluate(
  name: string,
  bundle: string,
  data: DataSet,
  times: Pick<VariantResult, 'trainingMinutes' | 'calibrationSeconds'>,
): Promise<VariantResult> {
  process.stderr.write(`[quality] ${name}: ${data.images.length} test images\n`);
  const out = `${bundle}.eval`;
  await rm(out, { recursive: true, force: true });
  const diad = await Diad.load(bundle);
  try {
    const { classes, mean, scores } = await evaluateDataSet(diad, data, { out });
    await scores.close();
    const metrics = Object.fromEntries(
      Object.entries(classes).map(([className, report]) => [className, report.metrics]),
    );
    return { name, ...times, msPerImage: await speed(diad, data), classes: metrics, mean };
  } finally {
    await diad.close();
  }
}

async function main(): Promise<void> {
  if (values.data === undefined)
    throw new Error('Expected --data DIR, a data set with CLASS/train/good and CLASS/test');
  tuneAllocator();
  const work = path.resolve(values.work);
  await mkdir(work, { recursive: true });
  const data = await readDataSet(values.data);
  const [trained, run] = [path.join(work, 'trained'), path.join(work, 'run')];
  const trainingMinutes = await train(values.data, trained, run);
  const split = await readSplit(path.join(run, SPLIT));
  const results: VariantResult[] = [];
  const calibrationSeconds = await calibrateBundle(trained, split);
  results.push(await evaluate('trained', trained, data, { trainingMinutes, calibrationSeconds }));
  for (const [name, weights] of [
    ['reconstruction', { reconstruction: 1, memory: 0 }],
    ['memory', { reconstruction: 0, memory: 1 }],
  ] as const) {
    const bundle = path.join(work, name);
    await deriveBundle(trained, bundle, weights);
    const seconds = await calibrateBundle(bundle, split);
    results.push(await evaluate(name, bundle, data, { trainingMinutes, calibrationSeconds: seconds }));
  }
  const base = path.join(work, 'base');
  await rm(base, { recursive: true, force: true });
  await copyBundle(values.base, base);
  const seconds = await calibrateBundle(base, await readGoodImages(values.data));
  results.push(
    await evaluate('calibrated base', base, data, { trainingMinutes: null, calibrationSeconds: seconds }),
  );
  const report = { data: path.resolve(values.data), minutes: Number(values.minutes), results };
  await writeAtomic(values.out, `${JSON.stringify(report, null, 2)}\n`);
  process.stdout.write(`${markdown(results)}\n\n${values.out}\n`);
}

try {
  await main();
} catch (error) {
  process.stderr.write(`bench:quality: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode ||= 1;
}
