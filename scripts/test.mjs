// npm test: set-up, then every check and suite; ends with the line "N passed, N failed".
import { execFileSync, spawnSync } from 'node:child_process';
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

function run(name, command, args, { quiet = false, env = {} } = {}) {
  console.log(`\n== ${name}`);
  const options = { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, env: { ...process.env, ...env } };
  const result = spawnSync(command, args, { ...options, stdio: ['ignore', quiet ? 'pipe' : 'inherit', 'inherit'] });
  if (result.error) console.log(result.error.message);
  return result;
}

function count(name, passed, failed, status) {
  // A suite that ends badly without naming a failed test has failed as a whole; so has one that ran nothing.
  const lost = failed === 0 && (status !== 0 || passed === 0) ? 1 : 0;
  totals.passed += passed;
  totals.failed += failed + lost;
  console.log(`${name}: ${passed} passed, ${failed + lost} failed`);
}

/** A check is one test: it passes or not. */
function check(name, command, args) {
  const { status } = run(name, command, args);
  count(name, status === 0 ? 1 : 0, status === 0 ? 0 : 1, status ?? 1);
}

function mochaSuite() {
  const report = path.join(scratch, 'mocha.json');
  const reporters = ['--reporter', 'test/reporter.cjs', '--reporter-option', `output=${report}`];
  const { status } = run('mocha', bin('mocha'), reporters);
  let stats = { passes: 0, failures: 0 };
  try {
    stats = JSON.parse(readFileSync(report, 'utf8'));
  } catch (error) {
    console.log(`mocha left no report: ${error.message}`);
  }
  count('mocha', stats.passes, stats.failures, status ?? 1);
}

function nvrtc() {
  const packages = execFileSync(python, ['-c', 'import sysconfig; print(sysconfig.get_paths()["platlib"])'], { encoding: 'utf8' }).trim();
  return path.join(packages, 'nvidia', 'cu13', 'lib', 'libnvrtc.so.13');
}

function cppTests(name, args, env) {
  const { status, stdout } = run(name, path.join(root, 'build', 'Release', 'diad_engine_tests'), args, {
    quiet: true,
    // glibc overwrites what is freed, so that a use of it shows. The compiler of the kernels for CUDA needs no device.
    env: { LD_LIBRARY_PATH: path.join(root, 'build', 'Release'), MALLOC_PERTURB_: '165', DIAD_NVRTC: nvrtc(), ...env },
  });
  console.log(stdout ?? '');
  const line = /test cases:\s+\d+ \|\s+(\d+) passed \|\s+(\d+) failed/.exec(stdout ?? '');
  count(name, Number(line?.[1] ?? 0), Number(line?.[2] ?? 0), status ?? 1);
}

function cppSuite() {
  cppTests('C++ tests', [], {});
  // What computes on lesser processors.
  const layers = ['cpu_layers', 'cpu_passes', 'direct_conv', 'transformer_ops', 'winograd_conv'].map((name) => `*${name}_test*`).join(',');
  for (const capability of ['avx2', 'default']) {
    cppTests(`C++ tests of layers, ${capability}`, [`-sf=${layers}`], { ATEN_CPU_CAPABILITY: capability });
  }
}

function pythonSuite() {
  const report = path.join(scratch, 'pytest.xml');
  const { status } = run('Python tests', python, ['-m', 'pytest', '-q', 'python/tests', `--junitxml=${report}`, '-p', 'no:cacheprovider']);
  let attributes = '';
  try {
    attributes = /<testsuite [^>]*>/.exec(readFileSync(report, 'utf8'))?.[0] ?? '';
  } catch (error) {
    console.log(`pytest left no report: ${error.message}`);
  }
  const number = (name) => Number(new RegExp(`${name}="(\\d+)"`).exec(attributes)?.[1] ?? 0);
  const failed = number('failures') + number('errors');
  count('Python tests', number('tests') - failed - number('skipped'), failed, status ?? 1);
}

try {
  installSystemPackages();
  setUp({ withPython: true });
  check('eslint', bin('eslint'), ['.']);
  check('prettier', bin('prettier'), ['--check', '--log-level', 'warn', '.']);
  check('types of the tests', bin('tsc'), ['-p', 'tsconfig.test.json', '--noEmit']);
  check('types of the page', bin('tsc'), ['-p', 'lib/server/page']);
  check('ruff check', venv('ruff'), ['check', 'python']);
  check('ruff format', venv('ruff'), ['format', '--check', '--quiet', 'python']);
  check('clang-format', 'sh', [
    '-c',
    `find cpp/engine cpp/metrics cpp/addon cpp/fuzz cpp/tests -name '*.cc' -o -name '*.h' | xargs ${venv('clang-format')} --dry-run -Werror`,
  ]);
  cppSuite();
  mochaSuite();
  pythonSuite();
} catch (error) {
  console.error(error.message);
  totals.failed += 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
console.log(`\n${totals.passed} passed, ${totals.failed} failed`);
process.exitCode = totals.failed > 0 ? 1 : 0;
