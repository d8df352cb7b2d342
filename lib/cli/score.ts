// diad score: scores images and writes heat maps and tables.
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { readCalibration } from '../calibration/calibration.js';
import { classOfPath } from '../calibration/class-of-path.js';
import { csv } from '../io/csv.js';
import type { EvidenceScores, ScoreResult } from '../diad.js';
import { DiadError } from '../errors.js';
import { expandInputs, HEATMAP, loadModel, outputName, workThrough, type ModelOptions } from './inputs.js';
import { baseBundle } from '../native/addon.js';
import { writeNpy } from '../io/npy.js';

interface Options extends ModelOptions {
  readonly out?: string;
  readonly json?: boolean;
  readonly csv?: string;
  readonly seed: number;
  readonly class?: string;
  readonly tile?: number;
  readonly dump?: string;
}

interface Row {
  readonly file: string;
  readonly score: number;
  readonly seed: number;
  readonly threshold?: number;
  readonly anomalous?: boolean;
  readonly normalizedScore?: number;
  readonly evidence?: EvidenceScores;
  readonly className?: string;
  readonly map?: string;
}

const CSV_COLUMNS = ['file', 'score', 'seed', 'threshold', 'anomalous', 'map'] as const;

async function dumpStages(result: ScoreResult, folder: string, index: number): Promise<void> {
  const number = String(index).padStart(3, '0');
  for (const [name, { shape, data }] of Object.entries(result.stages ?? {})) {
    await writeNpy(path.join(folder, `${number}.${name}.npy`), shape, data);
  }
}

/** Checks whether to load the calibration: statistics of whole images do not apply to tiles. */
async function calibrationFits({ tile, model = baseBundle }: Options): Promise<boolean> {
  if (tile === undefined || (await readCalibration(model))?.normality === undefined) return true;
  process.stderr.write(
    'diad: the bundle is calibrated on whole images; tiles are scored without it and have no verdict\n',
  );
  return false;
}

/** Scores files and prints a line for each. */
export async function score(inputs: string[], options: Options): Promise<void> {
  if (options.tile !== undefined && options.dump !== undefined) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      'Expected --tile or --dump but received both: --dump supports only whole images',
    );
  }
  const files = await expandInputs(inputs);
  const table = options.csv === undefined ? undefined : path.dirname(options.csv);
  for (const folder of [options.out, options.dump, table])
    if (folder !== undefined) await mkdir(folder, { recursive: true });
  // Fail before scoring if the table cannot be written.
  if (options.csv !== undefined) await (await open(options.csv, 'a')).close();
  const diad = await loadModel(options, await calibrationFits(options));
  const rows: Row[] = [];
  const work = async (file: string, index: number, signal: AbortSignal): Promise<Row> => {
    const className = options.class ?? classOfPath(file, diad.info.bundle.calibratedClasses);
    const result = await diad.score(await readFile(file), {
      seed: options.seed,
      signal,
      stages: options.dump !== undefined,
      ...(className === undefined ? {} : { className }),
      ...(options.tile === undefined ? {} : { tile: { size: options.tile } }),
    });
    if (options.dump !== undefined) await dumpStages(result, options.dump, index);
    const map =
      options.out === undefined ? undefined : path.join(options.out, outputName(file, index, HEATMAP));
    if (map !== undefined) await writeFile(map, await result.map.toHeatmap());
    return {
      file,
      score: result.score,
      seed: options.seed,
      ...(result.threshold === undefined
        ? {}
        : {
            threshold: result.threshold,
            anomalous: result.anomalous ?? false,
            normalizedScore: result.normalizedScore ?? 0,
          }),
      ...(result.evidence === undefined ? {} : { evidence: result.evidence }),
      ...(result.className === undefined ? {} : { className: result.className }),
      ...(map === undefined ? {} : { map }),
    };
  };
  const report = (row: Row): void => {
    rows.push(row);
    const verdict = row.anomalous === undefined ? '' : row.anomalous ? '  anomalous' : '  normal';
    process.stdout.write(
      options.json === true ? `${JSON.stringify(row)}\n` : `${row.score.toFixed(4)}${verdict}  ${row.file}\n`,
    );
  };
  try {
    await workThrough(files, 8, work, report);
  } finally {
    if (options.csv !== undefined) {
      await writeFile(options.csv, csv(CSV_COLUMNS, rows));
    }
    await diad.close();
  }
}
