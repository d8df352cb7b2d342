// A clean place to install the package in, and running programs there as a user without anything else would.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const work = path.join(root, 'out', 'install');
const programs = path.join(root, 'test', 'consumer');

/** npm's own program, whatever starts it. */
const npmCli = realpathSync(execFileSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' }).trim());

/** A folder that holds node and npm and nothing else, to be the whole PATH. */
function onlyNodeAndNpm() {
  const bin = path.join(work, 'bin');
  rmSync(bin, { recursive: true, force: true });
  mkdirSync(bin, { recursive: true });
  symlinkSync(process.execPath, path.join(bin, 'node'));
  symlinkSync(npmCli, path.join(bin, 'npm'));
  return bin;
}

/**
 * The environment of a user who has Node and npm: no compiler, no Python, no LibTorch named or cached. What configures the package registries
 * (npm's variables, certificates, proxies) stays.
 */
export function cleanEnvironment() {
  const bin = onlyNodeAndNpm();
  const kept =
    /^(HOME|LANG|LC_\w+|TMPDIR|npm_config_\w+|NPM_CONFIG_\w+|NODE_EXTRA_CA_CERTS|SSL_CERT_\w+|https?_proxy|no_proxy)$/i;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => kept.test(name)));
  return { ...env, PATH: bin, XDG_CACHE_HOME: path.join(work, 'empty-cache') };
}

/** An empty project with the consumer programs in it. */
export function project(name, packageJson = {}) {
  const folder = path.join(work, 'projects', name);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  cpSync(programs, folder, { recursive: true });
  writeFileSync(
    path.join(folder, 'package.json'),
    JSON.stringify({ name: `consumer-${name}`, private: true, version: '1.0.0', ...packageJson }),
  );
  return folder;
}

/** Runs a program to its end; throws with what it printed when it fails. */
export function run(command, args, { cwd, env, timeout = 1_800_000 }) {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    env,
    encoding: 'utf8',
    timeout,
    maxBuffer: 1 << 28,
  });
  if (error) throw error;
  if (status !== 0) {
    throw new Error(
      `${path.basename(command)} ${args.join(' ')}: ${signal ?? `exit code ${status}`}\n${stdout.slice(-3000)}${stderr.slice(-3000)}`,
    );
  }
  return { stdout, stderr };
}

/** npm in the clean environment. */
export function npm(args, options) {
  return run(process.execPath, [npmCli, ...args, '--no-audit', '--no-fund', '--loglevel', 'error'], options);
}

/** Score that a consumer program printed for an image, with where it found LibTorch. */
export function scoreWith(node, program, { cwd, env, image, before = [] }) {
  const { stdout } = run(node, [...before, program, image], { cwd, env });
  return JSON.parse(stdout.trim().split('\n').at(-1));
}

/** Throws unless the scores agree to 1e-5 of their size. */
export function expectScore({ score }, golden) {
  const difference = Math.abs(score - golden) / Math.abs(golden);
  if (!(difference <= 1e-5)) throw new Error(`the score is ${score}, the development tree's is ${golden}`);
}

/** package.json of an installed package. */
export function installedManifest(folder, name) {
  return JSON.parse(readFileSync(path.join(folder, 'node_modules', name, 'package.json'), 'utf8'));
}
