// Calibration results as a table.
import type { ClassSummary } from '../evaluation/calibrate.js';
import { DEFAULT_FPR } from '../evaluation/thresholds.js';

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/** Formats rows as columns of equal width: the first left-aligned, the others right-aligned. */
export function textTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ');
  return rows.map((row) => line(row).trimEnd()).join('\n');
}

/**
 * Formats a line per class; with several classes the last line covers all images. Training images have a
 * column if there are any.
 */
export function summaryTable(summary: readonly ClassSummary[]): string {
  const [all, ...classes] = summary;
  const withTraining = summary.some(({ training }) => training > 0);
  const row = ({
    className,
    images,
    training,
    threshold,
    falseAlarms,
    medianScore,
  }: ClassSummary): string[] => [
    className === '' ? 'all' : className,
    ...(withTraining ? [String(training)] : []),
    String(images),
    threshold.toFixed(3),
    `${falseAlarms} of ${images}`,
    medianScore.toFixed(3),
  ];
  const header = [
    'class',
    ...(withTraining ? ['trained on', 'held out'] : ['images']),
    'threshold',
    'false alarms',
    'median score',
  ];
  return textTable([header, ...[...classes, ...(all === undefined ? [] : [all])].map(row)]);
}

/** Describes the false positive rate of the thresholds where there are too few images for a lower one. */
export function rateNotes(
  summary: readonly ClassSummary[],
  requested: number | undefined,
): readonly string[] {
  if (requested !== undefined) return [];
  const [all, ...classes] = summary;
  return (classes.length > 0 ? classes : all === undefined ? [] : [all])
    .filter(({ targetFpr }) => targetFpr > DEFAULT_FPR)
    .map(
      ({ className, images, targetFpr }) =>
        `${className === '' ? '' : `${className}: `}with ${images} images the threshold is the largest ` +
        `score of a normal image; expect at most ${percent(targetFpr)} false alarms, ` +
        'and add images for fewer',
    );
}
