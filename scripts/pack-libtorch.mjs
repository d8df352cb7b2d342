// Packs @diad/libtorch-<platform>-<arch>: the CPU libraries of LibTorch as an npm package of minimal size.
//
//   node scripts/pack-libtorch.mjs [--from FOLDER] [--out out/libtorch] [--no-tarball | --quick]
//
// --from: a LibTorch folder from `diad libtorch install` (torch/lib, torch/version.py, licenses). Default:
// installs one to out/ first.
// --quick: less compression, for tests, because compression takes most of the time.
// The package contains the direct and indirect dependencies of libtorch.so in its folder, without symbol
// tables. Linking against the libraries still works. Linux only.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const platform = `${process.platform}-${process.arch}`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

async function fetchLibTorch() {
  const { installLibTorch } = await import('../dist/native/libtorch/install.js');
  const { diad } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
  const version = diad.libtorch.at(-1);
  const onMessage = (text) => process.stderr.write(text);
  const { installed } = await installLibTorch({
    version,
    variant: 'cpu',
    cache: path.join(root, 'out', 'libtorch-cache'),
    onMessage,
  });
  return installed.folder;
}

/** Lists `first` and its direct and indirect dependencies in `folder`. */
function closure(folder, first) {
  const found = new Set([first]);
  for (const name of found) {
    const dynamic = execFileSync('readelf', ['--dynamic', '-W', path.join(folder, name)], {
      encoding: 'utf8',
    });
    for (const [, needed] of dynamic.matchAll(/\(NEEDED\).*\[(.+)\]/g))
      if (existsSync(path.join(folder, needed))) found.add(needed);
  }
  return [...found];
}

/** Checks that all dependencies of the libraries are found. */
function checkResolved(folder, names) {
  for (const name of names) {
    const missing = execFileSync('ldd', [path.join(folder, name)], { encoding: 'utf8' }).match(
      /^.*not found.*$/gm,
    );
    if (missing !== null) throw new Error(`${name}: ${missing.map((line) => line.trim()).join('; ')}`);
  }
}

function describe(version, names) {
  const [number] = version.split('+');
  return {
    name: `@diad/libtorch-${platform}`,
    version: number,
    description: `The CPU libraries of LibTorch ${version} for diad`,
    license: 'SEE LICENSE IN licenses/torch/LICENSE',
    os: [process.platform],
    cpu: [process.arch],
    libc: ['glibc'],
    preferUnplugged: true,
    files: ['lib', 'licenses', 'build-version'],
    exports: { './package.json': './package.json' },
    diad: { libraries: names },
  };
}

const README = (version) => `# LibTorch ${version} for diad

The CPU libraries of the PyTorch ${version} wheel, without symbol tables and Python-only parts. Install it next
to \`diad\`, which finds it automatically. The licenses of PyTorch and its components are in \`licenses/\`.
`;

/** Packs the folder with npm. */
function pack(folder) {
  const out = path.dirname(folder);
  const [{ filename }] = JSON.parse(
    execFileSync('npm', ['pack', '--json', '--pack-destination', out], { cwd: folder, encoding: 'utf8' }),
  );
  return path.join(out, path.basename(filename));
}

function packQuickly(folder, version) {
  const out = path.dirname(folder);
  const tarball = path.join(out, `diad-libtorch-${platform}-${version.split('+')[0]}.tgz`);
  execFileSync('tar', [
    '--create',
    '--use-compress-program',
    'gzip -1',
    '--file',
    tarball,
    '--directory',
    out,
    path.basename(folder),
  ]);
  return tarball;
}

async function main() {
  const { values } = parseArgs({
    options: {
      from: { type: 'string' },
      out: { type: 'string', default: path.join(root, 'out', 'libtorch') },
      'no-tarball': { type: 'boolean' },
      quick: { type: 'boolean', default: false },
    },
  });
  if (process.platform !== 'linux') throw new Error('only Linux is supported');
  const from = path.resolve(values.from ?? (await fetchLibTorch()));
  const version = /__version__ = '([^']+)'/.exec(
    readFileSync(path.join(from, 'torch', 'version.py'), 'utf8'),
  )?.[1];
  if (version === undefined || existsSync(path.join(from, 'torch', 'lib', 'libtorch_cuda.so')))
    throw new Error(`${from} is not a CPU build of LibTorch`);
  const folder = path.join(path.resolve(values.out), 'package');
  rmSync(folder, { recursive: true, force: true });
  const lib = path.join(folder, 'lib');
  mkdirSync(lib, { recursive: true });
  const names = closure(path.join(from, 'torch', 'lib'), 'libtorch.so');
  for (const name of names) {
    const to = path.join(lib, name);
    cpSync(path.join(from, 'torch', 'lib', name), to);
    const before = statSync(to).size;
    execFileSync('strip', ['--strip-unneeded', to]);
    console.log(`${name.padEnd(20)} ${megabytes(before).padStart(9)} -> ${megabytes(statSync(to).size)}`);
  }
  checkResolved(lib, names);
  cpSync(path.join(from, 'licenses'), path.join(folder, 'licenses'), { recursive: true });
  writeFileSync(path.join(folder, 'build-version'), `${version}\n`);
  writeFileSync(path.join(folder, 'README.md'), README(version));
  writeFileSync(path.join(folder, 'package.json'), `${JSON.stringify(describe(version, names), null, 2)}\n`);
  const unpacked = names.reduce((sum, name) => sum + statSync(path.join(lib, name)).size, 0);
  if (values['no-tarball']) {
    console.log(`${folder}: ${megabytes(unpacked)} of libraries`);
    return;
  }
  const tarball = values.quick ? packQuickly(folder, version) : pack(folder);
  console.log(
    `${tarball}: ${megabytes(statSync(tarball).size)}, ${megabytes(unpacked)} of libraries unpacked`,
  );
}

try {
  await main();
} catch (error) {
  process.stderr.write(`pack-libtorch: ${error.message}\n`);
  process.exitCode = 1;
}
