// Cases of the installation tests: each installs the tarballs in a clean folder and scores an image.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { image } from './artifacts.mjs';
import { expectScore, installedManifest, npm, project, root, run, scoreWith, work } from './consumer.mjs';

const localBin = (name) => path.join(root, 'node_modules', '.bin', name);
/** npm cache of the tests, filled once from the registry. Later installs are offline. */
const cache = ['--cache', path.join(work, 'npm-cache')];

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Fills the cache with the dependencies of diad. */
export function prime({ env, diad }) {
  const folder = project('prime');
  npm(['install', ...cache, diad.tarball], { cwd: folder, env });
}

/** Installs two tarballs offline, with only node and npm on PATH. */
export function npmOffline({ env, diad, libtorch, golden }) {
  const folder = project('npm');
  npm(['install', '--offline', ...cache, diad.tarball, libtorch], { cwd: folder, env });
  const { scripts = {} } = installedManifest(folder, 'diad');
  for (const name of ['preinstall', 'install', 'postinstall'])
    assert(scripts[name] === undefined, `diad has an ${name} script`);
  assert(
    !existsSync(path.join(folder, 'node_modules', 'diad', 'binding.gyp')),
    'binding.gyp would make pnpm and yarn compile',
  );
  const result = scoreWith(process.execPath, 'score.mjs', { cwd: folder, env, image });
  expectScore(result, golden);
  assert(/^the package @diad\/libtorch-/.test(result.source), `LibTorch came from ${result.source}`);
  return folder;
}

/** Scores with an ES module, require() and worker threads, and from another working directory. */
export function everyWayIn(node, folder, { env, golden }) {
  for (const program of ['score.mjs', 'score.cjs', 'workers.mjs']) {
    expectScore(scoreWith(node, program, { cwd: folder, env, image }), golden);
  }
  const elsewhere = path.join(work, 'elsewhere');
  mkdirSync(elsewhere, { recursive: true });
  expectScore(scoreWith(node, path.join(folder, 'score.mjs'), { cwd: elsewhere, env, image }), golden);
}

/** Without the LibTorch package: the error message names the remedies, and doctor names the cause. */
export function withoutLibTorch({ env, diad }) {
  const folder = project('bare');
  npm(['install', '--offline', ...cache, diad.tarball], { cwd: folder, env });
  const source =
    "import('diad').then(({ Diad }) => Diad.load())" +
    '.catch((error) => { console.log(error.code, error.message); });';
  const { stdout } = run(process.execPath, ['-e', source], { cwd: folder, env });
  assert(stdout.startsWith('ERR_DIAD_LIBTORCH_NOT_FOUND'), stdout);
  for (const expected of ['npx diad libtorch install', 'npm install @diad/libtorch-', 'DIAD_LIBTORCH']) {
    assert(stdout.includes(expected), `the message does not name ${expected}: ${stdout}`);
  }
  let report;
  try {
    run(process.execPath, ['node_modules/diad/dist/cli/main.js', 'doctor', '--json'], { cwd: folder, env });
  } catch (error) {
    report = error.message;
  }
  assert(report?.includes('"cause": "libtorch-not-found"'), `doctor: ${report}`);
}

/** Checks the published types with the module resolutions node16, nodenext and bundler. */
export function types({ diad }, folder) {
  const compile = (...options) =>
    run(
      localBin('tsc'),
      ['--noEmit', '--strict', '--target', 'es2022', '--types', 'node', ...options, 'types.ts'],
      {
        cwd: folder,
        env: process.env,
      },
    );
  writeFileSync(
    path.join(folder, 'package.json'),
    JSON.stringify({ ...JSON.parse(readFileSync(path.join(folder, 'package.json'))), type: 'module' }),
  );
  const typeRoots = ['--typeRoots', path.join(root, 'node_modules', '@types')];
  compile('--module', 'node16', '--moduleResolution', 'node16', ...typeRoots);
  compile('--module', 'nodenext', '--moduleResolution', 'nodenext', ...typeRoots);
  compile('--module', 'esnext', '--moduleResolution', 'bundler', ...typeRoots);
  // esm-only: CommonJS programs load the package with require(), which Node supports since 20.19.
  run(localBin('attw'), [diad.tarball, '--profile', 'esm-only', '--no-emoji'], {
    cwd: folder,
    env: process.env,
  });
  run(localBin('publint'), ['run', diad.tarball, '--strict'], { cwd: folder, env: process.env });
}

/** Bundles a program with diad as an external package and runs it next to node_modules. */
export function bundled({ env, golden }, folder) {
  const options = ['--bundle', '--platform=node', '--format=esm', '--external:diad', '--outfile=bundled.mjs'];
  run(localBin('esbuild'), ['score.mjs', ...options], { cwd: folder, env: process.env });
  expectScore(scoreWith(process.execPath, 'bundled.mjs', { cwd: folder, env, image }), golden);
}

const tool = (name) => {
  const folder = path.join(work, 'tools', 'node_modules', name);
  const { bin } = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8'));
  return path.join(folder, typeof bin === 'string' ? bin : Object.values(bin)[0]);
};

/** Installs the other package managers. */
export function fetchTools({ env }) {
  const folder = path.join(work, 'tools');
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, 'package.json'), '{ "private": true }');
  npm(['install', '--ignore-scripts', ...cache, 'pnpm@10', 'yarn@1', '@yarnpkg/cli-dist@4'], {
    cwd: folder,
    env,
  });
}

const file = (tarball) => `file:${tarball}`;

/** pnpm: packages can access only their declared dependencies. */
export function pnpm({ env, diad, libtorch, golden }) {
  const folder = project('pnpm', {
    dependencies: { diad: file(diad.tarball), [libtorchName()]: file(libtorch) },
  });
  const store = ['--store-dir', path.join(work, 'pnpm-store')];
  run(process.execPath, [tool('pnpm'), 'install', '--reporter', 'append-only', ...store], {
    cwd: folder,
    env,
  });
  assert(readdirSync(path.join(folder, 'node_modules')).includes('.pnpm'), 'this is not the pnpm layout');
  expectScore(scoreWith(process.execPath, 'score.mjs', { cwd: folder, env, image }), golden);
}

/**
 * Yarn 1: flat node_modules; runs node-gyp if there is a binding.gyp. Under Node 20, it rejects dependencies
 * of Fastify that declare Node 22, unless --ignore-engines is given. Other package managers only warn.
 */
export function yarnClassic({ env, diad, libtorch, golden }, node22) {
  const yarnCache = ['--cache-folder', path.join(work, 'yarn-cache')];
  const install = (name, node, ...options) => {
    const folder = project(name, {
      dependencies: { diad: file(diad.tarball), [libtorchName()]: file(libtorch) },
    });
    run(node, [tool('yarn'), 'install', '--non-interactive', '--no-progress', ...yarnCache, ...options], {
      cwd: folder,
      env,
    });
    expectScore(scoreWith(node, 'score.mjs', { cwd: folder, env, image }), golden);
  };
  install('yarn1', node22);
  install('yarn1-engines', process.execPath, '--ignore-engines');
}

/** Yarn 4 with Plug'n'Play: no node_modules. Packages with native files are unplugged. */
export function yarnPnp({ env, diad, libtorch, golden }) {
  const folder = project('yarn4', {
    dependencies: { diad: file(diad.tarball), [libtorchName()]: file(libtorch) },
  });
  const settings = [
    'nodeLinker: pnp',
    'enableTelemetry: false',
    'enableGlobalCache: false',
    'compressionLevel: 0',
    'enableScripts: false',
  ];
  writeFileSync(path.join(folder, '.yarnrc.yml'), `${[...settings, ...registrySettings()].join('\n')}\n`);
  writeFileSync(path.join(folder, 'yarn.lock'), '');
  run(process.execPath, [tool('@yarnpkg/cli-dist'), 'install'], { cwd: folder, env });
  assert(existsSync(path.join(folder, '.pnp.cjs')), "this is not the Plug'n'Play layout");
  const before = ['--require', './.pnp.cjs', '--loader', './.pnp.loader.mjs'];
  expectScore(scoreWith(process.execPath, 'score.mjs', { cwd: folder, env, image, before }), golden);
}

/** Converts registry and certificate settings of npm for Yarn 4, which does not read npm's configuration. */
function registrySettings() {
  const value = (name) => run('npm', ['config', 'get', name], { cwd: root, env: process.env }).stdout.trim();
  const [registry, certificates] = [value('registry'), value('cafile')];
  return [
    `npmRegistryServer: ${registry}`,
    ...(certificates === '' || certificates === 'null' ? [] : [`httpsCaFilePath: ${certificates}`]),
  ];
}

/** Builds from the sources in the package, as needed for LibTorch versions without a prebuilt engine. */
export function sourceBuild({ env, diad, libtorchFolder, golden }) {
  const folder = project('source');
  npm(['install', ...cache, diad.tarball, 'node-addon-api@8', 'node-api-headers@1'], { cwd: folder, env });
  const build = path.join(folder, 'node_modules', 'diad', 'scripts', 'build-native.mjs');
  run(process.execPath, [build, '--libtorch', libtorchFolder], {
    cwd: folder,
    env: process.env,
    timeout: 3_600_000,
  });
  const withLibTorch = { ...env, DIAD_LIBTORCH: libtorchFolder };
  expectScore(scoreWith(process.execPath, 'score.mjs', { cwd: folder, env: withLibTorch, image }), golden);
  assert(
    existsSync(path.join(folder, 'node_modules', 'diad', 'build', 'Release', 'diad.node')),
    'nothing was built',
  );
}

function libtorchName() {
  return `@diad/libtorch-${process.platform}-${process.arch}`;
}
