// npm run abuse: stress tests with misuse that crashes other addons.
//
//   node bench/abuse/main.mjs [--full] [--only NAME ...] [--dry] [--count N] [--minutes M] [--results FILE]
//   node bench/abuse/main.mjs --merge FILE
//
// The short forms take minutes in total and run in `npm run test:all`. --full uses the amounts of
// docs/design/reliability.md and takes hours. Each group runs in its own process.
//
// Writes one row per group to bench/results/reliability.json and to the table in docs/design/reliability.md,
// unless --dry is given. With --results, rows are written to that file only; --merge adds them later, for
// example after a long run on a copy of the tree. --minutes limits the time of groups that support it (soak);
// the row shows the completed amount.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { root } from './harness.mjs';

export const GROUPS = [
  'exits',
  'workers',
  'closing',
  'storms',
  'cycles',
  'soak',
  'images',
  'bombs',
  'bundles',
  'torchscript',
  'memory',
  'disk',
  'buffers',
  'options',
];
const RESULTS = path.join(root, 'bench', 'results', 'reliability.json');
const PAGE = path.join(root, 'docs', 'design', 'reliability.md');
const [START, END] = ['<!-- measured: npm run abuse -->', '<!-- end of measured: npm run abuse -->'];

/** Runs one group in a child process and prints its outcome as a line of JSON. */
async function runGroup(name, { full, count, minutes }) {
  const group = await import(`./${name}.mjs`);
  const asked = Number(count ?? (full ? group.amounts.full : group.amounts.short));
  const started = performance.now();
  const {
    measured,
    failures,
    amount = asked,
    series,
  } = await group.run(asked, full, Number(minutes ?? Infinity));
  const outcome = {
    abuse: group.abuse,
    mustHold: group.mustHold,
    amount,
    full,
    count,
    minutes,
    seconds: (performance.now() - started) / 1000,
    measured,
    failures,
    series,
  };
  process.stdout.write(`\nOUTCOME ${JSON.stringify(outcome)}\n`);
  process.exit(failures.length === 0 ? 0 : 1);
}

function runInChild(name, values) {
  const args = ['--expose-gc', fileURLToPath(import.meta.url), '--group', name];
  if (values.full) args.push('--full');
  for (const name of ['count', 'minutes'])
    if (values[name] !== undefined) args.push(`--${name}`, values[name]);
  const { stdout, status, signal } = spawnSync(process.execPath, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 1 << 28,
  });
  const line = /^OUTCOME (.*)$/m.exec(stdout ?? '');
  if (line === null)
    return {
      failures: [`the group's process ended with ${signal ?? status} and no outcome`],
      full: values.full,
    };
  return JSON.parse(line[1]);
}

const cell = (text) => String(text).replaceAll('|', '\\|').replaceAll('\n', ' ');

function table(rows) {
  const lines = ['| abuse | amount | must hold | measured | held | command |', '|---|---|---|---|---|---|'];
  for (const name of GROUPS) {
    const row = rows[name];
    if (row === undefined) {
      lines.push(`| ${name} | | | not measured yet | | \`npm run abuse -- --full --only ${name}\` |`);
      continue;
    }
    const held = row.failures.length === 0 ? 'yes' : `NO: ${row.failures[0]}`;
    const limits = ['count', 'minutes']
      .map((option) => (row[option] === undefined ? '' : ` --${option} ${row[option]}`))
      .join('');
    const command = `npm run abuse -- ${row.full ? '--full ' : ''}--only ${name}${limits}`;
    const cells = [
      row.abuse,
      row.amount,
      row.mustHold,
      `${row.measured} (${row.date}, ${row.cpu}, ${row.cores === 1 ? '1 core' : `${row.cores} cores`})`,
      held,
    ];
    lines.push(`| ${cells.map(cell).join(' | ')} | \`${command}\` |`);
  }
  return lines.join('\n');
}

const readRows = (file) => (existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {});

/** Returns the tree hash of a committed folder. Unlike a commit hash, it does not change in a rebase. */
const treeOf = (folder) =>
  execFileSync('git', ['rev-parse', '--short', `HEAD:${folder}`], { cwd: root, encoding: 'utf8' }).trim();

function record(name, outcome, file = RESULTS) {
  const row = {
    ...outcome,
    date: new Date().toISOString().slice(0, 10),
    trees: { cpp: treeOf('cpp'), lib: treeOf('lib') },
    cpu: os.cpus()[0].model,
    cores: os.availableParallelism(),
    node: process.version,
  };
  take({ [name]: row }, file);
}

/** Adds rows to a results file. For the project's own file, also updates the table. */
function take(rows, file = RESULTS) {
  mkdirSync(path.dirname(file), { recursive: true });
  const all = { ...readRows(file), ...rows };
  writeFileSync(file, `${JSON.stringify(all, null, 2)}\n`);
  if (file === RESULTS) writeTable(all);
}

function writeTable(rows) {
  const text = readFileSync(PAGE, 'utf8');
  const [before, after] = [text.slice(0, text.indexOf(START) + START.length), text.slice(text.indexOf(END))];
  writeFileSync(PAGE, `${before}\n\n${table(rows)}\n\n${after}`);
}

const { values } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true },
    dry: { type: 'boolean', default: false },
    count: { type: 'string' },
    minutes: { type: 'string' },
    results: { type: 'string' },
    merge: { type: 'string' },
    group: { type: 'string' },
  },
});
if (values.group !== undefined) {
  await runGroup(values.group, values);
} else if (values.merge !== undefined) {
  take(readRows(values.merge));
} else {
  const chosen = values.only ?? GROUPS;
  const unknown = chosen.filter((name) => !GROUPS.includes(name));
  if (unknown.length > 0)
    throw new Error(`Expected names among ${GROUPS.join(', ')} but received ${unknown.join(', ')}`);
  let failed = 0;
  for (const name of chosen) {
    const outcome = runInChild(name, values);
    const held = outcome.failures.length === 0;
    if (!held) failed++;
    if (!values.dry && outcome.abuse !== undefined) record(name, outcome, values.results);
    console.log(
      `${held ? 'held' : 'FAILED'}  ${name}: ${outcome.amount ?? '?'} in ` +
        `${(outcome.seconds ?? 0).toFixed(1)} s: ${outcome.measured ?? ''}`,
    );
    for (const failure of outcome.failures.slice(0, 20)) console.log(`        ${failure}`);
  }
  process.exitCode = failed === 0 ? 0 : 1;
}
