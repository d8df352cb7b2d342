// SVG charts of the report: score histograms, ROC and precision-recall curves.
import { bin, max, ticks } from 'd3-array';
import { scaleLinear, type ScaleLinear } from 'd3-scale';
import { line } from 'd3-shape';
import { escapeHtml } from './html.js';

const WIDTH = 340;
const HEIGHT = 220;
const INNER = { left: 44, right: WIDTH - 12, top: 12, bottom: HEIGHT - 34 };

type Scale = ScaleLinear<number, number>;

/** Formats a number for an SVG attribute. */
const at = (value: number): string => value.toFixed(2).replace(/\.?0+$/, '');

function frame(
  x: Scale,
  y: Scale,
  labels: { readonly x: string; readonly y: string },
  content: string,
  title: string,
): string {
  const xTicks = x.ticks(5).map((tick) => {
    const place = at(x(tick));
    return (
      `<line class="grid" x1="${place}" x2="${place}" y1="${INNER.top}" y2="${INNER.bottom}"/>` +
      `<text x="${place}" y="${INNER.bottom + 13}" text-anchor="middle">${x.tickFormat(5)(tick)}</text>`
    );
  });
  const yTicks = y.ticks(5).map((tick) => {
    const place = at(y(tick));
    return (
      `<line class="grid" x1="${INNER.left}" x2="${INNER.right}" y1="${place}" y2="${place}"/>` +
      `<text x="${INNER.left - 5}" y="${place}" dy="0.32em" text-anchor="end">${y.tickFormat(5)(tick)}</text>`
    );
  });
  const [middleX, middleY] = [(INNER.left + INNER.right) / 2, (INNER.top + INNER.bottom) / 2];
  const [name, xLabel, yLabel] = [title, labels.x, labels.y].map(escapeHtml);
  return `<svg class="chart" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${name}">
<title>${name}</title>
${xTicks.join('')}${yTicks.join('')}
<text class="label" x="${middleX}" y="${HEIGHT - 4}" text-anchor="middle">${xLabel}</text>
<text class="label" transform="translate(11 ${middleY}) rotate(-90)" text-anchor="middle">${yLabel}</text>
${content}</svg>`;
}

/** A curve of a chart. */
export interface Curve {
  /** Determines the color: CSS class `s-KIND`. */
  readonly kind: 'image' | 'pixel';
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** Draws curves over the unit square. */
export function unitChart(
  title: string,
  labels: { readonly x: string; readonly y: string },
  curves: readonly Curve[],
  diagonal: boolean,
): string {
  const x = scaleLinear([0, 1], [INNER.left, INNER.right]);
  const y = scaleLinear([0, 1], [INNER.bottom, INNER.top]);
  const path = line<readonly [number, number]>()
    .x(([value]) => x(value))
    .y(([, value]) => y(value))
    .digits(2);
  const chance = diagonal ? `<line class="chance" x1="${x(0)}" y1="${y(0)}" x2="${x(1)}" y2="${y(1)}"/>` : '';
  const drawn = curves.map(({ kind, points }) => `<path class="curve s-${kind}" d="${path(points) ?? ''}"/>`);
  return frame(x, y, labels, chance + drawn.join(''), title);
}

/** A vertical line in a histogram. */
export interface Marker {
  readonly kind: 'threshold' | 'f1max';
  readonly score: number;
}

/** Draws overlaid histograms of the scores of normal and defective images. */
export function scoreHistogram(
  title: string,
  good: readonly number[],
  defective: readonly number[],
  range: readonly [number, number],
  markers: readonly Marker[],
): string {
  const [low, high] = range[0] < range[1] ? range : [range[0] - 0.5, range[1] + 0.5];
  const x = scaleLinear([low, high], [INNER.left, INNER.right]).nice();
  const domain = x.domain() as [number, number];
  const bins = bin()
    .domain(domain)
    .thresholds(ticks(domain[0], domain[1], 30));
  const counted = [
    ['good', bins([...good])],
    ['defective', bins([...defective])],
  ] as const;
  const most = max(counted, ([, each]) => max(each, ({ length }) => length)) ?? 1;
  const y = scaleLinear([0, most], [INNER.bottom, INNER.top]).nice();
  const bars = counted.flatMap(([kind, each]) =>
    each
      .filter(({ length }) => length > 0)
      .map(({ x0 = 0, x1 = 0, length }) => {
        const width = Math.max(1, x(x1) - x(x0) - 1);
        const [barWidth, barHeight] = [at(width), at(INNER.bottom - y(length))];
        const box = `x="${at(x(x0) + 0.5)}" width="${barWidth}" y="${at(y(length))}" height="${barHeight}"`;
        const range = `${x0.toPrecision(3)} to ${x1.toPrecision(3)}`;
        return `<rect class="b-${kind}" ${box}><title>${length} ${kind}, score ${range}</title></rect>`;
      }),
  );
  const lines = markers.map(({ kind, score }) => {
    const place = at(x(Math.min(domain[1], Math.max(domain[0], score))));
    return (
      `<line class="m-${kind}" x1="${place}" x2="${place}" y1="${INNER.top}" y2="${INNER.bottom}">` +
      `<title>${kind} ${score.toPrecision(4)}</title></line>`
    );
  });
  return frame(x, y, { x: 'score', y: 'images' }, bars.join('') + lines.join(''), title);
}

/** Computes ROC and precision-recall points, one per distinct score. */
export function imageCurves(scores: readonly { readonly score: number; readonly defective: boolean }[]): {
  readonly roc: readonly [number, number][];
  readonly precisionRecall: readonly [number, number][];
} {
  const sorted = [...scores].sort((a, b) => b.score - a.score);
  const positives = sorted.filter(({ defective }) => defective).length;
  const negatives = sorted.length - positives;
  const roc: [number, number][] = negatives > 0 && positives > 0 ? [[0, 0]] : [];
  const precisionRecall: [number, number][] = [];
  let found = 0;
  for (const [i, { score, defective }] of sorted.entries()) {
    if (defective) found += 1;
    if (sorted[i + 1]?.score === score || positives === 0) continue;
    if (negatives > 0) roc.push([(i + 1 - found) / negatives, found / positives]);
    precisionRecall.push([found / positives, found / (i + 1)]);
  }
  return { roc, precisionRecall };
}
