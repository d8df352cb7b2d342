// diad train: trains a calibrated bundle on normal images. The Python reference trains; the engine
// calibrates.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { bundleDigest } from '../calibration/bundle-digest.js';
import type { Diad } from '../diad.js';
import { writeAtomic } from '../io/atomic-file.js';
import { DiadError, invalidArgument } from '../errors.js';
import { calibrate } from '../evaluation/calibrate.js';
import type { Calibrated, CalibrationImage } from '../evaluation/calibration-types.js';
import { writeCalibration } from '../evaluation/calibration-files.js';
import { defaultTarget } from '../evaluation/thresholds.js';
import { baseBundle } from '../native/addon.js';
import { contactSheet, sheetImages } from './contact-sheet.js';
import { loadModel, type ModelOptions } from './inputs.js';
import { runReference } from './reference.js';
import { rateNotes, summaryTable } from './summary.js';
import { showTraining, type TrainingEvent } from './training-progress.js';
import { calibrationImages, isTrained, noteTrained, readSplit, SPLIT, trainingKey } from './training-run.js';

/** Options of `diad train`. */
interface TrainOptions {
  readonly data: string;
  readonly out: string;
  readonly base?: string;
  readonly minutes: number;
  readonly run?: string;
  readonly name?: string;
  readonly batch?: number;
  readonly learningRate?: number;
  readonly seed: number;
  readonly device: string;
  readonly threads?: number;
  readonly json?: boolean;
}

/** Stages of `diad train STAGE` in versions without a time budget. */
const OLD_STAGES: readonly string[] = ['all', 'autoencoder', 'denoiser', 'decoder', 'extractor'];

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT for unknown arguments, or without --data or --out */
function checked(
  others: readonly string[],
  { data, out, ...options }: Partial<TrainOptions> & Omit<TrainOptions, 'data' | 'out'>,
): TrainOptions {
  const [first] = others;
  if (first === undefined) {
    if (data !== undefined && out !== undefined) return { data, out, ...options };
    const missing = data === undefined ? '--data' : '--out';
    throw invalidArgument(
      `Expected --data and --out but received no ${missing}; \`diad train --help\` lists all options`,
    );
  }
  if (OLD_STAGES.includes(first)) {
    throw invalidArgument(
      `Expected only options but received the stage ${first}: diad train trains a small model ` +
        'within a time budget (--data, --out, --minutes); for the published size, stage by stage, ' +
        `run \`python -m diad_reference train-published ${first} ...\``,
    );
  }
  throw invalidArgument(
    `Expected options of diad train but received ${first}; \`diad train --help\` lists them`,
  );
}

/** Builds the arguments of the reference; `deciding` are those that affect the trained model. */
function referenceArguments(
  options: TrainOptions,
  base: string,
  run: string,
): { readonly all: string[]; readonly deciding: string[] } {
  const { data, out, minutes, name, batch, learningRate, seed, device, threads } = options;
  const optional = (flag: string, value: string | number | undefined): string[] =>
    value === undefined ? [] : [flag, String(value)];
  const deciding = [
    ...['--minutes', String(minutes), '--seed', String(seed), '--device', device],
    ...[
      ...optional('--name', name),
      ...optional('--batch', batch),
      ...optional('--learning-rate', learningRate),
    ],
  ];
  const places = ['--data', data, '--out', out, '--base', base, '--run', run];
  return { all: [...places, ...deciding, ...optional('--threads', threads), '--json'], deciding };
}

/** Runs the training. Returns undefined when it failed or was interrupted and has already reported that. */
async function runTraining(
  args: readonly string[],
  form: 'bar' | 'text' | 'json',
): Promise<TrainingEvent | undefined> {
  let written: TrainingEvent | undefined;
  const code = await runReference('train', args, async (output) => {
    written = await showTraining(output, { form, write: (text) => void process.stdout.write(text) });
  });
  if (code !== 0) return undefined;
  if (written === undefined)
    throw new DiadError('ERR_DIAD_INTERNAL', 'The training ended without writing a bundle');
  return written;
}

/** Calibrates a trained bundle: training images give the statistics, held-out images the thresholds. */
async function calibrateTrained(
  model: ModelOptions,
  split: readonly CalibrationImage[],
  seed: number,
  signal: AbortSignal,
): Promise<Calibrated> {
  const diad = await loadModel(model, false);
  const bar = new SingleBar({
    format: 'calibrating {bar} {value}/{total} | {eta_formatted} left',
    stream: process.stderr,
    clearOnComplete: true,
  });
  try {
    const { evidence } = diad.info.bundle;
    const byEvidence = evidence !== undefined;
    const good = byEvidence
      ? calibrationImages(split, evidence)
      : split.filter(({ role }) => role === 'held-out');
    if (process.stderr.isTTY) bar.start(good.length, 0);
    return await calibrate(diad, {
      good,
      ...(byEvidence ? {} : { targetFpr: defaultTarget(good.length) }),
      seed,
      signal,
      onProgress: (done, total) => {
        bar.setTotal(total);
        bar.update(done);
      },
    });
  } finally {
    bar.stop();
    await diad.close();
  }
}

/** Writes the sheet and returns its path; undefined when drawing fails, which does not affect the model. */
async function writeSheet(
  diad: Diad,
  data: string,
  split: readonly CalibrationImage[],
  run: string,
  signal: AbortSignal,
): Promise<string | undefined> {
  const file = path.join(run, 'contact-sheet.png');
  try {
    await writeAtomic(file, await contactSheet(diad, await sheetImages(data, split), signal));
    return file;
  } catch (error) {
    signal.throwIfAborted();
    const reason = error instanceof Error ? error.message : String(error);
    process.stderr.write(`diad: the contact sheet could not be drawn: ${reason}\n`);
    return undefined;
  }
}

/** Calibrates and reports after training, or after an earlier completed training. */
async function finish(
  options: TrainOptions,
  run: string,
  splitFile: string,
  signal: AbortSignal,
): Promise<void> {
  const { data, out, seed, device, threads, json } = options;
  const say = (event: string, text: string, values: object): void => {
    process.stdout.write(json === true ? `${JSON.stringify({ event, ...values, text })}\n` : `${text}\n`);
  };
  const split = await readSplit(splitFile);
  const model: ModelOptions = {
    model: out,
    device,
    precision: 'float32',
    ...(threads === undefined ? {} : { threads }),
  };
  const { calibration, normality, summary } = await calibrateTrained(model, split, seed, signal);
  await writeCalibration(out, calibration, normality);
  const table = [summaryTable(summary), ...rateNotes(summary, undefined)].join('\n');
  say('calibrated', `\n${table}\n`, { classes: summary });
  const diad = await loadModel(model);
  try {
    const sheet = await writeSheet(diad, data, split, run, signal);
    const shown = sheet === undefined ? '' : `${sheet}: results on held-out and defective images\n`;
    say('finished', `${out}\n${shown}\nTry it: npx diad score new-part.png --model ${out}`, {
      path: out,
      contact_sheet: sheet ?? null,
    });
  } finally {
    await diad.close();
  }
}

/**
 * Trains, calibrates, prints the expected error rates and draws a contact sheet. Ctrl-C ends it at any time
 * with exit code 130. The same command resumes the training, or the calibration if training has finished.
 */
export async function train(others: readonly string[], given: Parameters<typeof checked>[1]): Promise<void> {
  const options = checked(others, given);
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort();
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);
  const base = options.base ?? baseBundle;
  const run = options.run ?? `${path.resolve(options.out)}.training`;
  try {
    await bundleDigest(base);
    await mkdir(path.dirname(path.resolve(options.out)), { recursive: true });
    const { all, deciding } = referenceArguments(options, base, run);
    const key = await trainingKey(options.data, base, options.out, deciding);
    let split = path.join(run, SPLIT);
    if (await isTrained(run, key)) {
      if (options.json !== true)
        process.stdout.write(`The training of ${options.out} has finished; calibrating it\n`);
    } else {
      const form = options.json === true ? 'json' : process.stderr.isTTY ? 'bar' : 'text';
      const written = await runTraining(all, form);
      if (written === undefined) {
        if (interrupted.signal.aborted) interrupted.signal.throwIfAborted();
        return;
      }
      split = written.split ?? split;
      await noteTrained(run, key);
    }
    interrupted.signal.throwIfAborted();
    await finish(options, run, split, interrupted.signal);
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    process.stderr.write('diad: interrupted; run the same command again to resume\n');
    process.exitCode = 130;
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}
