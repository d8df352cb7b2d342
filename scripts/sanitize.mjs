// npm run sanitize -- address|undefined|thread: engine, addon and C++ tests built with a sanitizer, then the C++ tests and part of the
// mocha tests under stock Node with the sanitizer's library preloaded.
//
//   node scripts/sanitize.mjs NAME [--only-cpp] [--tests test/07-lifecycle.test.ts ...]
//
// Everything is in build/sanitize-NAME: the CMake tree, the binaries, and a copy of the package that uses them. Needs what `npm test` sets up.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { root } from './setup.mjs';

const RUNTIMES = { address: 'libasan.so', undefined: 'libubsan.so', thread: 'libtsan.so' };
const TESTS = ['01-arguments', '06-bundle', '07-lifecycle'].map((name) => `test/${name}.test.ts`);

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { 'only-cpp': { type: 'boolean', default: false }, tests: { type: 'string', multiple: true, default: TESTS } },
});
const [name] = positionals;
if (!(name in RUNTIMES)) {
  process.stderr.write(`sanitize: Expected one of ${Object.keys(RUNTIMES).join(', ')} but received ${name}\n`);
  process.exit(2);
}
const home = path.join(root, 'build', `sanitize-${name}`);
const suppressions = path.join(root, 'cpp', 'sanitizers', `${name}.supp`);
const common = `suppressions=${suppressions}:print_stacktrace=1`;
const env = {
  ...process.env,
  LD_LIBRARY_PATH: path.join(home, 'Release'),
  // V8 and LibTorch keep much until the process ends; leaks are measured by `npm run abuse -- --only cycles` instead.
  ASAN_OPTIONS: `detect_leaks=0:${name === 'address' ? common : ''}`,
  UBSAN_OPTIONS: name === 'undefined' ? `halt_on_error=1:${common}` : '',
  TSAN_OPTIONS: name === 'thread' ? `halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1:suppressions=${suppressions}` : '',
  // GNU's OpenMP synchronises in ways ThreadSanitizer cannot see.
  ...(name === 'thread' ? { OMP_NUM_THREADS: '1' } : {}),
};

function run(title, command, args, options) {
  process.stdout.write(`== ${title}\n`);
  const { status, signal } = spawnSync(command, args, { stdio: 'inherit', ...options });
  if (status !== 0) {
    process.stderr.write(`sanitize: ${title}: ended with ${signal ?? status}\n`);
    process.exitCode = 1;
  }
}

/** The package as tests see it, around the sanitized binaries. */
function packageCopy() {
  const copy = path.join(home, 'package');
  rmSync(copy, { recursive: true, force: true });
  mkdirSync(path.join(copy, 'build'), { recursive: true });
  for (const entry of ['lib', 'dist', 'test', 'examples', 'package.json', 'tsconfig.json']) {
    cpSync(path.join(root, entry), path.join(copy, entry), { recursive: true });
  }
  for (const entry of ['node_modules', '.venv', 'models']) symlinkSync(path.join(root, entry), path.join(copy, entry));
  symlinkSync(path.join(home, 'Release'), path.join(copy, 'build', 'Release'));
  return copy;
}

run(`build with ${name}`, process.execPath, [path.join(root, 'scripts', 'build-native.mjs'), '--sanitize', name]);
if (process.exitCode !== undefined) process.exit();
run('C++ tests', path.join(home, 'Release', 'diad_engine_tests'), [], { env });
if (!values['only-cpp']) {
  const preload = execFileSync('gcc', [`-print-file-name=${RUNTIMES[name]}`], { encoding: 'utf8' }).trim();
  if (!existsSync(preload)) throw new Error(`gcc has no ${RUNTIMES[name]}: install its sanitizer libraries`);
  const mocha = path.join(root, 'node_modules', 'mocha', 'bin', 'mocha.js');
  const args = ['--import', 'tsx', mocha, '--no-config', '--timeout', '1200000', ...values.tests];
  run('mocha', process.execPath, args, { cwd: packageCopy(), env: { ...env, LD_PRELOAD: preload } });
}
if (process.exitCode === undefined) process.stdout.write(`${name}: clean\n`);
