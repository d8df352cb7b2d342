// Tables of bench/quality.mjs: in the model's card (returned, since it is sealed) and in docs/modes.md.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fill, root } from './reliability/record.mjs';

const three = (value) => (value === null || value === undefined ? '' : value.toFixed(3));
const metrics = ({ image_auroc, image_ap, pixel_auroc, pixel_ap }) => [image_auroc, image_ap, pixel_auroc, pixel_ap].map(three).join(' | ');
const HEAD = 'image AUROC | image AP | pixel AUROC | pixel AP |';

/** Options as they are written in a call. */
const named = (experimental) =>
  Object.entries(experimental)
    .map(([name, value]) => `\`${name}: ${typeof value === 'string' ? `'${value}'` : value}\``)
    .join(', ') || 'as published';

const same = (a, b) => JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());

/** The row of a part with these options. */
const rowOf = (part, experimental) => part?.rows.find((row) => same(row.experimental, experimental));

function testTable({ test, validation }) {
  const line = (name, mean) => `| ${name} | ${metrics(mean)} |`;
  return [
    `| | ${HEAD}`,
    '|---|---|---|---|---|',
    line('full, as published', rowOf(test, {}).mean),
    line(named(validation.chosen), rowOf(test, validation.chosen).mean),
  ].join('\n');
}

/** Rows with the time of those that were timed. */
function timedTable(time, rows) {
  const relative = (experimental) => rowOf(time, experimental)?.relative;
  return [
    `| | ${HEAD}${time === undefined ? '' : ' time |'}`,
    `|---|---|---|---|---|${time === undefined ? '' : '---|'}`,
    ...rows.map(([name, { mean, experimental }, share = experimental && relative(experimental)]) => {
      return `| ${name} | ${metrics(mean)} |${time === undefined ? '' : ` ${share?.toFixed(2) ?? ''} |`}`;
    }),
  ].join('\n');
}

function modesTable({ modes, python, time }) {
  return timedTable(time, [
    ['autoencoder only', python.rows.autoencoder],
    ['without SG', python.rows['without SG']],
    ['without SFF', python.rows['without SFF']],
    ['full, as published', rowOf(modes, {})],
    ...modes.rows.filter(({ experimental }) => !same(experimental, {})).map((row) => [named(row.experimental), row]),
  ]);
}

function stepsTable({ modes, steps, time }) {
  return timedTable(time, [
    ...steps.rows.map((row) => [`\`steps: ${row.experimental.steps}\``, row]),
    ['10 steps, as published', rowOf(modes, {})],
    ['20 steps, every 50th timestep (Python reference)', steps.more['ddim 20'], time?.ddim20],
  ]);
}

function seedsTable({ seeds }) {
  const pair = ({ mean, deviation }) => `${mean.toFixed(3)} ± ${deviation.toFixed(3)}`;
  return [
    '| | score spread | image AUROC | pixel AUROC |',
    '|---|---|---|---|',
    ...seeds.rows.map(
      ({ experimental, scoreSpread, imageAuroc, pixelAuroc }) =>
        `| ${named(experimental)} | ${scoreSpread.toFixed(3)} | ${pair(imageAuroc)} | ${pair(pixelAuroc)} |`,
    ),
  ].join('\n');
}

function validationTable({ validation }) {
  return [
    `| | ${HEAD}`,
    '|---|---|---|---|---|',
    ...validation.rows.map(({ experimental, mean }) => `| ${named(experimental)} | ${metrics(mean)} |`),
  ].join('\n');
}

const leftOutTable = ({ rows }) =>
  [
    `| | ${HEAD} time |`,
    '|---|---|---|---|---|---|',
    ...rows.map((row) => `| ${row.name} | ${metrics(row)} | ${row.relative.toFixed(2)} |`),
  ].join('\n');

/** Test tables by name; only what has been measured. */
function testTexts(kept, where) {
  const { test, modes, python, steps, seeds, time } = kept;
  const texts = {};
  if (test !== undefined) {
    texts.quality = `${where(test)} ${test.rows[0].pictures} test pictures, means over the classes, seed 0.\n\n${testTable(kept)}`;
  }
  const timed =
    time === undefined
      ? ''
      : ` Time: of one picture alone on one thread, measured in turn, relative to the published ten steps (${time.rows[0].milliseconds.toFixed(0)} ms on a machine with other work).`;
  if (modes !== undefined && python !== undefined) {
    texts.modes = `Parts left out, and every mode by itself. ${where(modes)} ${modes.rows[0].pictures} test pictures, evenly over classes and kinds of defects, seed 0.${timed}\n\n${modesTable(kept)}`;
  }
  if (modes !== undefined && steps !== undefined) {
    texts.steps = `Fewer and more steps, on the same pictures. ${where(steps)}\n\n${stepsTable(kept)}`;
  }
  if (seeds !== undefined) {
    texts.seeds = `How far the seed matters. ${where(seeds)} ${seeds.rows[0].seeds} seeds on the same ${seeds.rows[0].pictures} pictures, mean ± standard deviation over the seeds. Score spread: standard deviation of a picture's score over the seeds, relative to the standard deviation between the pictures of its class.\n\n${seedsTable(kept)}`;
  }
  return texts;
}

const CARD_HEADING = '## What the parts bring, and other ways to sample\n';
const CARD_TEXT = `"Without SG" and "without SFF" take the part out of this model at inference: control maps of zeros, and the SG network's outputs as they are before the
fusion. The weights were trained with both parts; models trained without them would do better than these rows. Rows with options are experimental modes of
the engine, off by default (docs/modes.md in the repository).

- Of the rows with parts left out the full system is the best.
- It is not the best row on image AUROC: without noise at the start it is a little higher. The likely reason: this small denoiser redraws what the noise has
  destroyed less exactly than a large one would, so that normal parts change as well; with less noise less needs redrawing. The published start stays the
  default, since it is the system that other bundles are trained for.
- Differences of 0.02 and less between rows of 200 pictures are within chance: there are ten good and ten defective pictures of a class.`;

/** The card with its section of tables, new or again. */
function cardWith(card, { quality, modes, steps, seeds }) {
  const next = '## What limits it';
  const to = card.indexOf(next);
  if (to < 0) throw new Error(`MODEL_CARD.md has no "${next}"`);
  const from = card.includes(CARD_HEADING) ? card.indexOf(CARD_HEADING) : to;
  return `${card.slice(0, from)}${[CARD_HEADING.trimEnd(), CARD_TEXT, quality, modes, steps, seeds].filter(Boolean).join('\n\n')}\n\n${card.slice(to)}`;
}

/** Fills docs/modes.md with what has been measured; returns the card's text with its tables, or undefined when some are missing. */
export function renderQuality(kept) {
  const where = (part) => `Measured on ${part.date} with \`bench/quality.mjs\` (commit ${part.commit}; ${part.cpu}).`;
  const { validation } = kept;
  if (validation !== undefined) {
    fill(
      'modes.md',
      'validation',
      `${where(validation)} ${validation.rows[0].pictures} validation pictures, seed 0.\n\n${validationTable(kept)}`,
    );
  }
  const leftOut = JSON.parse(readFileSync(path.join(root, 'bench', 'results', 'quality-left-out.json'), 'utf8'));
  const head = `Measured with \`bench/left_out.py\`: ${leftOut.pictures} validation pictures; time of sampling, decoding and features on one thread, measured in turn on a machine with other work, relative to the published ten steps.`;
  fill('modes.md', 'left out', `${head}\n\n${leftOutTable(leftOut)}`);
  const texts = testTexts(kept, where);
  for (const [name, text] of Object.entries(texts)) fill('modes.md', name, text);
  if (texts.quality === undefined || texts.modes === undefined) return undefined;
  return cardWith(readFileSync(path.join(root, 'models', 'demo', 'MODEL_CARD.md'), 'utf8'), texts);
}
