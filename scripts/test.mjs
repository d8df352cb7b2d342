// npm test: set-up, then every check and suite; ends with the line "N passed, N failed".
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { python, root, setUp } from './setup.mjs';
import { installSystemPackages } from './system-packages.mjs';

const bin = (name) => path.join(root, 'node_modules', '.bin', name);
const venv = (name) => path.join(root, '.venv', 'bin', name);
const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-test-'));
const totals = { passed: 0, failed: 0 };

/** Runs a program; what it prints appears at once, or together when it has ended. */
async function run(name, command, args, { together = true, env = {} } = {}) {
  if (!together) console.log(`\n== ${name}`);
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', together ? 'pipe' : 'inherit', together ? 'pipe' : 'inherit'],
  });
  const printed = [];
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', (part) => printed.push(part));
  const status = await new Promise((resolve) => {
    child.once('error', (error) => {
      printed.push(Buffer.from(`${error.message}\n`));
      resolve(1);
    });
    child.once('close', (code) => resolve(code ?? 1));
  });
  const output = Buffer.concat(printed).toString();
  if (together) process.stdout.write(`\n== ${name}\n${output}`);
  return { status, output };
}

function count(name, passed, failed, status) {
  // A suite that ends badly without naming a failed test has failed as a whole; so has one that ran nothing.
  const lost = failed === 0 && (status !== 0 || passed === 0) ? 1 : 0;
  totals.passed += passed;
  totals.failed += failed + lost;
  console.log(`${name}: ${passed} passed, ${failed + lost} failed`);
}

/** A check is one test: it passes or not. */
async function check(name, command, args) {
  const { status } = await run(name, command, args);
  count(name, status === 0 ? 1 : 0, status === 0 ? 0 : 1, status);
}

async function mochaSuite() {
  const report = path.join(scratch, 'mocha.json');
  const reporters = ['--reporter', 'test/reporter.cjs', '--reporter-option', `output=${report}`];
  const { status } = await run('mocha', bin('mocha'), reporters, { together: false });
  let stats = { passes: 0, failures: 0 };
  try {
    stats = JSON.parse(readFileSync(report, 'utf8'));
  } catch (error) {
    console.log(`mocha left no report: ${error.message}`);
  }
  count('mocha', stats.passes, stats.failures, status);
}

function nvrtc() {
  const packages = execFileSync(python, ['-c', 'import sysconfig; print(sysconfig.get_paths()["platlib"])'], { encoding: 'utf8' }).trim();
  return path.join(packages, 'nvidia', 'cu13', 'lib', 'libnvrtc.so.13');
}

async function cppTests(name, args, env) {
  const { status, output } = await run(name, path.join(root, 'build', 'Release', 'diad_engine_tests'), args, {
    // glibc overwrites what is freed, so that a use of it shows. The compiler of the kernels for CUDA needs no device.
    env: { LD_LIBRARY_PATH: path.join(root, 'build', 'Release'), MALLOC_PERTURB_: '165', DIAD_NVRTC: nvrtc(), ...env },
  });
  const line = /test cases:\s+\d+ \|\s+(\d+) passed \|\s+(\d+) failed/.exec(output);
  count(name, Number(line?.[1] ?? 0), Number(line?.[2] ?? 0), status);
}

async function cppSuite() {
  await cppTests('C++ tests', [], {});
  // What computes on lesser processors.
  const layers = ['cpu_layers', 'cpu_passes', 'direct_conv', 'transformer_ops', 'winograd_conv'].map((name) => `*${name}_test*`).join(',');
  for (const capability of ['avx2', 'default']) {
    await cppTests(`C++ tests of layers, ${capability}`, [`-sf=${layers}`], { ATEN_CPU_CAPABILITY: capability });
  }
}

async function pythonSuite() {
  const report = path.join(scratch, 'pytest.xml');
  const args = ['-m', 'pytest', '-q', 'python/tests', `--junitxml=${report}`, '-p', 'no:cacheprovider'];
  // One thread: beside other tests OpenMP's would wait for one another.
  const { status } = await run('Python tests', python, args, { env: { OMP_NUM_THREADS: '1' } });
  let attributes = '';
  try {
    attributes = /<testsuite [^>]*>/.exec(readFileSync(report, 'utf8'))?.[0] ?? '';
  } catch (error) {
    console.log(`pytest left no report: ${error.message}`);
  }
  const number = (name) => Number(new RegExp(`${name}="(\\d+)"`).exec(attributes)?.[1] ?? 0);
  const failed = number('failures') + number('errors');
  count('Python tests', number('tests') - failed - number('skipped'), failed, status);
}

/** All but mocha's. Beside it, since it waits a lot: together they end sooner than one after the other. */
async function otherSuites() {
  await check('eslint', bin('eslint'), ['.']);
  await check('prettier', bin('prettier'), ['--check', '--log-level', 'warn', '.']);
  await check('types of the tests', bin('tsc'), ['-p', 'tsconfig.test.json', '--noEmit']);
  await check('types of the page', bin('tsc'), ['-p', 'lib/server/page']);
  await check('ruff check', venv('ruff'), ['check', 'python']);
  await check('ruff format', venv('ruff'), ['format', '--check', '--quiet', 'python']);
  const sources = "find cpp/engine cpp/metrics cpp/addon cpp/fuzz cpp/tests -name '*.cc' -o -name '*.h'";
  await check('clang-format', 'sh', ['-c', `${sources} | xargs ${venv('clang-format')} --dry-run -Werror`]);
  await cppSuite();
  await pythonSuite();
}

try {
  installSystemPackages();
  setUp({ withPython: true });
  for (const { reason } of await Promise.allSettled([mochaSuite(), otherSuites()])) if (reason !== undefined) throw reason;
} catch (error) {
  console.error(error.message);
  totals.failed += 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
console.log(`\n${totals.passed} passed, ${totals.failed} failed`);
process.exitCode = totals.failed > 0 ? 1 : 0;
