// npm run fuzz -- [--minutes M] [--only NAME ...] [--jobs N] [--dry]: libFuzzer on what reads bundles and frames (cpp/fuzz), with
// AddressSanitizer and UndefinedBehaviorSanitizer, each for M minutes (default 30), N at once (default 1).
//
// Needs Clang with its runtime libraries (Debian: clang-19 libclang-rt-19-dev) and what `npm test` sets up. Programs, corpora and inputs that
// were found to fail are in build/fuzz; the corpora are kept and gone on with. A run is recorded in bench/results/fuzz.json and in the table
// of docs/reliability.md, unless --dry.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { python, root } from './setup.mjs';

const FUZZERS = {
  manifest: 'any text as manifest.json',
  bundle: 'any manifest over a folder with files',
  pickle: "any bytes as a module's pickle",
  archive: 'any pickles, code and tensors as a TorchScript file',
  frame: 'frames of any size and content',
};
const RESULTS = path.join(root, 'bench', 'results', 'fuzz.json');
const PAGE = path.join(root, 'docs', 'reliability.md');
const [START, END] = ['<!-- measured: npm run fuzz -->', '<!-- end of measured: npm run fuzz -->'];
const home = path.join(root, 'build', 'fuzz');

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '30' },
    only: { type: 'string', multiple: true, default: Object.keys(FUZZERS) },
    jobs: { type: 'string', default: '1' },
    dry: { type: 'boolean', default: false },
  },
});
const seconds = Math.round(Number(values.minutes) * 60);
if (!(seconds > 0)) throw new Error(`Expected minutes above 0 for --minutes but received ${values.minutes}`);
const jobs = Number(values.jobs);
if (!(Number.isInteger(jobs) && jobs > 0))
  throw new Error(`Expected a whole number above 0 for --jobs but received ${values.jobs}`);
const unknown = values.only.filter((name) => !(name in FUZZERS));
if (unknown.length > 0)
  throw new Error(
    `Expected names among ${Object.keys(FUZZERS).join(', ')} but received ${unknown.join(', ')}`,
  );

/** What libFuzzer starts from. */
function makeSeeds() {
  const modules = path.join(home, 'modules');
  const seeds = path.join(home, 'seeds');
  for (const folder of [modules, seeds]) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
  }
  const script = (...names) => path.join(root, ...names);
  execFileSync(python, [script('bench', 'abuse', 'hostile_modules.py'), modules, '/nowhere/witness'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  execFileSync(python, [script('cpp', 'fuzz', 'make_seeds.py'), script('models', 'base'), modules, seeds], {
    stdio: 'inherit',
  });
  return seeds;
}

async function fuzz(name, seeds) {
  const corpus = path.join(home, 'corpus', name);
  const findings = path.join(home, 'findings', name);
  for (const folder of [corpus, findings]) mkdirSync(folder, { recursive: true });
  const args = [
    corpus,
    path.join(seeds, name),
    `-max_total_time=${seconds}`,
    '-timeout=120',
    '-rss_limit_mb=3000',
    '-print_final_stats=1',
  ];
  const env = { ...process.env, ASAN_OPTIONS: 'detect_leaks=0', OMP_NUM_THREADS: '1' };
  const started = performance.now();
  const program = path.join(home, 'Release', `${name}_fuzz`);
  const child = spawn(program, [...args, `-artifact_prefix=${findings}/`], {
    env,
    stdio: ['ignore', 'inherit', 'pipe'],
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
  const [status, signal] = await once(child, 'close');
  const last = (pattern) => Number([...stderr.matchAll(pattern)].at(-1)?.[1] ?? 0);
  const outcome = {
    // A finding ends a run early.
    seconds: status === 0 ? seconds : Math.round((performance.now() - started) / 1000),
    executions: last(/stat::number_of_executed_units:\s+(\d+)/g) || last(/^#(\d+)/gm),
    coverage: last(/cov: (\d+)/g),
    corpus: readdirSync(corpus).length,
    failure:
      status === 0
        ? null
        : `ended with ${signal ?? status}: ${/SUMMARY: (.*)/.exec(stderr)?.[1] ?? stderr.slice(-300)}`,
    date: new Date().toISOString().slice(0, 10),
  };
  if (status !== 0) process.stderr.write(stderr.slice(-6000));
  return outcome;
}

function record(outcomes) {
  mkdirSync(path.dirname(RESULTS), { recursive: true });
  const rows = { ...(existsSync(RESULTS) ? JSON.parse(readFileSync(RESULTS, 'utf8')) : {}), ...outcomes };
  writeFileSync(RESULTS, `${JSON.stringify(rows, null, 2)}\n`);
  const lines = [
    '| fuzzer | minutes | inputs | edges covered | corpus | findings | date |',
    '|---|---|---|---|---|---|---|',
  ];
  for (const [name, what] of Object.entries(FUZZERS)) {
    const row = rows[name];
    if (row === undefined) continue;
    const minutes = (row.seconds / 60).toFixed(row.seconds % 60 === 0 ? 0 : 1);
    lines.push(
      `| ${name}: ${what} | ${minutes} | ${row.executions} | ${row.coverage} | ${row.corpus} | ${row.failure ?? 'none'} | ${row.date} |`,
    );
  }
  const text = readFileSync(PAGE, 'utf8');
  const [before, after] = [text.slice(0, text.indexOf(START) + START.length), text.slice(text.indexOf(END))];
  writeFileSync(PAGE, `${before}\n\n${lines.join('\n')}\n\n${after}`);
}

execFileSync(process.execPath, [path.join(root, 'scripts', 'build-native.mjs'), '--fuzz'], {
  stdio: 'inherit',
});
const seeds = makeSeeds();
const waiting = [...values.only];
async function work() {
  for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
    process.stdout.write(`== ${name}, ${seconds} s\n`);
    const outcome = await fuzz(name, seeds);
    const { executions, coverage, corpus, failure } = outcome;
    process.stdout.write(
      `${name}: ${executions} inputs, ${coverage} edges, corpus of ${corpus}: ${failure ?? 'no finding'}\n`,
    );
    if (failure !== null) process.exitCode = 1;
    if (!values.dry) record({ [name]: outcome }); // after each: a run takes hours in full
  }
}
await Promise.all(Array.from({ length: jobs }, work));
