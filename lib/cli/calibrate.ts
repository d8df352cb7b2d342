// diad calibrate: thresholds into a bundle.
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { calibrate, writeCalibration } from '../evaluation/calibrate.js';
import { readGoodPictures } from '../evaluation/datasets/good.js';
import { readDataSet } from '../evaluation/datasets/index.js';
import { requireWritable } from '../durable.js';
import { baseBundle } from '../native.js';
import { loadModel, type ModelOptions } from './inputs.js';

interface Options extends ModelOptions {
  readonly good: string;
  readonly targetFpr: number;
  readonly perClass?: boolean;
  readonly validation?: string;
  readonly test?: string;
  readonly tile?: number;
  readonly seed: number;
}

/** Scores normal pictures, writes calibration.json into the bundle and prints the thresholds. */
export async function calibrateBundle(options: Options): Promise<void> {
  const bundle = options.model ?? baseBundle;
  await requireWritable(bundle);
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort();
  };
  process.once('SIGINT', stop);
  const good = await readGoodPictures(options.good);
  const validation = options.validation === undefined ? undefined : (await readDataSet(options.validation)).pictures;
  const test = options.test === undefined ? undefined : (await readDataSet(options.test)).pictures.map(({ file }) => file);
  const diad = await loadModel(options, false); // an old one, whatever it holds, is about to be replaced
  const bar = new SingleBar({ format: '{bar} {value}/{total} | {eta_formatted} left', stream: process.stderr, clearOnComplete: true });
  if (process.stderr.isTTY) bar.start(good.length + (validation?.length ?? 0), 0);
  try {
    const { calibration, tooFew } = await calibrate(diad, {
      good,
      targetFpr: options.targetFpr,
      perClass: options.perClass ?? false,
      ...(validation === undefined ? {} : { validation }),
      ...(test === undefined ? {} : { test }),
      ...(options.tile === undefined ? {} : { tile: { size: options.tile } }),
      seed: options.seed,
      signal: interrupted.signal,
      onProgress: (done) => {
        bar.update(done);
      },
    });
    await writeCalibration(bundle, calibration);
    bar.stop();
    const lines = [['all', calibration] as const, ...Object.entries(calibration.classes ?? {})].map(
      ([name, { threshold, pixelThreshold, images }]) =>
        `${name.padEnd(16)} image ${threshold.toFixed(4)}  pixel ${pixelThreshold?.toFixed(4) ?? '-'}  from ${images ?? 0} normal pictures`,
    );
    process.stdout.write(`${lines.join('\n')}\n${path.join(bundle, 'calibration.json')}\n`);
    for (const { className, images } of tooFew) {
      process.stderr.write(`diad: ${className} has too few pictures (${images}) for thresholds of its own and uses the global ones\n`);
    }
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    bar.stop();
    process.stderr.write('diad: interrupted\n');
    process.exitCode = 130;
  } finally {
    bar.stop();
    process.removeListener('SIGINT', stop);
    await diad.close();
  }
}
