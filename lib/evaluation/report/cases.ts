// Renders the worst misses and false alarms: input, reconstruction, map and mask contour.
import { AnomalyMap } from '../../scoring/anomaly-map.js';
import type { Diad } from '../../diad.js';
import { decodeImage, NO_LIMITS, takeImage } from '../../image/decode.js';
import type { RawFrame } from '../../image/types.js';
import { findRegions } from '../../scoring/regions.js';
import type { Evaluation, ImageReport } from '../evaluate.js';
import { maskOf, readImage } from '../images.js';
import { escapeHtml } from './html.js';

const LARGEST_SIDE = 360;
const QUALITY = 82;

/** An image and its renderings for the report. */
export interface Case {
  readonly image: ImageReport;
  /** Data URIs of JPEG images. */
  readonly input: string;
  readonly reconstruction: string;
  readonly heatmap: string;
  /** SVG path of the mask outline in image pixels; empty without a mask. */
  readonly contour: string;
}

/** Ranking key: the normalized score, because thresholds can differ between classes. */
const rank = ({ score, normalizedScore }: ImageReport): number => normalizedScore ?? score;

/** Selects the defective images with the lowest and the normal images with the highest scores. */
export function chooseCases(
  images: readonly ImageReport[],
  count: number,
): { readonly misses: readonly ImageReport[]; readonly alarms: readonly ImageReport[] } {
  const byRank = [...images].sort((a, b) => rank(a) - rank(b));
  const misses = byRank.filter(({ defective }) => defective).slice(0, count);
  const alarms = byRank.filter(({ defective }) => !defective).reverse();
  return { misses, alarms: alarms.slice(0, count) };
}

/** Computes the map value of the strongest color for the whole data set: the 95 % quantile of map maxima. */
export async function colorMaximum(evaluation: Evaluation): Promise<number> {
  const maxima: number[] = [];
  for (const { index } of evaluation.images) {
    let largest = 0;
    for (const value of await evaluation.scores.map(index)) if (value > largest) largest = value;
    maxima.push(largest);
  }
  maxima.sort((a, b) => a - b);
  return Math.max(1e-6, maxima[Math.ceil(0.95 * maxima.length) - 1] ?? 1);
}

interface Size {
  readonly width: number;
  readonly height: number;
}

async function jpeg(
  image: Uint8Array | Uint8ClampedArray,
  size: Size,
  raw?: Omit<RawFrame, 'data'>,
): Promise<string> {
  const { default: sharp } = await import('sharp');
  const bytes = await sharp(image, raw === undefined ? {} : { raw })
    .removeAlpha()
    .toColorspace('srgb')
    .resize({ ...size, fit: 'fill' })
    .jpeg({ quality: QUALITY })
    .toBuffer();
  return `data:image/jpeg;base64,${bytes.toString('base64')}`;
}

async function maskContour(evaluation: Evaluation, image: ImageReport, side: number): Promise<string> {
  const mask = await maskOf(evaluation.data.images[image.index]!, image, side, 'half');
  if (mask === undefined || !image.defective) return '';
  const regions = findRegions({ width: side, height: side, data: Float32Array.from(mask) }, image, 0.5);
  const ring = (points: readonly (readonly [number, number])[]): string =>
    `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join('L')}Z`;
  return regions.flatMap(({ contour, holes }) => [contour, ...holes].map(ring)).join('');
}

/** Renders one case. Reconstructs the image with the options of the run. */
export async function renderCase(
  evaluation: Evaluation,
  diad: Diad,
  image: ImageReport,
  colorMax: number,
): Promise<Case> {
  const { file } = evaluation.data.images[image.index]!;
  const frame = await decodeImage(takeImage(await readImage(file)), NO_LIMITS);
  const { width, height, channels } = frame;
  const scale = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  const size = {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
  };
  const { image: reconstructed } = await diad.reconstruct(frame, evaluation.call);
  const side = diad.info.bundle.imageSize;
  const map = new AnomalyMap(
    side,
    side,
    await evaluation.scores.map(image.index),
    { kind: 'frame', frame },
    { width, height },
    undefined,
  );
  return {
    image,
    input: await jpeg(frame.data, size, { width, height, channels }),
    reconstruction: await jpeg(reconstructed, size),
    heatmap: await jpeg(await map.toHeatmap({ min: 0, max: colorMax }), size),
    contour: await maskContour(evaluation, image, side),
  };
}

/** Formats a case as HTML. */
export function caseHtml({ image, input, reconstruction, heatmap, contour }: Case): string {
  const { width, height } = image;
  const figure = (name: string, source: string, outline: string): string =>
    `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${name}">` +
    `<image href="${source}" width="${width}" height="${height}"/>${outline}</svg>` +
    `<figcaption>${name}</figcaption></figure>`;
  const outline = contour === '' ? '' : `<path class="contour" d="${contour}"/>`;
  const facts: readonly (readonly [string, string])[] = [
    ['file', image.file],
    ['class', image.className],
    ['label', image.defect],
    ['score', image.score.toFixed(4)],
    ...(image.threshold === null ? [] : [['threshold', image.threshold.toFixed(4)] as const]),
    ['size', `${width} × ${height}`],
  ];
  const list = facts.map(([name, value]) => `<dt>${name}</dt><dd>${escapeHtml(value)}</dd>`).join('');
  const figures = [
    figure('input', input, outline),
    figure('reconstruction', reconstruction, ''),
    figure('anomaly map', heatmap, outline),
  ];
  return `<div class="case"><div><dl>${list}</dl></div>${figures.join('')}</div>`;
}
