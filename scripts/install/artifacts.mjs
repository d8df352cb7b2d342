// Artifacts for the installation tests: tarballs of diad (with prebuilt binaries) and of the LibTorch
// package, and the expected score.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { root, run, work } from './consumer.mjs';

// Compiling and compressing take long on a slow machine.
const here = { cwd: root, env: process.env, timeout: 3_600_000 };
const script = (name, ...args) => run(process.execPath, [path.join(root, 'scripts', name), ...args], here);

export const image = path.join(root, 'examples', 'gear-missing_part.png');

/** Returns the LibTorch minor version of this machine's build. */
export function builtMinor() {
  const engine = readdirSync(path.join(root, 'build', 'Release')).map(
    (name) => /^libdiad_engine-torch([\d.]+)\.so$/.exec(name)?.[1],
  );
  return engine.find((minor) => minor !== undefined);
}

/** Builds the binaries and packs the package. Returns the tarball, its sizes and its files. */
export function packDiad({ reuseBuild }) {
  script('prebuild.mjs', ...(reuseBuild ? ['--reuse-build'] : []));
  script('check-prebuilds.mjs', '--libtorch', builtMinor());
  const folder = path.join(work, 'tarballs');
  mkdirSync(folder, { recursive: true });
  const packed = execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], {
    cwd: root,
    encoding: 'utf8',
  });
  const [{ filename, size, unpackedSize, files }] = JSON.parse(packed);
  const tarball = path.join(folder, path.basename(filename));
  script('check-prebuilds.mjs', '--libtorch', builtMinor(), '--tarball', tarball);
  return { tarball, size, unpackedSize, files: files.map((file) => file.path) };
}

/**
 * Packs the LibTorch libraries. Reuses the tarball if the versions and the script have not changed, because
 * compressing 345 MB is slow. `quick` compresses less.
 */
export function packLibTorch({ quick }) {
  const out = path.join(root, 'out', 'libtorch');
  const stamp = path.join(out, 'stamp');
  const sources = ['scripts/pack-libtorch.mjs', 'package.json'].map((file) =>
    readFileSync(path.join(root, file)),
  );
  const current = createHash('sha256')
    .update(sources[0])
    .update(JSON.parse(sources[1]).diad.libtorch.join())
    .update(String(quick))
    .digest('hex');
  const tarballs = () => (existsSync(out) ? readdirSync(out).filter((name) => name.endsWith('.tgz')) : []);
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== current || tarballs().length !== 1) {
    for (const old of tarballs()) rmSync(path.join(out, old));
    script('pack-libtorch.mjs', '--out', out, ...(quick ? ['--quick'] : []));
    writeFileSync(stamp, current);
  }
  return path.join(out, tarballs()[0]);
}

/** Computes the score of the image in the development tree. */
export function goldenScore() {
  const source = `import { Diad } from ${JSON.stringify(path.join(root, 'dist', 'index.js'))};
    import { readFileSync } from 'node:fs';
    const diad = await Diad.load();
    const { score } = await diad.score(readFileSync(process.argv[1]));
    await diad.close();
    console.log(score);`;
  return Number(run(process.execPath, ['--input-type=module', '-e', source, image], here).stdout);
}

/** Installs Node binaries from the registry. Returns their paths by major version. */
export function nodes(versions) {
  if (versions.length === 0) return new Map();
  const folder = path.join(work, 'nodes');
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, 'package.json'), '{ "private": true }');
  const specifications = versions.map(
    (version) => `node-${version}@npm:node-${process.platform}-${process.arch}@${version}`,
  );
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--loglevel', 'error', ...specifications], {
    cwd: folder,
    stdio: 'inherit',
  });
  return new Map(
    versions.map((version) => [version, path.join(folder, 'node_modules', `node-${version}`, 'bin', 'node')]),
  );
}
