// npm run sanitize -- address|thread: builds engine, addon and C++ tests with a sanitizer (address: also
// undefined behavior). Then runs the C++ tests, and some mocha tests in unmodified Node with the sanitizer
// library preloaded. npm run sanitize -- valgrind: runs the C++ tests of the normal build with valgrind's
// memcheck, which also detects reads of uninitialized memory, including those in LibTorch. Skips
// compute-heavy tests, and skips Node, which takes minutes to start in valgrind.
//
//   node scripts/sanitize.mjs NAME [--only-cpp] [--dry] [--tests test/integration/lifecycle.test.ts ...]
//
// The CMake tree, the binaries and a copy of the package that uses them are in build/sanitize-NAME. Requires
// the setup of `npm test`. Results of complete runs are written to bench/results/sanitizers.json and to the
// table in docs/design/reliability.md, unless --dry is given.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { root } from './setup.mjs';

const VALGRIND = 'valgrind';
const RUNTIMES = { address: 'libasan.so', thread: 'libtsan.so' };
const TESTS = ['01-arguments', '06-bundle', '07-lifecycle'].map((name) => `test/${name}.test.ts`);
/**
 * doctest patterns of C++ tests that take many minutes in memcheck. Queue tests are slow because threads run
 * serially.
 */
const LARGE_TESTS = [
  "the device's GroupNorm*",
  'kernels that compute something else*',
  'NVRTC*',
  'queue:*',
  'a packed layer*',
  'the direct*',
  'the number of threads*',
  "Winograd's*",
  'a layer is right*',
  'a profile*',
];
const RESULTS = path.join(root, 'bench', 'results', 'sanitizers.json');
const PAGE = path.join(root, 'docs', 'design', 'reliability.md');
const [START, END] = ['<!-- measured: npm run sanitize -->', '<!-- end of measured: npm run sanitize -->'];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'only-cpp': { type: 'boolean', default: false },
    dry: { type: 'boolean', default: false },
    tests: { type: 'string', multiple: true, default: TESTS },
  },
});
const [name] = positionals;
const known = [...Object.keys(RUNTIMES), VALGRIND];
if (!known.includes(name)) {
  process.stderr.write(`sanitize: Expected one of ${known.join(', ')} but received ${name}\n`);
  process.exit(2);
}
const home = path.join(root, 'build', `sanitize-${name}`);
const suppressions = (of) =>
  `suppressions=${path.join(root, 'cpp', 'sanitizers', `${of}.supp`)}:print_stacktrace=1`;
const env = {
  ...process.env,
  LD_LIBRARY_PATH: path.join(home, 'Release'),
  // V8 and LibTorch do not free all memory at exit. `npm run abuse -- --only cycles` measures leaks instead.
  ASAN_OPTIONS: `detect_leaks=0:${suppressions('address')}`,
  UBSAN_OPTIONS: `halt_on_error=1:${suppressions('undefined')}`,
  TSAN_OPTIONS: `halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1:${suppressions('thread')}`,
  // ThreadSanitizer does not detect the synchronization of GNU OpenMP.
  ...(name === 'thread' ? { OMP_NUM_THREADS: '1' } : {}),
};

/** Runs a program, prints its output and returns it. */
function run(title, command, args, options = {}) {
  process.stdout.write(`== ${title}\n`);
  const { status, signal, error, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    ...options,
  });
  if (error)
    throw new Error(error.code === 'ENOENT' ? `${command} is not installed` : error.message, {
      cause: error,
    });
  process.stdout.write(stdout ?? '');
  process.stderr.write(stderr ?? '');
  if (status !== 0) {
    process.stderr.write(`sanitize: ${title}: exited with ${signal ?? status}\n`);
    process.exitCode = 1;
  }
  return { status, output: `${stdout}${stderr}` };
}

/** Creates a copy of the package for the tests, with the sanitized binaries. */
function packageCopy() {
  const copy = path.join(home, 'package');
  rmSync(copy, { recursive: true, force: true });
  mkdirSync(path.join(copy, 'build'), { recursive: true });
  for (const entry of ['lib', 'dist', 'test', 'examples', 'package.json', 'tsconfig.json']) {
    cpSync(path.join(root, entry), path.join(copy, entry), { recursive: true });
  }
  for (const entry of ['node_modules', '.venv', 'models'])
    symlinkSync(path.join(root, entry), path.join(copy, entry));
  symlinkSync(path.join(home, 'Release'), path.join(copy, 'build', 'Release'));
  return copy;
}

function cppTests() {
  const { output } = run('C++ tests', path.join(home, 'Release', 'diad_engine_tests'), [], { env });
  const counts = /test cases:\s+\d+ \|\s+(\d+) passed \|\s+(\d+) failed/.exec(output);
  return { passed: Number(counts?.[1] ?? 0), failed: Number(counts?.[2] ?? 1), reports: reportsIn(output) };
}

/** Runs small C++ tests with memcheck, which is slow and runs one thread at a time. */
function smallTests() {
  const folder = path.join(root, 'build', 'Release');
  const checks = [
    '--leak-check=full',
    '--show-leak-kinds=definite',
    '--errors-for-leak-kinds=definite',
    '--error-exitcode=77',
  ];
  checks.push(`--suppressions=${path.join(root, 'cpp', 'sanitizers', 'valgrind.supp')}`);
  const args = [
    ...checks,
    path.join(folder, 'diad_engine_tests'),
    `--test-case-exclude=${LARGE_TESTS.join(',')}`,
  ];
  const { output } = run('C++ tests', VALGRIND, args, { env: { ...process.env, LD_LIBRARY_PATH: folder } });
  const counts = /test cases:\s+\d+ \|\s+(\d+) passed \|\s+(\d+) failed/.exec(output);
  const errors = /ERROR SUMMARY: (\d+) errors/.exec(output);
  return {
    passed: Number(counts?.[1] ?? 0),
    failed: Number(counts?.[2] ?? 1),
    reports: Number(errors?.[1] ?? 1),
  };
}

function mochaTests() {
  const preload = execFileSync('gcc', [`-print-file-name=${RUNTIMES[name]}`], { encoding: 'utf8' }).trim();
  if (!existsSync(preload)) throw new Error(`gcc has no ${RUNTIMES[name]}: install the sanitizer libraries`);
  const mocha = path.join(root, 'node_modules', 'mocha', 'bin', 'mocha.js');
  const report = path.join(home, 'mocha.json');
  rmSync(report, { force: true });
  const reporter = ['--reporter', 'test/support/reporter.cjs', '--reporter-option', `output=${report}`];
  const args = [
    '--import',
    'tsx',
    mocha,
    '--no-config',
    '--timeout',
    '1200000',
    ...reporter,
    ...values.tests,
  ];
  const { output } = run('mocha', process.execPath, args, {
    cwd: packageCopy(),
    env: { ...env, LD_PRELOAD: preload },
  });
  const stats = existsSync(report) ? JSON.parse(readFileSync(report, 'utf8')) : { passes: 0, failures: 1 };
  return { passed: stats.passes, failed: stats.failures, reports: reportsIn(output) };
}

/** Counts the findings in the output of a sanitizer. */
const reportsIn = (output) =>
  (output.match(/ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer/g) ?? []).length;

function record(outcome) {
  mkdirSync(path.dirname(RESULTS), { recursive: true });
  const rows = { ...(existsSync(RESULTS) ? JSON.parse(readFileSync(RESULTS, 'utf8')) : {}), [name]: outcome };
  writeFileSync(RESULTS, `${JSON.stringify(rows, null, 2)}\n`);
  const counts = ({ passed, failed }) => `${passed} passed, ${failed} failed`;
  const lines = [
    '| sanitizer | C++ tests | mocha tests under Node | findings | date |',
    '|---|---|---|---|---|',
  ];
  for (const [of, { cpp, mocha, date }] of Object.entries(rows)) {
    const title =
      { address: 'address and undefined behavior', [VALGRIND]: 'valgrind (memcheck), small cases' }[of] ?? of;
    const findings = cpp.reports + (mocha?.reports ?? 0);
    lines.push(
      `| ${title} | ${counts(cpp)} | ${mocha ? counts(mocha) : 'not run'} | ${findings} | ${date} |`,
    );
  }
  const text = readFileSync(PAGE, 'utf8');
  const [before, after] = [text.slice(0, text.indexOf(START) + START.length), text.slice(text.indexOf(END))];
  writeFileSync(PAGE, `${before}\n\n${lines.join('\n')}\n\n${after}`);
}

const memcheck = name === VALGRIND;
const how = memcheck ? [] : ['--sanitize', name];
run(`build with ${name}`, process.execPath, [path.join(root, 'scripts', 'build-native.mjs'), ...how], {
  stdio: 'inherit',
});
if (process.exitCode !== undefined) process.exit();
const cpp = memcheck ? smallTests() : cppTests();
const mocha = memcheck || values['only-cpp'] ? undefined : mochaTests();
const whole = memcheck || (mocha !== undefined && values.tests.join() === TESTS.join());
if (whole && !values.dry) record({ cpp, mocha, date: new Date().toISOString().slice(0, 10) });
if (process.exitCode === undefined) process.stdout.write(`${name}: clean\n`);
