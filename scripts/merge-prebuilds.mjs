// Merges prebuilds folders of several machines, so that a release has an engine for each LibTorch minor
// version.
//
//   node scripts/merge-prebuilds.mjs OUT IN...
//
// Each machine builds the addon and the engine for its LibTorch version. For each platform, the first addon
// is kept: addons do not depend on the LibTorch version. Two different files for the same engine are an
// error.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

function merge(out, from) {
  const platforms = readdirSync(from).filter((name) => statSync(path.join(from, name)).isDirectory());
  if (platforms.length === 0) throw new Error(`${from} has no platform folder`);
  for (const platform of platforms) {
    mkdirSync(path.join(out, platform), { recursive: true });
    for (const name of readdirSync(path.join(from, platform))) {
      const [source, to] = [path.join(from, platform, name), path.join(out, platform, name)];
      if (!existsSync(to)) cpSync(source, to);
      else if (!name.endsWith('.node') && !readFileSync(source).equals(readFileSync(to))) {
        throw new Error(`${platform}/${name} differs between two machines`);
      }
    }
  }
}

const [out, ...inputs] = process.argv.slice(2);
try {
  if (out === undefined || inputs.length === 0) throw new Error('usage: merge-prebuilds OUT IN...');
  for (const from of inputs) merge(out, from);
  for (const platform of readdirSync(out)) {
    if (statSync(path.join(out, platform)).isDirectory())
      console.log(`${platform}: ${readdirSync(path.join(out, platform)).sort().join(', ')}`);
  }
} catch (error) {
  process.stderr.write(`merge-prebuilds: ${error.message}\n`);
  process.exitCode = 1;
}
