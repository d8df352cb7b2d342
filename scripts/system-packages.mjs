// Installs the system packages that the tests need: a browser, Redis and an MQTT broker.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

/** Required packages with possible program names. An environment variable can set the path of the program. */
const NEEDED = [
  {
    package: 'chromium',
    programs: ['chromium', 'chromium-browser', 'google-chrome'],
    variable: 'DIAD_CHROMIUM',
  },
  { package: 'redis-server', programs: ['redis-server'] },
  { package: 'mosquitto', programs: ['mosquitto'] },
];

/** Returns the path of a program, or undefined if it is not installed. */
export function programPath(name) {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/bin', '/usr/sbin', '/usr/local/bin'];
  return folders.map((folder) => path.join(folder, name)).find((file) => existsSync(file));
}

function isThere({ programs, variable }) {
  const named = variable === undefined ? undefined : process.env[variable];
  return (
    (named !== undefined && existsSync(named)) || programs.some((name) => programPath(name) !== undefined)
  );
}

/**
 * Installs missing packages, which requires root on Debian or Ubuntu. Otherwise, throws an error that names
 * them. The services of the brokers are not started, because the tests start their own brokers on free ports.
 */
export function installSystemPackages() {
  const packages = NEEDED.filter((needed) => !isThere(needed)).map((needed) => needed.package);
  if (packages.length === 0) return;
  const command = `apt-get install --yes ${packages.join(' ')}`;
  if (process.getuid?.() !== 0 || programPath('apt-get') === undefined) {
    throw new Error(
      `The tests need ${packages.join(', ')}: run \`sudo ${command}\`, or add the programs to PATH ` +
        '(for Chromium, you can also set DIAD_CHROMIUM)',
    );
  }
  process.stderr.write(`[set-up] ${command} ...\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1' };
  const run = (args) =>
    execFileSync('apt-get', ['--quiet', ...args], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  run(['update']);
  run(['install', '--yes', '--no-install-recommends', ...packages]);
}
