// Writes the report of an evaluation as one self-contained HTML file.
import path from 'node:path';
import { heatColor } from '../../scoring/anomaly-map.js';
import type { Diad } from '../../diad.js';
import { writeAtomic } from '../../io/atomic-file.js';
import type { ClassReport, Evaluation, ImageReport } from '../evaluate.js';
import { METRIC_NAMES, type Metrics } from '../metrics.js';
import { caseHtml, chooseCases, colorMaximum, renderCase } from './cases.js';
import { imageCurves, scoreHistogram, unitChart, type Curve, type Marker } from './charts.js';
import { escapeHtml } from './html.js';
import { STYLE } from './style.js';

const CASES = 6;

const TITLES: Readonly<Record<keyof Metrics, string>> = {
  image_auroc: 'image AUROC',
  image_ap: 'image AP',
  image_f1max: 'image F1max',
  pixel_auroc: 'pixel AUROC',
  pixel_ap: 'pixel AP',
  pixel_f1max: 'pixel F1max',
  au_pro: 'AU-PRO',
};

const shown = (value: number | null): string => (value === null ? '–' : value.toFixed(4));

function verdicts(images: readonly ImageReport[]): readonly [alarms: string, misses: string] {
  if (images.some(({ anomalous }) => anomalous === null)) return ['–', '–'];
  const share = (defective: boolean): string => {
    const of = images.filter((image) => image.defective === defective);
    return `${of.filter(({ anomalous }) => anomalous !== defective).length} of ${of.length}`;
  };
  return [share(false), share(true)];
}

function table({ classes, mean, images }: Evaluation): string {
  const heads = [
    'class',
    'images',
    'defective',
    ...METRIC_NAMES.map((name) => TITLES[name]),
    'threshold',
    'false alarms',
    'misses',
  ];
  const rows = Object.entries(classes).map(([name, report]) => {
    const [alarms, misses] = verdicts(images.filter(({ className }) => className === name));
    const values = METRIC_NAMES.map((metric) => shown(report.metrics[metric]));
    return [
      escapeHtml(name),
      String(report.images),
      String(report.defective),
      ...values,
      shown(report.threshold),
      alarms,
      misses,
    ];
  });
  const defective = images.filter((image) => image.defective).length;
  const values = METRIC_NAMES.map((metric) => shown(mean[metric]));
  const foot = ['mean or sum', String(images.length), String(defective), ...values, '', ...verdicts(images)];
  const line = (row: readonly string[], tag: string): string =>
    `<tr>${row.map((cell) => `<${tag}>${cell}</${tag}>`).join('')}</tr>`;
  const body = rows.map((row) => line(row, 'td')).join('');
  const head = `<thead>${line(heads, 'th')}</thead>`;
  const tail = `<tfoot>${line(foot, 'td')}</tfoot>`;
  return `<div class="scroll"><table>${head}<tbody>${body}</tbody>${tail}</table></div>`;
}

function classCharts(
  name: string,
  report: ClassReport,
  images: readonly ImageReport[],
  range: readonly [number, number],
): string {
  const of = images.filter(({ className }) => className === name);
  const scores = (defective: boolean): number[] =>
    of.filter((image) => image.defective === defective).map(({ score }) => score);
  const markers: Marker[] = [
    ...(report.threshold === null ? [] : [{ kind: 'threshold', score: report.threshold } as const]),
    ...(report.imageF1maxScore === null ? [] : [{ kind: 'f1max', score: report.imageF1maxScore } as const]),
  ];
  const image = imageCurves(of);
  const pixel = report.pixelCurve;
  const start: Curve['points'] = pixel.length === 0 ? [] : [[0, 0]];
  const roc: Curve[] = [
    {
      kind: 'pixel',
      points: [...start, ...pixel.map((p) => [p.falsePositiveRate, p.truePositiveRate] as const)],
    },
    { kind: 'image', points: image.roc },
  ];
  const precisionRecall: Curve[] = [
    {
      kind: 'pixel',
      points: pixel
        .filter((p) => p.truePositiveRate > 0)
        .map((p) => [p.truePositiveRate, p.precision] as const),
    },
    { kind: 'image', points: image.precisionRecall },
  ];
  const panels = [
    scoreHistogram(`${name}: scores`, scores(false), scores(true), range, markers),
    unitChart(`${name}: ROC`, { x: 'false positive rate', y: 'true positive rate' }, roc, true),
    unitChart(`${name}: precision and recall`, { x: 'recall', y: 'precision' }, precisionRecall, false),
  ].map((chart) => `<div class="panel">${chart}</div>`);
  return `<h3>${escapeHtml(name)}</h3><div class="row">\n${panels.join('\n')}</div>`;
}

function ramp(colorMax: number): string {
  const stops = Array.from(
    { length: 9 },
    (_, i) =>
      `rgb(${heatColor(i / 8)
        .map(Math.round)
        .join(' ')})`,
  ).join(', ');
  return (
    `<div class="ramp" style="background: linear-gradient(90deg, ${stops})"></div>` +
    `<div class="ends"><span>0</span><span>${colorMax.toFixed(3)}</span></div>`
  );
}

const KEY = `<div class="key"><span><i style="background: var(--good)"></i>normal images</span>
<span><i style="background: var(--bad)"></i>defective images; image curves</span>
<span><i style="background: var(--pixel)"></i>pixel curves</span>
<span>solid line: threshold; dashed line: score of the maximum F1 on this set</span></div>`;

async function cases(
  evaluation: Evaluation,
  diad: Diad,
  chosen: readonly ImageReport[],
  colorMax: number,
): Promise<string> {
  // Render concurrently, so that reconstructions are batched.
  const parts = await Promise.all(
    chosen.map(async (image) => caseHtml(await renderCase(evaluation, diad, image, colorMax))),
  );
  return parts.length === 0 ? '<p class="soft">None.</p>' : parts.join('\n');
}

function introduction({ data, mode, call, images, classes }: Evaluation, diad: Diad): string {
  const { bundle, device, precision } = diad.info;
  const withoutMask = Object.values(classes).reduce((sum, report) => sum + report.withoutMask, 0);
  const note =
    withoutMask === 0
      ? ''
      : ` ${withoutMask} defective images have no mask and count only for image metrics.`;
  const classCount = Object.keys(classes).length;
  const model = `“${escapeHtml(bundle.name)}”\n<code>${bundle.digest.slice(0, 12)}</code>`;
  const run = `on ${escapeHtml(device)}, ${escapeHtml(precision)}, seed ${call.seed.toString()}`;
  return `<p class="soft">${images.length} test images of ${classCount} classes (layout ${data.layout}),
scored by ${model} ${run}.
Metrics as defined by mode <code>${mode}</code>; the mean is over classes.${note}</p>`;
}

/**
 * Writes index.html next to the tables: metrics by class, score histograms with the threshold, ROC and
 * precision-recall curves, and the worst misses and false alarms as images. Map colors use one scale for the
 * whole data set. The file is self-contained.
 *
 * @returns path of the file
 */
export async function writeReport(evaluation: Evaluation, diad: Diad): Promise<string> {
  const { data, images, failed, classes } = evaluation;
  const colorMax = await colorMaximum(evaluation);
  const { misses, alarms } = chooseCases(images, CASES);
  const all = images.map(({ score }) => score);
  const range = [
    all.reduce((a, b) => Math.min(a, b), Infinity),
    all.reduce((a, b) => Math.max(a, b), -Infinity),
  ] as const;
  const charts = Object.entries(classes).map(([name, report]) => classCharts(name, report, images, range));
  const failures = failed.map(
    ({ file, message }) => `<li><code>${escapeHtml(file)}</code>: ${escapeHtml(message)}</li>`,
  );
  const name = escapeHtml(path.basename(data.root));
  const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
  const page = `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="${policy}"><link rel="icon" href="data:,">
<title>diad: ${name}</title><style>${STYLE}</style></head><body>
<h1>${name}</h1>
${introduction(evaluation, diad)}
${failures.length === 0 ? '' : `<h2>Not scored</h2><ul>${failures.join('')}</ul>`}
<h2>Classes</h2>${table(evaluation)}
<h2>Scores and curves</h2>${KEY}${charts.join('\n')}
<h2>Worst misses</h2><p class="soft">Defective images with the lowest scores.
The bright line marks the labeled defect. Map colors, the same for every image:</p>${ramp(colorMax)}
${await cases(evaluation, diad, misses, colorMax)}
<h2>Worst false alarms</h2><p class="soft">Normal images with the highest scores.</p>
${await cases(evaluation, diad, alarms, colorMax)}
</body></html>
`;
  const file = path.join(evaluation.out, 'index.html');
  await writeAtomic(file, page);
  return file;
}
