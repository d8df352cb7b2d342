// Clean projects to install the package in, and a clean environment to run programs in.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const work = path.join(root, 'out', 'install');
const programs = path.join(root, 'test', 'consumer');

/** Path of npm's JavaScript program. */
const npmCli = realpathSync(execFileSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' }).trim());

/** Creates a folder for PATH that contains only node and npm. */
function onlyNodeAndNpm() {
  const bin = path.join(work, 'bin');
  rmSync(bin, { recursive: true, force: true });
  mkdirSync(bin, { recursive: true });
  symlinkSync(process.execPath, path.join(bin, 'node'));
  symlinkSync(npmCli, path.join(bin, 'npm'));
  return bin;
}

/**
 * Returns the environment of a user who has only Node and npm: no compiler, no Python, no configured or
 * cached LibTorch. Registry settings (npm variables, certificates, proxies) are kept.
 */
export function cleanEnvironment() {
  const bin = onlyNodeAndNpm();
  const kept =
    /^(HOME|LANG|LC_\w+|TMPDIR|npm_config_\w+|NPM_CONFIG_\w+|NODE_EXTRA_CA_CERTS|SSL_CERT_\w+|https?_proxy|no_proxy)$/i;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => kept.test(name)));
  return { ...env, PATH: bin, XDG_CACHE_HOME: path.join(work, 'empty-cache') };
}

/** Creates an empty project with the test programs. */
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

/** Runs a program. Throws an error with its output if it fails. */
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
      `${path.basename(command)} ${args.join(' ')}: ${signal ?? `exit code ${status}`}\n` +
        `${stdout.slice(-3000)}${stderr.slice(-3000)}`,
    );
  }
  return { stdout, stderr };
}

/** Runs npm. */
export function npm(args, options) {
  return run(process.execPath, [npmCli, ...args, '--no-audit', '--no-fund', '--loglevel', 'error'], options);
}

/** Runs a test program on an image. Returns the score and the source of LibTorch that it prints. */
export function scoreWith(node, program, { cwd, env, image, before = [] }) {
  const { stdout } = run(node, [...before, program, image], { cwd, env });
  return JSON.parse(stdout.trim().split('\n').at(-1));
}

/** Throws if the relative difference of the scores is above 1e-5. */
export function expectScore({ score }, golden) {
  const difference = Math.abs(score - golden) / Math.abs(golden);
  if (!(difference <= 1e-5)) throw new Error(`Expected a score of ${golden} but received ${score}`);
}

/** Reads package.json of an installed package. */
export function installedManifest(folder, name) {
  return JSON.parse(readFileSync(path.join(folder, 'node_modules', name, 'package.json'), 'utf8'));
}
