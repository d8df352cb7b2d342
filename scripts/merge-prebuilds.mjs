// Merges the prebuilds folders of several machines into one, so that a release holds an engine for every LibTorch minor.
//
//   node scripts/merge-prebuilds.mjs OUT IN...
//
// Each machine built the addon and the engine of its own LibTorch. Of addons for one platform the first is kept: they are built from the same
// sources against the same Node-API, whatever LibTorch was there. Two different files for one engine are an error.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

function merge(out, from) {
  const platforms = readdirSync(from).filter((name) => statSync(path.join(from, name)).isDirectory());
  if (platforms.length === 0) throw new Error(`${from} holds no platform's folder`);
  for (const platform of platforms) {
    mkdirSync(path.join(out, platform), { recursive: true });
    for (const name of readdirSync(path.join(from, platform))) {
      const [source, to] = [path.join(from, platform, name), path.join(out, platform, name)];
      if (!existsSync(to)) cpSync(source, to);
      else if (!name.endsWith('.node') && !readFileSync(source).equals(readFileSync(to))) {
        throw new Error(`${platform}/${name} comes from two machines and differs`);
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
