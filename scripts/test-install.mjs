// npm run test:install: installation tests. Packs the tarballs, installs them in clean folders and scores
// images.
//
//   node scripts/test-install.mjs [--short] [--reuse-build] [--only NAME,...]
//   node scripts/test-install.mjs --reuse-build --only 'built from the sources in the package'
//
// --short is the form that `npm run test:all` runs: current Node, npm, binaries from build/Release. The full
// matrix builds the binaries with prebuildify and needs the package registry (Node binaries, package
// managers).
// --reuse-build skips prebuildify. Prints a line per case; the last line is "N passed, N failed".
import { existsSync, mkdirSync, readdirSync, realpathSync, rmSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { builtMinor, goldenScore, nodes, packDiad, packLibTorch } from './install/artifacts.mjs';
import * as cases from './install/cases.mjs';
import { cleanEnvironment, root, work } from './install/consumer.mjs';

const NODES = ['20', '22', '24', 'latest'];
const SHIPPED =
  /^(dist\/|models\/base\/|prebuilds\/|cpp\/(addon|engine|metrics|third_party\/nlohmann)\/|docs\/|python\/(diad_reference\/.*\.py$|pyproject\.toml$)|scripts\/build-native\.mjs$|[^/]+$)/;
const NEEDED = [
  ...[
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'CMakeLists.txt',
    'scripts/build-native.mjs',
    'models/base/manifest.json',
  ],
  ...[
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'dist/page/index.html',
    'dist/page/app.js',
    'dist/page/app.css',
  ],
  ...['python/pyproject.toml', 'python/diad_reference/__main__.py', 'docs/guide/service.md'],
];

const { values } = parseArgs({
  options: {
    short: { type: 'boolean', default: false },
    'reuse-build': { type: 'boolean', default: false },
    only: { type: 'string' },
  },
});
const only = values.only?.split(',');
let [passed, failed] = [0, 0];

const wanted = (name) => only === undefined || only.includes(name);

/** Runs a case. A failure is printed, and the other cases still run. */
function run(name, work) {
  if (!wanted(name)) return undefined;
  const started = performance.now();
  try {
    const result = work();
    passed++;
    console.log(`ok      ${name} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
    return result;
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}\n${error.message.replace(/^/gm, '        ')}`);
    return undefined;
  }
}

function checkContents({ files, size, unpackedSize }) {
  const stray = files.filter((file) => !SHIPPED.test(file) || /\.map$|test/i.test(path.basename(file)));
  if (stray.length > 0) throw new Error(`unexpected files in the package: ${stray.join(', ')}`);
  for (const needed of NEEDED) {
    if (!files.includes(needed)) throw new Error(`${needed} is missing from the package`);
  }
  const orphans = files.filter(
    (file) =>
      /^dist\/(?!page\/).*\.js$/.test(file) &&
      !existsSync(path.join(root, file.replace(/^dist\/(.*)\.js$/, 'lib/$1.ts'))),
  );
  if (orphans.length > 0)
    throw new Error(
      `dist/ has files without a source in lib/: ${orphans.join(', ')}; remove dist/ and build again`,
    );
  console.log(
    `        ${files.length} files, ${(size / 1e6).toFixed(1)} MB packed, ` +
      `${(unpackedSize / 1e6).toFixed(1)} MB unpacked`,
  );
}

function torchFolder() {
  const lib = path.join(root, '.venv', 'lib');
  const found = readdirSync(lib).map((name) => path.join(lib, name, 'site-packages', 'torch'));
  return realpathSync(found.find(existsSync));
}

function main() {
  if (only === undefined) rmSync(path.join(work, 'projects'), { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  const diad = packDiad({ reuseBuild: values.short || values['reuse-build'] });
  run('contents of the package', () => checkContents(diad));
  let libtorch;
  const context = {
    env: cleanEnvironment(),
    diad,
    golden: goldenScore(),
    libtorchFolder: torchFolder(),
    // Packed on first use, because packing takes minutes.
    get libtorch() {
      return (libtorch ??= packLibTorch({ quick: values.short }));
    },
  };
  console.log(
    `        score of the development tree: ${context.golden}; engine for LibTorch ${builtMinor()}`,
  );
  cases.prime(context);
  const folder =
    run('npm offline from two tarballs', () => cases.npmOffline(context)) ??
    path.join(work, 'projects', 'npm');
  run('error message without LibTorch', () => cases.withoutLibTorch(context));
  if (values.short) {
    run('import and require and workers', () => cases.everyWayIn(process.execPath, folder, context));
    return;
  }
  const binaries = nodes(
    NODES.filter((version) => wanted(`Node ${version}`) || (version === '22' && wanted('yarn 1'))),
  );
  for (const [version, node] of binaries)
    run(`Node ${version}`, () => cases.everyWayIn(node, folder, context));
  run('types', () => cases.types(context, folder));
  run('bundled by esbuild', () => cases.bundled(context, folder));
  if (['pnpm', 'yarn 1', 'yarn 4 PnP'].some(wanted)) cases.fetchTools(context);
  run('pnpm', () => cases.pnpm(context));
  run('yarn 1', () => cases.yarnClassic(context, binaries.get('22')));
  run('yarn 4 PnP', () => cases.yarnPnp(context));
  run('built from the sources in the package', () => cases.sourceBuild(context));
}

try {
  main();
} catch (error) {
  failed++;
  console.log(`FAILED  ${error.message}`);
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
