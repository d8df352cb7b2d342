// diad calibrate: writes thresholds, and the statistics of normal images for a bundle with evidence.
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { calibrate } from '../evaluation/calibrate.js';
import type { Calibrated } from '../evaluation/calibration-types.js';
import { copyBundle, isCopyNeeded, writeCalibration } from '../evaluation/calibration-files.js';
import { readGoodImages } from '../evaluation/datasets/good.js';
import { readDataSet } from '../evaluation/datasets/index.js';
import { DEFAULT_FPR } from '../evaluation/thresholds.js';
import { requireWritable } from '../io/atomic-file.js';
import { baseBundle } from '../native/addon.js';
import { loadModel, type ModelOptions } from './inputs.js';
import { rateNotes, summaryTable } from './summary.js';

interface Options extends ModelOptions {
  readonly good: string;
  readonly out?: string;
  readonly targetFpr?: number;
  readonly perClass?: boolean;
  readonly validation?: string;
  readonly test?: string;
  readonly tile?: number;
  readonly seed: number;
}

/** Formats the thresholds of a bundle without evidence, one class per line. */
function thresholdLines({ calibration }: Calibrated): string {
  return [['all', calibration] as const, ...Object.entries(calibration.classes ?? {})]
    .map(([name, { threshold, pixelThreshold, images }]) => {
      const pixel = pixelThreshold?.toFixed(4) ?? '-';
      const limits = `image ${threshold.toFixed(4)}  pixel ${pixel}`;
      return `${name.padEnd(16)} ${limits}  from ${images ?? 0} normal images`;
    })
    .join('\n');
}

function report(calibrated: Calibrated, bundle: string, options: Options, seconds: number): void {
  const { calibration, summary, tooFew } = calibrated;
  const file = path.join(bundle, 'calibration.json');
  if (calibration.normality === undefined) {
    process.stdout.write(`${thresholdLines(calibrated)}\n${file}\n`);
  } else {
    const notes = rateNotes(summary, options.targetFpr).map((note) => `${note}\n`);
    const model = bundle === baseBundle ? '' : ` --model ${bundle}`;
    process.stdout.write(
      `${summaryTable(summary)}\n${notes.join('')}${file}: calibrated in ${seconds.toFixed(1)} s\n\n` +
        `Try it: npx diad score new-part.png${model}\n`,
    );
  }
  for (const { className, images } of tooFew) {
    process.stderr.write(
      `diad: ${className} has too few images (${images}) for its own thresholds and uses the global ones\n`,
    );
  }
}

/**
 * Scores normal images, writes the calibration into the bundle or a copy of it, and prints the thresholds.
 */
export async function calibrateBundle(options: Options): Promise<void> {
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort();
  };
  process.once('SIGINT', stop);
  const model = options.model ?? baseBundle;
  const bundle = options.out ?? model;
  if (options.out === undefined) await requireWritable(bundle);
  else await isCopyNeeded(model, options.out);
  const good = await readGoodImages(options.good);
  const validation =
    options.validation === undefined ? undefined : (await readDataSet(options.validation)).images;
  const test =
    options.test === undefined ? undefined : (await readDataSet(options.test)).images.map(({ file }) => file);
  // The old calibration is about to be replaced, so an invalid one must not fail the load.
  const diad = await loadModel({ ...options, model }, false);
  const bar = new SingleBar({
    format: '{bar} {value}/{total} | {eta_formatted} left',
    stream: process.stderr,
    clearOnComplete: true,
  });
  const total = good.length + (validation?.length ?? 0);
  if (process.stderr.isTTY) bar.start(total, 0);
  // With evidence, few images can be enough: calibrate() then uses the smallest rate that they support.
  const targetFpr = options.targetFpr ?? (diad.info.bundle.evidence === undefined ? DEFAULT_FPR : undefined);
  try {
    const started = performance.now();
    const calibrated = await calibrate(diad, {
      good,
      ...(targetFpr === undefined ? {} : { targetFpr }),
      ...(options.perClass === undefined ? {} : { perClass: options.perClass }),
      ...(validation === undefined ? {} : { validation }),
      ...(test === undefined ? {} : { test }),
      ...(options.tile === undefined ? {} : { tile: { size: options.tile } }),
      seed: options.seed,
      signal: interrupted.signal,
      onProgress: (done, of) => {
        bar.setTotal(of); // duplicate images count once
        bar.update(done);
      },
    });
    if (options.out !== undefined) await copyBundle(model, options.out);
    await writeCalibration(bundle, calibrated.calibration, calibrated.normality);
    bar.stop();
    report(calibrated, bundle, options, (performance.now() - started) / 1000);
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
