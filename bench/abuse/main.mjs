// npm run abuse: what breaks other addons, done to this one on purpose.
//
//   node bench/abuse/main.mjs [--full] [--only NAME ...] [--dry] [--count N] [--minutes M] [--results FILE]
//   node bench/abuse/main.mjs --merge FILE
//
// Short forms take minutes together and run in `npm run test:all`; --full are the amounts of docs/reliability.md (hours). Each group runs in a
// process of its own. Writes a row a group into bench/results/reliability.json and the table in docs/reliability.md, unless --dry; with
// --results into that file alone, from which --merge takes it over later (a run of hours on a copy of the tree). --minutes ends a group
// that looks at it (soak) after that much wall time; the row states what was done until then.
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
const PAGE = path.join(root, 'docs', 'reliability.md');
const [START, END] = ['<!-- measured: npm run abuse -->', '<!-- end of measured: npm run abuse -->'];

/** In the child: one group, its outcome as a line of JSON. */
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

/** Content hash of a folder as committed: unlike a commit's it outlives a rebase. */
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

/** Takes rows over into a file of results; into the project's own with the table. */
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
      `${held ? 'held' : 'FAILED'}  ${name}: ${outcome.amount ?? '?'} in ${(outcome.seconds ?? 0).toFixed(1)} s: ${outcome.measured ?? ''}`,
    );
    for (const failure of outcome.failures.slice(0, 20)) console.log(`        ${failure}`);
  }
  process.exitCode = failed === 0 ? 0 : 1;
}
