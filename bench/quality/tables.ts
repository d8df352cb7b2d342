// Results as Markdown tables.
import type { Metrics } from '../../lib/evaluation/metrics.js';

/** What was measured of one variant. */
export interface VariantResult {
  readonly name: string;
  /** Minutes of training, shared by all variants of a trained bundle; null without training. */
  readonly trainingMinutes: number | null;
  readonly calibrationSeconds: number;
  /** Median of single images one after the other, decoding included. */
  readonly msPerImage: number;
  readonly classes: Readonly<Record<string, Metrics>>;
  readonly mean: Metrics;
}

const row = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [row(head), row(head.map((_, i) => (i === 0 ? '---' : '--:'))), ...rows.map(row)].join('\n');
const value = (metric: number | null): string => (metric === null ? '-' : metric.toFixed(3));

const COLUMNS = [
  ['image AUROC', 'image_auroc'],
  ['image AP', 'image_ap'],
  ['pixel AUROC', 'pixel_auroc'],
  ['pixel AP', 'pixel_ap'],
  ['AU-PRO', 'au_pro'],
] as const;

/** One table for each metric, a row for each class and their mean, a column for each variant; then a table of times. */
export function markdown(results: readonly VariantResult[]): string {
  const classes = Object.keys(results[0]?.classes ?? {});
  const names = results.map(({ name }) => name);
  const metrics = COLUMNS.map(([title, key]) =>
    table(
      [title, ...names],
      [
        ...classes.map((name) => [
          name,
          ...results.map((result) => value(result.classes[name]?.[key] ?? null)),
        ]),
        ['mean', ...results.map(({ mean }) => value(mean[key]))],
      ],
    ),
  );
  const times = table(
    ['time', ...names],
    [
      [
        'training, minutes',
        ...results.map(({ trainingMinutes }) =>
          trainingMinutes === null ? '-' : trainingMinutes.toFixed(1),
        ),
      ],
      ['calibration, seconds', ...results.map(({ calibrationSeconds }) => calibrationSeconds.toFixed(0))],
      ['one image, ms', ...results.map(({ msPerImage }) => msPerImage.toFixed(0))],
    ],
  );
  return [...metrics, times].join('\n\n');
}
