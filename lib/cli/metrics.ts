// diad metrics: computes metrics from saved arrays of any tool.
import process from 'node:process';
import { evaluateArrays, METRIC_NAMES, type Metrics, type MetricsMode } from '../evaluation/metrics.js';
import { readEvaluationNpz } from '../evaluation/npz.js';

interface Options {
  readonly mode: MetricsMode;
  readonly fprLimit: number;
  readonly json?: boolean;
}

const WIDTH = 12;
const POOLED_SIDE = { exact: 1, diad: 57, ader: 16, anomalib: 1, mvtec: 1 } as const satisfies Record<
  MetricsMode,
  number
>;

/** Formats rows of metrics as columns, undefined ones as a dash. */
export function metricsTable(rows: readonly (readonly [name: string, metrics: Metrics])[]): string {
  const first = Math.max(5, ...rows.map(([name]) => name.length));
  const line = (cells: readonly string[]): string =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(first) : cell.padStart(WIDTH))).join(' ');
  const values = (metrics: Metrics): string[] => METRIC_NAMES.map((name) => metrics[name]?.toFixed(4) ?? '-');
  return [
    line(['class', ...METRIC_NAMES]),
    ...rows.map(([name, metrics]) => line([name, ...values(metrics)])),
  ].join('\n');
}

/** Prints the metrics of an .npz archive. */
export async function metrics(file: string, options: Options): Promise<void> {
  const arrays = await readEvaluationNpz(file, options.mode === 'ader' ? 0.5 : 0);
  if (arrays.imageScores === undefined && Math.min(arrays.height, arrays.width) < POOLED_SIDE[options.mode]) {
    process.stderr.write(
      `diad: maps are smaller than ${POOLED_SIDE[options.mode]} pixels: image scores are unpooled maxima\n`,
    );
  }
  const { classes, mean } = await evaluateArrays(arrays, { mode: options.mode, fprLimit: options.fprLimit });
  const rows = Object.entries(classes).map(([name, found]) => [name, found.metrics] as const);
  const text =
    options.json === true
      ? JSON.stringify({ classes: Object.fromEntries(rows), mean }, null, 2)
      : metricsTable([...rows, ['mean', mean]]);
  process.stdout.write(`${text}\n`);
}
