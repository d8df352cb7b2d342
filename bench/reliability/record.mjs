// Results of measurements: a JSON file each, and their tables in the documentation, between markers.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export const root = path.resolve(import.meta.dirname, '..', '..');

/** Where and with what something was measured. */
export function circumstances() {
  const git = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' });
  const { model } = os.cpus()[0] ?? { model: 'unknown' };
  return {
    date: new Date().toISOString().slice(0, 10),
    commit: git.stdout.trim(),
    cpu: model,
    cores: os.availableParallelism(),
  };
}

/** Puts text between the markers `<!-- measured: NAME -->` and `<!-- end of measured: NAME -->` of a page in docs/. */
export function fill(page, name, text) {
  const file = path.join(root, 'docs', page);
  const content = readFileSync(file, 'utf8');
  const [start, end] = [`<!-- measured: ${name} -->`, `<!-- end of measured: ${name} -->`];
  if (!content.includes(start) || !content.includes(end))
    throw new Error(`${file} has no markers for ${name}`);
  const [before, after] = [
    content.slice(0, content.indexOf(start) + start.length),
    content.slice(content.indexOf(end)),
  ];
  writeFileSync(file, `${before}\n\n${text}\n\n${after}`);
}

const cell = (value) => {
  if (typeof value !== 'number' || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);
};

/** Writes a measurement's JSON and fills its table. */
export function write(page, name, { short, seconds, figures, expectations }) {
  const where = circumstances();
  const folder = path.join(root, 'bench', 'results');
  if (!existsSync(folder)) mkdirSync(folder, { recursive: true });
  const kept = expectations.map(([sentence]) => sentence);
  const record = { ...where, short, seconds, figures, kept };
  writeFileSync(path.join(folder, `${page}-${name}.json`), `${JSON.stringify(record, null, 2)}\n`);
  const command = `npm run ${page}${page === 'reliability' ? ` -- ${name}` : short ? ' --' : ''}${short ? ' --short --write' : ''}`;
  const lines = [
    `Measured on ${where.date} with \`${command}\`${short ? ' (the SHORT form)' : ''}, ${seconds.toFixed(0)} s (commit ${where.commit}; ${where.cpu}, ${where.cores} cores).`,
    '',
    '| figure | value |',
    '|---|---|',
    ...Object.entries(figures).map(([figure, value]) => `| ${figure} | ${cell(value)} |`),
    ...(kept.length === 0 ? [] : ['', ...kept.map((sentence) => `- kept: ${sentence}`)]),
  ];
  fill(`${page}.md`, name, lines.join('\n'));
}

/** Nearest-rank quantile of numbers. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN;
}
