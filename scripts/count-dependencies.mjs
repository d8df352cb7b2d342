// Counts the packages that installing diad adds, from package-lock.json, and fails above the limit below:
// node scripts/count-dependencies.mjs
import { readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

/** Raise only on purpose, and give the reason in docs/design/security.md. */
const MOST_INSTALLED = 200;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'));

/** Packages without development dependencies and optional peers, which are not installed by default. */
const installed = Object.entries(packages).filter(
  ([name, entry]) => name !== '' && !entry.dev && !entry.devOptional && !entry.peer,
);
/** Packages for all systems. Others contain binaries for one system, for example those of sharp. */
const everywhere = installed.filter(([, entry]) => entry.os === undefined && entry.cpu === undefined);
const scripts = installed
  .filter(([, entry]) => entry.hasInstallScript === true)
  .map(([name]) => name.replace(/^.*node_modules\//, ''));

const direct = Object.keys(packages[''].dependencies).length;
console.log(
  `${direct} direct dependencies, ${everywhere.length} packages on all systems, ` +
    `${installed.length - everywhere.length} for one system each`,
);
console.log(
  `packages with an install script: ${scripts.length === 0 ? 'none' : [...new Set(scripts)].join(', ')}`,
);
if (everywhere.length > MOST_INSTALLED) {
  console.error(
    `more than ${MOST_INSTALLED} packages: give the reason in docs/design/security.md and raise the limit`,
  );
  process.exitCode = 1;
}
