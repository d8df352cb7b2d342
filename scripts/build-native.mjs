// Builds the addon, the engine, its executable and the C++ tests with CMake, incrementally.
//
//   node scripts/build-native.mjs [--libtorch DIR] [--addon-only] [--libraries-only] [--sanitize address|thread] [--fuzz]
//
// The CMake tree is build/cmake, the results are in build/Release; with --sanitize both are in build/sanitize-NAME. --fuzz builds the fuzzers
// alone, with Clang, in build/fuzz.
// LibTorch: --libtorch, else DIAD_LIBTORCH, else the torch package of the project's .venv, else that of python3.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');

function fail(message) {
  process.stderr.write(`build-native: ${message}\n`);
  process.exit(1);
}

function isLibTorch(folder) {
  return existsSync(path.join(folder, 'share', 'cmake', 'Torch', 'TorchConfig.cmake'));
}

function torchOfVenv() {
  if (process.platform === 'win32') return [path.join(root, '.venv', 'Lib', 'site-packages', 'torch')];
  const lib = path.join(root, '.venv', 'lib');
  if (!existsSync(lib)) return [];
  return readdirSync(lib).map((python) => path.join(lib, python, 'site-packages', 'torch'));
}

function torchOfPython() {
  const find =
    'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")';
  const found = spawnSync(process.platform === 'win32' ? 'python' : 'python3', ['-c', find], {
    encoding: 'utf8',
  });
  return found.status === 0 && found.stdout.trim() ? [found.stdout.trim()] : [];
}

function findLibTorch(option) {
  const named = option ?? process.env.DIAD_LIBTORCH;
  if (named) return isLibTorch(named) ? named : fail(`${named} holds no share/cmake/Torch/TorchConfig.cmake`);
  const found = [...torchOfVenv(), ...torchOfPython()].find(isLibTorch);
  const setUp = existsSync(path.join(root, 'scripts', 'setup.mjs'))
    ? ', or run `npm run setup`, which installs torch into .venv'
    : '';
  return (
    found ??
    fail(
      `no LibTorch found: pass --libtorch DIR or set DIAD_LIBTORCH to a folder like site-packages/torch${setUp}`,
    )
  );
}

function findNodeHeaders(require) {
  const candidates = [
    process.env.npm_config_nodedir,
    path.resolve(path.dirname(process.execPath), '..'),
  ].filter(Boolean);
  const found = candidates
    .map((folder) => path.join(folder, 'include', 'node'))
    .find((folder) => existsSync(path.join(folder, 'node_api.h')));
  // Otherwise the headers of Node-API alone, as a package: enough for an addon that uses nothing else.
  return found ?? path.join(folderOf(require, 'node-api-headers'), 'include');
}

/** A package that only building needs; diad's own repository has it, an installed diad does not. */
function folderOf(require, name) {
  try {
    return path.dirname(require.resolve(`${name}/package.json`));
  } catch {
    return fail(`the package ${name} is missing: npm install --no-save node-addon-api node-api-headers`);
  }
}

/** A Clang that knows this C++ library; older ones stumble over its ranges. */
function findClang() {
  const names = ['clang++-21', 'clang++-20', 'clang++-19', 'clang++-18', 'clang++-17', 'clang++-16'];
  const found = names.find((name) => spawnSync(name, ['--version']).status === 0);
  return (
    found ??
    fail(
      'fuzzing needs Clang 16 or newer with its runtime (Debian: apt-get install clang-19 libclang-rt-19-dev)',
    )
  );
}

const FUZZERS = ['manifest', 'frame', 'pickle', 'bundle', 'archive'].map((name) => `${name}_fuzz`);

const { values } = parseArgs({
  options: {
    libtorch: { type: 'string' },
    'addon-only': { type: 'boolean', default: false },
    'libraries-only': { type: 'boolean', default: false },
    sanitize: { type: 'string' },
    fuzz: { type: 'boolean', default: false },
  },
});
const require = createRequire(import.meta.url);
const kind = values.fuzz ? ['fuzz'] : values.sanitize === undefined ? [] : [`sanitize-${values.sanitize}`];
const home = path.join(root, 'build', ...kind);
const tree = path.join(home, 'cmake');
const ninja = spawnSync('ninja', ['--version']).status === 0;
const configure = [
  ...['-S', root, '-B', tree, '-DCMAKE_BUILD_TYPE=Release', `-DDIAD_OUTPUT=${path.join(home, 'Release')}`],
  `-DDIAD_SANITIZE=${values.sanitize ?? ''}`,
  ...(ninja ? ['-G', 'Ninja'] : []),
  `-DNODE_INCLUDE_DIR=${findNodeHeaders(require)}`,
  `-DDIAD_NODE_ADDON_API=${folderOf(require, 'node-addon-api')}`,
  ...(process.platform === 'win32'
    ? [`-DDIAD_NODE_API_DEF=${path.join(folderOf(require, 'node-api-headers'), 'def', 'node_api.def')}`]
    : []),
  ...(values.fuzz
    ? [`-DCMAKE_CXX_COMPILER=${findClang()}`, '-DDIAD_BUILD_FUZZERS=ON', '-DDIAD_BUILD_ADDON=OFF']
    : ['-DDIAD_BUILD_ADDON=ON']),
  `-DDIAD_BUILD_TOOLS=${values.fuzz || values['libraries-only'] || !existsSync(path.join(root, 'cpp', 'tests')) ? 'OFF' : 'ON'}`,
  `-DDIAD_BUILD_ENGINE=${values['addon-only'] ? 'OFF' : 'ON'}`,
  ...(values['addon-only'] ? [] : [`-DDIAD_LIBTORCH=${path.resolve(findLibTorch(values.libtorch))}`]),
];
try {
  execFileSync('cmake', configure, { stdio: ['ignore', 'ignore', 'inherit'] });
  const targets = values.fuzz ? ['--target', ...FUZZERS] : [];
  const build = [
    '--build',
    tree,
    '--config',
    'Release',
    '--parallel',
    String(os.availableParallelism()),
    ...targets,
  ];
  execFileSync('cmake', build, { stdio: 'inherit' });
} catch (error) {
  fail(error.code === 'ENOENT' ? 'cmake is not installed' : 'the build failed, see above');
}
