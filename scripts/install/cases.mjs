// The cases of the installation matrix: each installs the tarballs in a clean directory and scores an image there.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { image } from './artifacts.mjs';
import { expectScore, installedManifest, npm, project, root, run, scoreWith, work } from './consumer.mjs';

const localBin = (name) => path.join(root, 'node_modules', '.bin', name);
/** npm's cache of the tests: filled once from the registries, after that installing is offline. */
const cache = ['--cache', path.join(work, 'npm-cache')];

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Fills the cache with what diad depends on. */
export function prime({ env, diad }) {
  const folder = project('prime');
  npm(['install', ...cache, diad.tarball], { cwd: folder, env });
}

/** Two tarballs, offline, PATH holding only node and npm. */
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

/** ES module, require(), worker threads, from another current folder too: one Node on an installed folder. */
export function everyWayIn(node, folder, { env, golden }) {
  for (const program of ['score.mjs', 'score.cjs', 'workers.mjs']) {
    expectScore(scoreWith(node, program, { cwd: folder, env, image }), golden);
  }
  const elsewhere = path.join(work, 'elsewhere');
  mkdirSync(elsewhere, { recursive: true });
  expectScore(scoreWith(node, path.join(folder, 'score.mjs'), { cwd: elsewhere, env, image }), golden);
}

/** Without the LibTorch package: the error says so, and doctor names the cause and the command. */
export function withoutLibTorch({ env, diad }) {
  const folder = project('bare');
  npm(['install', '--offline', ...cache, diad.tarball], { cwd: folder, env });
  const source =
    "import('diad').then(({ Diad }) => Diad.load()).catch((error) => { console.log(error.code, error.message); });";
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

/** Types under node16 and bundler, checked as they are shipped. */
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
  // attw: an ES module only package; CommonJS gets it by require(), which Node 20.19 and newer do.
  run(localBin('attw'), [diad.tarball, '--profile', 'esm-only', '--no-emoji'], {
    cwd: folder,
    env: process.env,
  });
  run(localBin('publint'), ['run', diad.tarball, '--strict'], { cwd: folder, env: process.env });
}

/** Bundled with diad external: the bundle runs beside node_modules. */
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

/** Fetches the other package managers. */
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

/** pnpm: a package sees only what it declares. */
export function pnpm({ env, diad, libtorch, golden }) {
  const folder = project('pnpm', {
    dependencies: { diad: file(diad.tarball), [libtorchName()]: file(libtorch) },
  });
  const store = ['--store-dir', path.join(work, 'pnpm-store')];
  run(process.execPath, [tool('pnpm'), 'install', '--reporter', 'append-only', ...store], {
    cwd: folder,
    env,
  });
  assert(readdirSync(path.join(folder, 'node_modules')).includes('.pnpm'), 'this is not the layout of pnpm');
  expectScore(scoreWith(process.execPath, 'score.mjs', { cwd: folder, env, image }), golden);
}

/**
 * Yarn 1: flat node_modules, and node-gyp wherever it sees a binding.gyp. It refuses what other package managers warn of: dependencies of
 * Fastify's that declare Node 22, under Node 20, unless it is told to ignore that.
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

/** Yarn 4 with Plug'n'Play: no node_modules; packages with native files are unplugged. */
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
  assert(existsSync(path.join(folder, '.pnp.cjs')), 'this is not the layout of Plug and Play');
  const before = ['--require', './.pnp.cjs', '--loader', './.pnp.loader.mjs'];
  expectScore(scoreWith(process.execPath, 'score.mjs', { cwd: folder, env, image, before }), golden);
}

/** Yarn 4 does not read npm's configuration: the registry and the certificates go over to it. */
function registrySettings() {
  const value = (name) => run('npm', ['config', 'get', name], { cwd: root, env: process.env }).stdout.trim();
  const [registry, certificates] = [value('registry'), value('cafile')];
  return [
    `npmRegistryServer: ${registry}`,
    ...(certificates === '' || certificates === 'null' ? [] : [`httpsCaFilePath: ${certificates}`]),
  ];
}

/** From the sources in the package, as for a LibTorch minor without an engine. */
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
