// The gate before a release: every expected prebuilt binary is there, small, stripped, free of the build machine, and needs no newer system
// than the package says.
//
//   node scripts/check-prebuilds.mjs [--folder prebuilds | --tarball FILE.tgz] [--libtorch 2.13,...] [--floor GLIBC=2.28 ...] [--json]
//
// What is expected stands in package.json under "diad": platforms, LibTorch versions, and the newest symbol versions that may be needed
// (floors). --libtorch narrows the LibTorch minors to those that could be built here. Linux binaries are read with readelf; of other platforms'
// only presence and size are checked.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const LARGEST_PLATFORM = 5_000_000; // bytes of one platform's folder
const NODE_API = 'v9';
const SYSTEM = /^(libc|libm|libdl|libpthread|librt)\.so\.\d+$|^ld-linux[\w-]*\.so\.\d+$/;
const LIBTORCH = /^(libtorch|libtorch_cpu|libc10|libtorch_cuda|libc10_cuda)\.so$/;
const UNWINDER = /^libgcc_s\.so\.\d+$/;
const CXX = /^libstdc\+\+\.so\.\d+$/;
const BUILD_MACHINE = /(?<![\w.$-])\/(?:home|root|Users|github|__w|tmp|var\/tmp|opt|work|build)\/[\w./+-]+/g;

const RECORDS_ON_CUDA = / WEAK .* UND _ZN2at4cuda9CUDAGraph13capture_begin/; // found in a LibTorch for CUDA, absent otherwise

const minorOf = (version) => version.split('.').slice(0, 2).join('.');
const readelf = (options, file) =>
  execFileSync('readelf', [...options, '-W', file], { encoding: 'utf8', maxBuffer: 1 << 28 });

function expectedFiles(platform, minors) {
  const engines = {
    linux: (minor) => `libdiad_engine-torch${minor}.so`,
    darwin: (minor) => `libdiad_engine-torch${minor}.dylib`,
    win32: (minor) => `diad_engine-torch${minor}.dll`,
  };
  const system = platform.split('-')[0];
  return {
    addon: system === 'linux' ? 'diad.glibc.node' : 'diad.node',
    engines: minors.map(engines[system]),
  };
}

function newer(a, b) {
  const [left, right] = [a, b].map((version) => version.split('.').map(Number));
  const at = [0, 1, 2].find((i) => (left[i] ?? 0) !== (right[i] ?? 0));
  return at !== undefined && (left[at] ?? 0) > (right[at] ?? 0);
}

/** Newest version of each symbol namespace that a binary needs, for example { GLIBC: '2.34' }. */
function neededVersions(file) {
  const newest = {};
  for (const [, namespace, version] of readelf(['--dyn-syms'], file).matchAll(
    / UND \S+@(GLIBC|GLIBCXX|CXXABI)_([\d.]+)/g,
  )) {
    if (newest[namespace] === undefined || newer(version, newest[namespace])) newest[namespace] = version;
  }
  return newest;
}

function nodeApiSymbols() {
  const { symbols } = createRequire(import.meta.url)('node-api-headers');
  const { js_native_api_symbols: js, node_api_symbols: node } = symbols[NODE_API];
  return new Set([...js, ...node]);
}

function checkElf(file, { allowed, floors, isAddon }, report) {
  const dynamic = readelf(['--dynamic'], file);
  const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, name]) => name);
  const paths = [...dynamic.matchAll(/\((?:RPATH|RUNPATH)\).*\[(.+)\]/g)].map(([, value]) => value);
  if (paths.length > 0) report(`has a run path: ${paths.join(', ')}`);
  const foreign = needed.filter((name) => !allowed.some((pattern) => pattern.test(name)));
  if (foreign.length > 0) report(`needs ${foreign.join(', ')}, which a user may not have`);
  if (/\.symtab|\.debug_/.test(readelf(['--sections'], file))) report('is not stripped');
  const machine = [...new Set(readFileSync(file, 'latin1').match(BUILD_MACHINE) ?? [])];
  if (machine.length > 0) report(`names folders of the build machine: ${machine.slice(0, 3).join(', ')}`);
  const versions = neededVersions(file);
  for (const [namespace, version] of Object.entries(versions)) {
    if (newer(version, floors[namespace]))
      report(`needs ${namespace}_${version}; the package promises ${namespace}_${floors[namespace]}`);
  }
  if (isAddon) {
    const known = nodeApiSymbols();
    const used = [...readelf(['--dyn-syms'], file).matchAll(/ UND ((?:napi|node_api)_\w+)/g)].map(
      ([, name]) => name,
    );
    const unknown = used.filter((name) => !known.has(name));
    if (used.length === 0) report('uses no Node-API function');
    if (unknown.length > 0) report(`uses ${unknown.join(', ')}, which Node-API ${NODE_API} does not have`);
  } else if (!RECORDS_ON_CUDA.test(readelf(['--dyn-syms'], file))) {
    report('records no graphs on CUDA: it was built without the headers of CUDA');
  }
  return { needed, versions };
}

function checkPlatform(folder, platform, minors, floors) {
  const problems = [];
  const here = path.join(folder, platform);
  const { addon, engines } = expectedFiles(platform, minors);
  const present = existsSync(here) ? readdirSync(here) : [];
  for (const name of [addon, ...engines])
    if (!present.includes(name)) problems.push(`${platform}/${name} is missing`);
  for (const name of present.filter((found) => found !== addon && !engines.includes(found)))
    problems.push(`${platform}/${name} is not expected`);
  const files = present.map((name) => {
    const file = path.join(here, name);
    const isAddon = name === addon;
    const what = {
      allowed: isAddon ? [SYSTEM, UNWINDER] : [SYSTEM, UNWINDER, LIBTORCH, CXX],
      floors,
      isAddon,
    };
    const elf = platform.startsWith('linux-')
      ? checkElf(file, what, (problem) => problems.push(`${platform}/${name} ${problem}`))
      : {};
    return { file: `${platform}/${name}`, bytes: statSync(file).size, ...elf };
  });
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  if (bytes > LARGEST_PLATFORM)
    problems.push(`${platform} takes ${bytes} bytes, more than ${LARGEST_PLATFORM}`);
  return { files, problems };
}

function main() {
  const { values } = parseArgs({
    options: {
      folder: { type: 'string', default: path.join(root, 'prebuilds') },
      tarball: { type: 'string' },
      libtorch: { type: 'string' },
      floor: { type: 'string', multiple: true, default: [] },
      json: { type: 'boolean', default: false },
    },
  });
  const { diad } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
  const minors = values.libtorch?.split(',') ?? diad.libtorch.map(minorOf);
  const floors = { ...diad.floors, ...Object.fromEntries(values.floor.map((floor) => floor.split('='))) };
  const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-prebuilds-'));
  try {
    if (values.tarball !== undefined)
      execFileSync('tar', ['-xzf', path.resolve(values.tarball), '-C', scratch, 'package/prebuilds']);
    const folder = values.tarball === undefined ? values.folder : path.join(scratch, 'package', 'prebuilds');
    const results = diad.prebuilds.map((platform) => checkPlatform(folder, platform, minors, floors));
    const files = results.flatMap((result) => result.files);
    const problems = results.flatMap((result) => result.problems);
    if (values.json) console.log(JSON.stringify({ files, problems }, null, 2));
    else {
      for (const { file, bytes, versions = {} } of files) {
        const needs = Object.entries(versions).map(([namespace, version]) => `${namespace}_${version}`);
        console.log(`${file}  ${bytes} bytes  ${needs.sort().join(' ')}`);
      }
      for (const problem of problems) console.error(`check-prebuilds: ${problem}`);
    }
    if (problems.length > 0) process.exitCode = 1;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

try {
  main();
} catch (error) {
  process.stderr.write(`check-prebuilds: ${error.message}\n`);
  process.exitCode = 1;
}
