// Counts what installing diad brings, from package-lock.json: `node scripts/count-dependencies.mjs`. Fails past the limit below.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

/** Raised on purpose only, together with the reason in docs/security.md. */
const MOST_INSTALLED = 200;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'));

/** Not only for development, and not one of the optional peers, which nobody gets unasked. */
const installed = Object.entries(packages).filter(
  ([name, entry]) => name !== '' && !entry.dev && !entry.devOptional && !entry.peer,
);
/** Binaries of sharp and others for other systems: each system gets its own few. */
const everywhere = installed.filter(([, entry]) => entry.os === undefined && entry.cpu === undefined);
const scripts = installed
  .filter(([, entry]) => entry.hasInstallScript === true)
  .map(([name]) => name.replace(/^.*node_modules\//, ''));

const direct = Object.keys(packages[''].dependencies).length;
console.log(
  `${direct} direct dependencies, ${everywhere.length} packages on every system, ${installed.length - everywhere.length} for one system each`,
);
console.log(
  `packages with an install script: ${scripts.length === 0 ? 'none' : [...new Set(scripts)].join(', ')}`,
);
if (everywhere.length > MOST_INSTALLED) {
  console.error(`more than ${MOST_INSTALLED} packages: say in docs/security.md why, and raise the limit`);
  process.exitCode = 1;
}
