// Runs the setup, the checks and the test suites. Prints the ten slowest tests and the line
// "N passed, N failed, N skipped".
//
//   node scripts/test.mjs            npm test: fast tests, in minutes
//   node scripts/test.mjs --all      npm run test:all: all tests
//   node scripts/test.mjs --rest     the tests of --all that npm test does not run
//
// Slow tests run with --all and --rest only: mocha tests with @slow in the title, Python tests with the
// marker "slow", and the C++ tests for CPUs with fewer instructions.
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { python, root, setUp } from './setup.mjs';
import { installSystemPackages } from './system-packages.mjs';

const bin = (name) => path.join(root, 'node_modules', '.bin', name);
const venv = (name) => path.join(root, '.venv', 'bin', name);
const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-test-'));
const totals = { passed: 0, failed: 0, skipped: 0 };
/** @type {{suite: string, title: string, seconds: number}[]} */
const tests = [];
/** @type {{name: string, seconds: number}[]} */
const steps = [];

const { values: options } = parseArgs({
  options: { all: { type: 'boolean', default: false }, rest: { type: 'boolean', default: false } },
});
const fast = !options.rest;
const slow = options.all || options.rest;

/**
 * Tag in the titles of slow mocha suites and tests: stress, faults, training, installation, browser, brokers.
 */
const SLOW = '@slow';

/** A program without output for this time is killed. Long, so that slow machines do not fail. */
const HANG_GUARD_MS = 20 * 60_000;

/** Runs a program. Prints its output immediately, or all at once after it has exited (`together`). */
async function run(name, command, args, { together = true, env = {} } = {}) {
  if (!together) console.log(`\n== ${name}`);
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const started = performance.now();
  const printed = [];
  const hung = setTimeout(() => {
    printed.push(Buffer.from(`${name}: killed after ${HANG_GUARD_MS / 60_000} minutes without output\n`));
    child.kill('SIGKILL');
  }, HANG_GUARD_MS);
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (part) => {
      hung.refresh();
      printed.push(part);
      if (!together) process.stdout.write(part);
    });
  }
  const status = await new Promise((resolve) => {
    child.once('error', (error) => {
      printed.push(Buffer.from(`${error.message}\n`));
      resolve(1);
    });
    child.once('close', (code) => resolve(code ?? 1));
  });
  clearTimeout(hung);
  steps.push({ name, seconds: (performance.now() - started) / 1000 });
  const output = Buffer.concat(printed).toString();
  if (together) process.stdout.write(`\n== ${name}\n${output}`);
  return { status, output };
}

function count(name, { passed, failed, skipped = 0 }, status) {
  // Count a failure if the suite failed without a failed test, or if it ran no tests.
  const lost = failed === 0 && (status !== 0 || passed + skipped === 0) ? 1 : 0;
  totals.passed += passed;
  totals.failed += failed + lost;
  totals.skipped += skipped;
  console.log(`${name}: ${passed} passed, ${failed + lost} failed, ${skipped} skipped`);
}

/** Runs a check and counts it as one test. */
async function check(name, command, args) {
  const { status } = await run(name, command, args);
  count(name, status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 }, status);
}

async function mochaSuite() {
  const report = path.join(scratch, 'mocha.json');
  const chosen = options.all ? [] : ['--fgrep', SLOW, ...(options.rest ? [] : ['--invert'])];
  const reporters = ['--reporter', 'test/support/reporter.cjs', '--reporter-option', `output=${report}`];
  const { status } = await run('mocha', bin('mocha'), [...reporters, ...chosen, 'test/**/*.test.ts'], {
    together: false,
  });
  let result = { passes: 0, failures: 0, pending: 0, tests: [] };
  try {
    result = JSON.parse(readFileSync(report, 'utf8'));
  } catch (error) {
    console.log(`mocha wrote no report: ${error.message}`);
  }
  tests.push(...result.tests.map(({ title, seconds }) => ({ suite: 'mocha', title, seconds })));
  count('mocha', { passed: result.passes, failed: result.failures, skipped: result.pending }, status);
}

function nvrtc() {
  const packages = execFileSync(python, ['-c', 'import sysconfig; print(sysconfig.get_paths()["platlib"])'], {
    encoding: 'utf8',
  }).trim();
  return path.join(packages, 'nvidia', 'cu13', 'lib', 'libnvrtc.so.13');
}

async function cppTests(name, args, env) {
  const { status, output } = await run(
    name,
    path.join(root, 'build', 'Release', 'diad_engine_tests'),
    ['--duration=true', ...args],
    {
      // MALLOC_PERTURB_: glibc overwrites freed memory, to detect uses after free. NVRTC compiles CUDA
      // kernels without a device.
      env: {
        LD_LIBRARY_PATH: path.join(root, 'build', 'Release'),
        MALLOC_PERTURB_: '165',
        DIAD_NVRTC: nvrtc(),
        ...env,
      },
    },
  );
  for (const [, seconds, title] of output.matchAll(/^(\d+\.\d+) s: (.*)$/gm))
    tests.push({ suite: name, title, seconds: Number(seconds) });
  const line = /test cases:\s+\d+ \|\s+(\d+) passed \|\s+(\d+) failed/.exec(output);
  // doctest counts tests that SKIP_UNLESS (cpp/tests/support.h) skipped as passed.
  const skipped = output.match(/^\[skipped\] /gm)?.length ?? 0;
  count(
    name,
    { passed: Number(line?.[1] ?? skipped) - skipped, failed: Number(line?.[2] ?? 0), skipped },
    status,
  );
}

/** Runs the layer tests with the kernels for CPUs with fewer instructions. */
async function cppCapabilities() {
  const layers = ['packed_layers', 'cpu_graph_passes', 'direct_conv', 'transformer_ops', 'winograd_conv']
    .map((name) => `*${name}_test*`)
    .join(',');
  for (const capability of ['avx2', 'default']) {
    await cppTests(`C++ tests of layers, ${capability}`, [`-sf=${layers}`], {
      ATEN_CPU_CAPABILITY: capability,
    });
  }
}

async function pythonSuite() {
  const report = path.join(scratch, 'pytest.xml');
  const marker = options.all ? [] : ['-m', options.rest ? 'slow' : 'not slow'];
  const args = [
    '-m',
    'pytest',
    '-q',
    '-rs',
    'python/tests',
    ...marker,
    `--junitxml=${report}`,
    '-p',
    'no:cacheprovider',
  ];
  // One thread, because OpenMP threads are slow next to other tests.
  const { status } = await run('Python tests', python, args, {
    env: { OMP_NUM_THREADS: '1', PYTHONUNBUFFERED: '1' },
  });
  let xml = '';
  try {
    xml = readFileSync(report, 'utf8');
  } catch (error) {
    console.log(`pytest wrote no report: ${error.message}`);
  }
  for (const [, file, title, seconds] of xml.matchAll(
    /<testcase classname="([^"]*)" name="([^"]*)" time="([\d.]+)"/g,
  )) {
    tests.push({ suite: 'Python', title: `${file} ${title}`, seconds: Number(seconds) });
  }
  const attributes = /<testsuite [^>]*>/.exec(xml)?.[0] ?? '';
  const number = (name) => Number(new RegExp(` ${name}="(\\d+)"`).exec(attributes)?.[1] ?? 0);
  const [failed, skipped] = [number('failures') + number('errors'), number('skipped')];
  count('Python tests', { passed: number('tests') - failed - skipped, failed, skipped }, status);
}

async function checks() {
  await check('eslint', bin('eslint'), ['.']);
  await check('prettier', bin('prettier'), ['--check', '--log-level', 'warn', '.']);
  await check('types of the tests', bin('tsc'), ['-p', 'tsconfig.test.json', '--noEmit']);
  await check('types of the page', bin('tsc'), ['-p', 'lib/server/page']);
  await check('words and layers', process.execPath, ['scripts/check-structure.mjs']);
  await check('ruff check', venv('ruff'), ['check', 'python']);
  await check('ruff format', venv('ruff'), ['format', '--check', '--quiet', 'python']);
  const sources = "find cpp/engine cpp/metrics cpp/addon cpp/fuzz cpp/tests -name '*.cc' -o -name '*.h'";
  await check('clang-format', 'sh', ['-c', `${sources} | xargs ${venv('clang-format')} --dry-run -Werror`]);
}

function printTimes() {
  const line = ({ seconds }, text) => console.log(`${seconds.toFixed(1).padStart(8)} s  ${text}`);
  console.log('\nSetup, checks and suites:');
  for (const step of steps) line(step, step.name);
  console.log('\nThe ten slowest tests:');
  for (const test of tests.sort((a, b) => b.seconds - a.seconds).slice(0, 10))
    line(test, `${test.suite}: ${test.title}`);
}

try {
  if (slow) installSystemPackages();
  steps.push(...setUp({ withPython: true }));
  // Run checks and Python tests in parallel with mocha: they use one thread each, and mocha tests mostly
  // wait. The C++ tests use all cores.
  const besides = async () => {
    if (fast) await checks();
    await pythonSuite();
  };
  for (const { reason } of await Promise.allSettled([mochaSuite(), besides()]))
    if (reason !== undefined) throw reason;
  if (fast) await cppTests('C++ tests', [], {});
  if (slow) await cppCapabilities();
} catch (error) {
  console.error(error.message);
  totals.failed += 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
printTimes();
console.log(`\n${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = totals.failed > 0 ? 1 : 0;
