// Sets up a fresh clone: node packages, .venv with PyTorch (which contains LibTorch), TypeScript, native
// build. Each step runs once, and again if its inputs change.
//
//   node scripts/setup.mjs [--python]
//
// --python: also installs the Python reference and its test dependencies
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
export const python = path.join(root, '.venv', 'bin', 'python');
const TORCH = 'torch==2.13.0';
/** CUDA headers for the engine's calls to LibTorch on CUDA. Nothing is linked. */
const CUDA_HEADERS = ['nvidia-cuda-runtime==13.0.96', 'nvidia-cuda-crt==13.0.88'];

function filesBelow(entry) {
  const full = path.join(root, entry);
  if (!existsSync(full)) return [];
  const below = readdirSync(full, { withFileTypes: true, recursive: true }).filter((found) => found.isFile());
  return below.map((found) => path.join(found.parentPath ?? found.path, found.name));
}

/** Computes a digest of files and folders, so that a step runs again when its inputs change. */
function digest(entries) {
  const hash = createHash('sha256').update(process.version);
  const files = entries.flatMap((entry) =>
    path.extname(entry) === '' ? filesBelow(entry) : [path.join(root, entry)],
  );
  for (const file of files.sort()) hash.update(file).update(readFileSync(file));
  return hash.digest('hex');
}

/** The steps that ran, with their times. */
const done = [];

function step(name, inputs, outputs, work) {
  const stamp = path.join(root, 'build', 'stamps', name);
  const current = digest(inputs);
  const isDone =
    existsSync(stamp) &&
    readFileSync(stamp, 'utf8') === current &&
    outputs.every((file) => existsSync(path.join(root, file)));
  if (isDone) return;
  const started = Date.now();
  process.stderr.write(`[set-up] ${name} ...\n`);
  work();
  mkdirSync(path.dirname(stamp), { recursive: true });
  writeFileSync(stamp, current);
  const seconds = (Date.now() - started) / 1000;
  process.stderr.write(`[set-up] ${name}: ${seconds.toFixed(0)} s\n`);
  done.push({ name, seconds });
}

function run(command, args) {
  try {
    execFileSync(command, args, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
  } catch (error) {
    const missing = error.code === 'ENOENT' ? ` (${command} is not installed)` : '';
    throw new Error(`${[command, ...args].join(' ')} failed${missing}`, { cause: error });
  }
}

function systemPython() {
  for (const name of ['python3.11', 'python3', 'python3.12', 'python3.13']) {
    const version = spawnSync(name, ['-c', 'import sys; print("%d.%d" % sys.version_info[:2])'], {
      encoding: 'utf8',
    });
    if (version.status === 0 && Number(version.stdout.trim().split('.')[1]) >= 11) return name;
  }
  throw new Error('Python 3.11 or newer is required: setup installs PyTorch, which contains LibTorch');
}

/** Runs all outdated steps. Returns the executed steps with their times. */
export function setUp({ withPython = false } = {}) {
  step('node packages', ['package.json', 'package-lock.json'], ['node_modules/sharp/package.json'], () =>
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel', 'error']),
  );
  step('PyTorch and headers of CUDA', [], ['.venv/bin/python'], () => {
    run(systemPython(), ['-m', 'venv', '.venv']);
    run(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', TORCH]);
    if (process.platform === 'linux')
      run(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', ...CUDA_HEADERS]);
  });
  if (withPython) {
    step('Python reference', ['python/pyproject.toml'], [], () =>
      run(python, [
        '-m',
        'pip',
        'install',
        '--quiet',
        '--disable-pip-version-check',
        '--editable',
        './python[test]',
        TORCH,
      ]),
    );
    // A miniature of the published design with random weights: ten steps, no evidence.
    step('test bundle', ['python/diad_reference'], ['build/fixtures/published/manifest.json'], () =>
      run(python, [
        '-m',
        'diad_reference',
        'export',
        '--random',
        '--config',
        'tiny',
        '--seed',
        '1',
        '--out',
        'build/fixtures/published',
      ]),
    );
  }
  step(
    'TypeScript',
    ['lib', 'tsconfig.json', 'package-lock.json'],
    ['dist/index.js', 'dist/cli/main.js'],
    () => run(path.join('node_modules', '.bin', 'tsc'), ['-p', 'tsconfig.json']),
  );
  step(
    'page',
    ['lib/server/page', 'lib/scoring/heat-color.ts', 'scripts/build-page.mjs', 'package-lock.json'],
    ['dist/page/app.js'],
    () => run(process.execPath, ['scripts/build-page.mjs']),
  );
  const native = ['cpp', 'CMakeLists.txt', 'scripts/build-native.mjs', 'package-lock.json'];
  step('native build', native, ['build/Release/diad.node', 'build/Release/diad_engine_tests'], () =>
    run(process.execPath, ['scripts/build-native.mjs']),
  );
  return done;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    setUp({ withPython: process.argv.includes('--python') });
  } catch (error) {
    process.stderr.write(`[set-up] ${error.message}\n`);
    process.exitCode = 1;
  }
}
