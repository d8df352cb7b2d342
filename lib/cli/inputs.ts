// Files, folders and globs from the command line, and working through them.
import { stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { glob } from 'tinyglobby';
import { Diad } from '../diad.js';
import { DiadError } from '../errors.js';
import { IMAGE_ENDINGS } from '../image.js';
import { tuneAllocator } from '../native.js';
import type { Precision } from '../options.js';

/** Options shared by commands that load a model. */
export interface ModelOptions {
  readonly model?: string;
  readonly device: string;
  readonly precision: Precision;
  readonly threads?: number;
  readonly maxPixels?: number;
  readonly maxFrames?: number;
}

/** What `diad score --out` writes: where it wrote into the folder it read, the next run must not take its heat maps for images. */
export const HEATMAP = '.heatmap.png';
const IMAGES = `**/*.{${IMAGE_ENDINGS.join(',')}}`;

/**
 * Expands inputs into files: a file is itself (even when it does not exist: reading it will say so), a folder all images below it but heat maps,
 * anything else a glob. Order as given, files of one folder or glob sorted by name; a file named twice is taken once.
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

/** Fulfilled by SIGTERM or SIGINT. */
export function stopSignal(): Promise<undefined> {
  return new Promise((resolve) => {
    const stop = (): void => {
      resolve(undefined);
    };
    process.once('SIGTERM', stop).once('SIGINT', stop);
  });
}

/** Loads the model the options name, with or without its calibration. */
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
 * Works through files: a failure is a line on standard error and exit code 1 at the end, the rest go on; Ctrl-C stops between images.
 *
 * @param work - handles one file; a few run at once, results are handed to `report` in order
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

/** Name of an output file for an input: unique within a run because the place in the list is part of it. */
export function outputName(file: string, index: number, ending: string): string {
  return `${String(index).padStart(3, '0')}-${path.parse(file).name}${ending}`;
}
