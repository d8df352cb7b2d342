// npm run prebuilds: writes prebuilds/<platform>-<arch>/ - the addon and one engine library for each LibTorch minor built here.
//
//   node scripts/prebuild.mjs [--libtorch DIR] [--reuse-build [--to FOLDER]]
//
// prebuildify starts from nothing (node-gyp removes build/), so it works on a copy of what the package ships, which also shows that those
// sources suffice. --reuse-build takes the libraries of build/Release instead, which the same CMakeLists.txt has made, and strips them;
// with --to into another folder than prebuilds/.
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
// Of what the package ships, the part that is compiled: what is missing there fails here.
const { files } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
const SOURCES = [
  'package.json',
  'binding.gyp',
  ...files.filter((file) => /^(CMakeLists\.txt|cpp\/|scripts\/)/.test(file)),
];

function libtorch(option) {
  const named = option ?? process.env.DIAD_LIBTORCH;
  if (named) return path.resolve(named);
  const lib = path.join(root, '.venv', 'lib');
  const found = (existsSync(lib) ? readdirSync(lib) : [])
    .map((name) => path.join(lib, name, 'site-packages', 'torch'))
    .find(existsSync);
  if (found === undefined)
    throw new Error('no LibTorch: pass --libtorch DIR, set DIAD_LIBTORCH, or run `npm run setup`');
  return realpathSync(found);
}

function stage() {
  const folder = path.join(root, 'out', 'prebuild');
  rmSync(folder, { recursive: true, force: true });
  for (const source of SOURCES) {
    const to = path.join(folder, source);
    mkdirSync(path.dirname(to), { recursive: true });
    cpSync(path.join(root, source), to, { recursive: true, preserveTimestamps: true });
  }
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'), 'junction');
  return folder;
}

/** Node's own headers where they lie beside it; otherwise node-gyp downloads them. */
function nodeHeaders() {
  const prefix = path.resolve(path.dirname(process.execPath), '..');
  return existsSync(path.join(prefix, 'include', 'node', 'node_api.h')) ? { npm_config_nodedir: prefix } : {};
}

function prebuildify(named) {
  const cwd = stage();
  const cli = path.join(root, 'node_modules', 'prebuildify', 'bin.js');
  const args = [cli, '--napi', '--strip', '--tag-libc', '--cwd', cwd, '--out', root];
  execFileSync(process.execPath, args, {
    cwd,
    stdio: 'inherit',
    env: { ...process.env, ...nodeHeaders(), DIAD_LIBTORCH: libtorch(named) },
  });
}

function reuseBuild(target) {
  if (process.platform !== 'linux') throw new Error('--reuse-build is for Linux');
  const built = path.join(root, 'build', 'Release');
  const engines = readdirSync(built).filter((name) => /^libdiad_engine-torch[\d.]+\.so$/.test(name));
  if (engines.length === 0) throw new Error('build/Release holds no engine: npm run build');
  for (const name of ['diad.node', ...engines]) {
    const to = path.join(target, name.replace('diad.node', 'diad.glibc.node'));
    cpSync(path.join(built, name), to);
    execFileSync('strip', ['--strip-all', to]);
  }
}

try {
  const { values } = parseArgs({
    options: {
      libtorch: { type: 'string' },
      'reuse-build': { type: 'boolean', default: false },
      to: { type: 'string' },
    },
  });
  if (values.to !== undefined && !values['reuse-build']) throw new Error('--to goes with --reuse-build');
  const target = path.join(values.to ?? path.join(root, 'prebuilds'), `${process.platform}-${process.arch}`);
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  if (values['reuse-build']) reuseBuild(target);
  else prebuildify(values.libtorch);
  process.stdout.write(`${path.relative(process.cwd(), target)}: ${readdirSync(target).sort().join(', ')}\n`);
} catch (error) {
  process.stderr.write(`prebuild: ${error.message}\n`);
  process.exitCode = 1;
}
