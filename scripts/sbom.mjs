// npm run sbom: the software bill of materials of the package, CycloneDX JSON, into out/sbom.cdx.json.
//
// npm lists what it installs; added is what it cannot see: C++ libraries compiled in, the base model, and LibTorch, which is found at run time.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const read = (...names) => readFileSync(path.join(root, ...names), 'utf8');

function vendored() {
  const header = read('cpp', 'third_party', 'nlohmann', 'detail', 'abi_macros.hpp');
  const part = (name) => new RegExp(`NLOHMANN_JSON_VERSION_${name} (\\d+)`).exec(header)?.[1];
  const version = [part('MAJOR'), part('MINOR'), part('PATCH')].join('.');
  return {
    type: 'library',
    name: 'nlohmann/json',
    version,
    purl: `pkg:github/nlohmann/json@v${version}`,
    licenses: [{ license: { id: 'MIT' } }],
    scope: 'required',
    description: 'Compiled into the engine library',
  };
}

function nodeAddonApi() {
  const { version } = JSON.parse(read('node_modules', 'node-addon-api', 'package.json'));
  const licenses = [{ license: { id: 'MIT' } }];
  const description = 'Compiled into the addon';
  return {
    type: 'library',
    name: 'node-addon-api',
    version,
    purl: `pkg:npm/node-addon-api@${version}`,
    licenses,
    scope: 'required',
    description,
  };
}

function baseModel() {
  const manifest = read('models', 'base', 'manifest.json');
  const { name, torchVersion } = JSON.parse(manifest);
  const hashes = [{ alg: 'SHA-256', content: createHash('sha256').update(manifest).digest('hex') }];
  const description = `Model bundle, exported with torch ${torchVersion}; the hash is its manifest's, which holds those of its files`;
  return {
    type: 'machine-learning-model',
    name: `diad-bundle-${name}`,
    version: '1',
    hashes,
    scope: 'required',
    description,
  };
}

function libtorch(version) {
  const description = 'Opened at run time where it is found; not part of the package';
  return {
    type: 'library',
    name: 'libtorch',
    version,
    purl: `pkg:pypi/torch@${version}`,
    scope: 'optional',
    description,
  };
}

const listed = execFileSync(
  'npm',
  ['sbom', '--sbom-format', 'cyclonedx', '--omit', 'dev', '--package-lock-only'],
  {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  },
);
const bill = JSON.parse(listed);
const { diad } = JSON.parse(read('package.json'));
bill.components.push(vendored(), nodeAddonApi(), baseModel(), ...diad.libtorch.map(libtorch));
const out = path.join(root, 'out', 'sbom.cdx.json');
mkdirSync(path.dirname(out), { recursive: true });
writeFileSync(out, `${JSON.stringify(bill, null, 2)}\n`);
process.stdout.write(`${path.relative(process.cwd(), out)}: ${bill.components.length} components\n`);
