// What the tests need beside npm and PyPI: a browser, a Redis and an MQTT broker from Debian's packages.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

/** What each package brings, under the names it may have already; an environment variable names it elsewhere. */
const NEEDED = [
  {
    package: 'chromium',
    programs: ['chromium', 'chromium-browser', 'google-chrome'],
    variable: 'DIAD_CHROMIUM',
  },
  { package: 'redis-server', programs: ['redis-server'] },
  { package: 'mosquitto', programs: ['mosquitto'] },
];

/** Path of a program; undefined when it is not there. */
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
 * Installs what is missing, which takes root on a Debian or Ubuntu; says what to do otherwise. The brokers' own services are not started:
 * the tests start theirs on free ports.
 */
export function installSystemPackages() {
  const packages = NEEDED.filter((needed) => !isThere(needed)).map((needed) => needed.package);
  if (packages.length === 0) return;
  const command = `apt-get install --yes ${packages.join(' ')}`;
  if (process.getuid?.() !== 0 || programPath('apt-get') === undefined) {
    throw new Error(
      `The tests need ${packages.join(', ')}: run \`sudo ${command}\`, or put the programs on PATH (Chromium: or in DIAD_CHROMIUM)`,
    );
  }
  process.stderr.write(`[set-up] ${command} ...\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1' };
  const run = (args) =>
    execFileSync('apt-get', ['--quiet', ...args], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  run(['update']);
  run(['install', '--yes', '--no-install-recommends', ...packages]);
}
