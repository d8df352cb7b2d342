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

function modesTable({ modes, python, time }) {
  const onlySteps = (experimental) => Object.keys(experimental).every((name) => name === 'steps');
  const lines = [`| | ${HEAD} time |`, '|---|---|---|---|---|---|'];
  const add = (name, { mean, experimental }, relative = experimental && rowOf(time, experimental)?.relative) => {
    lines.push(`| ${name} | ${metrics(mean)} | ${relative === undefined ? '' : relative.toFixed(2)} |`);
  };
  add('autoencoder only', python.rows.autoencoder);
  add('without SG', python.rows['without SG']);
  add('without SFF', python.rows['without SFF']);
  add('full, as published: 10 steps', rowOf(modes, {}));
  for (const row of modes.rows.filter(({ experimental }) => !onlySteps(experimental))) add(named(row.experimental), row);
  const curve = modes.rows.filter(({ experimental }) => experimental.steps !== undefined && onlySteps(experimental));
  for (const row of curve) add(`\`steps: ${row.experimental.steps}\``, row);
  add('20 steps, every 50th timestep', python.rows['ddim 20'], time?.ddim20);
  return lines.join('\n');
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
  const { test, modes, python, seeds, time } = kept;
  const texts = {};
  if (test !== undefined) {
    texts.quality = `${where(test)} ${test.rows[0].pictures} test pictures, means over the classes, seed 0.\n\n${testTable(kept)}`;
  }
  if (modes !== undefined && python !== undefined) {
    const timed =
      time === undefined
        ? ''
        : ` Time: of one picture alone on one thread, measured in turn, relative to the published ten steps (${time.rows[0].milliseconds.toFixed(0)} ms on a machine with other work).`;
    texts.modes = `Parts left out, every mode by itself, and fewer and more steps. ${where(modes)} ${modes.rows[0].pictures} test pictures, evenly over classes and kinds of defects, seed 0.${timed}\n\n${modesTable(kept)}`;
  }
  if (seeds !== undefined) {
    texts.seeds = `How far the seed matters. ${where(seeds)} ${seeds.rows[0].seeds} seeds on the same ${seeds.rows[0].pictures} pictures, mean ± standard deviation over the seeds. Score spread: standard deviation of a picture's score over the seeds, relative to the standard deviation between the pictures of its class.\n\n${seedsTable(kept)}`;
  }
  return texts;
}

const CARD_HEADING = '## What the parts bring, and other ways to sample\n';
const CARD_TEXT = `"Without SG" and "without SFF" take the part out of this model at inference: control maps of zeros, and the SG network's outputs as they are before the
fusion. The weights were trained with both parts; models trained without them would do better than these rows. Rows with options are experimental modes of
the engine, off by default (docs/modes.md in the repository).`;

/** The card with its section of tables, new or again. */
function cardWith(card, { quality, modes, seeds }) {
  const next = '## What limits it';
  const to = card.indexOf(next);
  if (to < 0) throw new Error(`MODEL_CARD.md has no "${next}"`);
  const from = card.includes(CARD_HEADING) ? card.indexOf(CARD_HEADING) : to;
  return `${card.slice(0, from)}${[CARD_HEADING.trimEnd(), CARD_TEXT, quality, modes, seeds].filter(Boolean).join('\n\n')}\n\n${card.slice(to)}`;
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
