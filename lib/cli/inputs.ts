// Resolves files, folders and globs from the command line and processes them.
import { stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { glob } from 'tinyglobby';
import { Diad } from '../diad.js';
import { DiadError } from '../errors.js';
import { IMAGE_ENDINGS } from '../image/decode.js';
import { tuneAllocator } from '../native/addon.js';
import type { Precision } from '../scoring/options.js';

/** Options of all commands that load a model. */
export interface ModelOptions {
  readonly model?: string;
  readonly device: string;
  readonly precision: Precision;
  readonly threads?: number;
  readonly maxPixels?: number;
  readonly maxFrames?: number;
}

/** Suffix of the heat maps of `diad score --out`: they are skipped when the output folder is read again. */
export const HEATMAP = '.heatmap.png';
const IMAGES = `**/*.{${IMAGE_ENDINGS.join(',')}}`;

/**
 * Expands inputs into files. A file stays itself, even if it does not exist (reading it reports the error). A
 * folder expands to all images below it except heat maps. Anything else is a glob. Keeps the given order,
 * sorts the files of one folder or glob by name, and drops duplicates.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when a folder or glob matches nothing
 */
export async function expandInputs(inputs: readonly string[]): Promise<string[]> {
  const files = new Set<string>();
  for (const input of inputs) {
    const status = await stat(input).catch(() => undefined);
    const isGlob = status === undefined && /[*?[{]/.test(input);
    if (status?.isDirectory() !== true && !isGlob) {
      files.add(input);
      continue;
    }
    const found = isGlob
      ? await glob(input, { onlyFiles: true })
      : (
          await glob(IMAGES, {
            cwd: input,
            caseSensitiveMatch: false,
            onlyFiles: true,
            ignore: `**/*${HEATMAP}`,
          })
        ).map((file) => path.join(input, file));
    if (found.length === 0) {
      throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected images for ${input} but found none`);
    }
    for (const file of found.sort()) files.add(file);
  }
  return [...files];
}

/** Resolves on SIGTERM or SIGINT. */
export function stopSignal(): Promise<undefined> {
  return new Promise((resolve) => {
    const stop = (): void => {
      resolve(undefined);
    };
    process.once('SIGTERM', stop).once('SIGINT', stop);
  });
}

/** Loads the model given by the options, with or without its calibration. */
export async function loadModel(options: ModelOptions, calibration = true): Promise<Diad> {
  const { model, device, precision, threads, maxPixels, maxFrames } = options;
  tuneAllocator();
  return Diad.load(model, {
    device,
    precision,
    calibration,
    ...(threads === undefined || threads === 0 ? {} : { threads }),
    ...(maxPixels === undefined ? {} : { maxPixels }),
    ...(maxFrames === undefined ? {} : { maxFrames }),
  });
}

/**
 * Processes files. A failed file is reported on standard error and sets exit code 1; the others continue.
 * Ctrl-C stops between images.
 *
 * @param work - handles one file; several run concurrently, and `report` receives the results in order
 */
export async function workThrough<T>(
  files: readonly string[],
  concurrency: number,
  work: (file: string, index: number, signal: AbortSignal) => Promise<T>,
  report: (result: T, file: string) => void | Promise<void>,
): Promise<void> {
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort();
  };
  process.once('SIGINT', stop);
  const bar = new SingleBar({
    format: '{bar} {value}/{total} | {eta_formatted} left',
    stream: process.stderr,
    clearOnComplete: true,
    noTTYOutput: false,
  });
  const shown = process.stderr.isTTY && files.length > 1;
  if (shown) bar.start(files.length, 0);
  const inFlight: { file: string; settled: Promise<{ value: T } | { error: unknown }> }[] = [];
  const finishOne = async (): Promise<void> => {
    const { file, settled } = inFlight.shift()!;
    const outcome = await settled;
    if ('value' in outcome) {
      await report(outcome.value, file);
    } else if (!interrupted.signal.aborted) {
      process.stderr.write(
        `diad: ${file}: ${outcome.error instanceof Error ? outcome.error.message : String(outcome.error)}\n`,
      );
      process.exitCode = 1;
    }
    if (shown) bar.increment();
  };
  for (const [index, file] of files.entries()) {
    if (interrupted.signal.aborted) break;
    const settled = work(file, index, interrupted.signal).then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    );
    inFlight.push({ file, settled });
    if (inFlight.length >= concurrency) await finishOne();
  }
  while (inFlight.length > 0) await finishOne();
  if (shown) bar.stop();
  process.removeListener('SIGINT', stop);
  if (interrupted.signal.aborted) {
    process.stderr.write('diad: interrupted\n');
    process.exitCode = 130;
  }
}

/** Builds the output file name for an input. The index makes it unique within a run. */
export function outputName(file: string, index: number, ending: string): string {
  return `${String(index).padStart(3, '0')}-${path.parse(file).name}${ending}`;
}
