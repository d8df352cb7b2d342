// A bundle with every class of damage: flipped bits, missing ends, exchanged files, impossible manifests, ways out of the folder.
import { createHash } from 'node:crypto';
import {
  cpSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  renameSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { baseBundle, isDiadError, library, randomNumbers, within } from './harness.mjs';

export const abuse =
  'bundle: bits flipped at every class of position, truncated, files exchanged, huge or negative sizes, path traversal, links out';
export const mustHold =
  "refused with the file's name (without hashes, too: a result or a DiadError); nothing outside the bundle read";
export const amounts = { short: 60, full: 2000 };

const FILES = [
  'manifest.json',
  'manifest.sha256',
  'encoder.pt',
  'denoiser.pt',
  'decoder.pt',
  'extractor.pt',
  'MODEL_CARD.md',
];
const MODULES = FILES.filter((name) => name.endsWith('.pt'));

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** Positions that matter in a file: its first bytes, its directory at the end, and everything between. */
function position(size, random) {
  const zone = Math.floor(random() * 4);
  if (zone === 0) return Math.floor(random() * Math.min(256, size));
  if (zone === 1) return size - 1 - Math.floor(random() * Math.min(4096, size));
  return Math.floor(random() * size);
}

function flip(bytes, random) {
  const changed = Buffer.from(bytes);
  changed[position(bytes.length, random)] ^= 1 << Math.floor(random() * 8);
  return changed;
}

const HOSTILE_NUMBERS = [-1, -(2 ** 63), 2 ** 53, 1e300, 0.5, '1', null, [], {}, true];

/** A number of the manifest replaced by something a schema must refuse, or by an absurd one that it may accept. */
function editManifest(manifest, random) {
  const paths = [];
  const walk = (value, trail) => {
    if (typeof value === 'number') paths.push(trail);
    else if (typeof value === 'object' && value !== null)
      for (const key of Object.keys(value)) walk(value[key], [...trail, key]);
  };
  walk(manifest, []);
  const trail = paths[Math.floor(random() * paths.length)];
  const owner = trail.slice(0, -1).reduce((value, key) => value[key], manifest);
  owner[trail.at(-1)] = HOSTILE_NUMBERS[Math.floor(random() * HOSTILE_NUMBERS.length)];
}

const OUTSIDE = [
  '../outside.pt',
  '/etc/hostname',
  'golden/../../outside.pt',
  '..',
  'a/b/c',
  'x\0y',
  'golden/..',
  './decoder.pt',
  '',
];

export async function run(count) {
  const { Diad } = await library();
  const random = randomNumbers(7);
  const failures = [];
  const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-bundles-'));
  const bundle = path.join(scratch, 'bundle');
  cpSync(baseBundle, bundle, { recursive: true });
  writeFileSync(path.join(scratch, 'outside.pt'), 'outside');
  const original = new Map(FILES.map((name) => [name, readFileSync(path.join(bundle, name))]));
  const write = (name, bytes) => writeFileSync(path.join(bundle, name), bytes);
  const seal = (manifest) => {
    const text = JSON.stringify(manifest);
    write('manifest.json', text);
    write('manifest.sha256', `${digest(text)}\n`);
  };
  const manifest = () => JSON.parse(original.get('manifest.json').toString());
  const tally = { refused: 0, accepted: 0 };

  /** Loads; `named`: what the refusal must name; undefined where a result is allowed. */
  async function attempt(what, options, named) {
    try {
      const diad = await within(60_000, Diad.load(bundle, { warmup: false, ...options }), what);
      tally.accepted++;
      if (named !== undefined) failures.push(`${what}: accepted`);
      await diad.close();
    } catch (error) {
      tally.refused++;
      const known = isDiadError(error) && /^ERR_DIAD_(BUNDLE_|OUT_OF_MEMORY)/.test(error.code);
      if (!known) failures.push(`${what}: ${error.code ?? error.name} ${error.message}`);
      else if (named !== undefined && !error.message.includes(named))
        failures.push(`${what}: the message does not name ${named}: ${error.message}`);
    }
  }

  try {
    for (let i = 0; i < count; i++) {
      const name = FILES[Math.floor(random() * FILES.length)];
      const module = MODULES[Math.floor(random() * MODULES.length)];
      const changed = new Set([name, module, 'manifest.json', 'manifest.sha256']);
      switch (i % 8) {
        case 0:
          write(name, flip(original.get(name), random));
          // Of the manifest itself the hash, the parser or the schema may be first to object; each names it.
          await attempt(`a flipped bit in ${name}`, {}, name.startsWith('manifest') ? 'manifest' : name);
          break;
        case 1: {
          const size = Math.floor(random() * statSync(path.join(bundle, name)).size);
          write(name, original.get(name).subarray(0, size));
          await attempt(`${name} cut to ${size} bytes`, {}, name.startsWith('manifest') ? 'manifest' : name);
          break;
        }
        case 2: // the archive reader and the pickles are on their own here
          write(module, flip(original.get(module), random));
          await attempt(`a flipped bit in ${module}, hashes not checked`, { verify: false });
          break;
        case 3: {
          const other = MODULES[(MODULES.indexOf(module) + 1 + Math.floor(random() * 3)) % MODULES.length];
          write(module, original.get(other));
          await attempt(`${other} in the place of ${module}`, {}, module);
          break;
        }
        case 4: {
          const edited = manifest();
          editManifest(edited, random);
          seal(edited);
          await attempt(`manifest ${JSON.stringify(edited).length}`, {});
          break;
        }
        case 5: {
          const edited = manifest();
          const outside = OUTSIDE[Math.floor(random() * OUTSIDE.length)];
          edited.files[outside] = { size: 7, sha256: digest('outside') };
          seal(edited);
          await attempt(`a file named ${JSON.stringify(outside)}`, {}, 'manifest.json');
          break;
        }
        case 6: {
          const target = path.join(scratch, 'linked.pt');
          writeFileSync(target, original.get(module)); // same bytes: only its place is wrong
          rmSync(path.join(bundle, module));
          symlinkSync(target, path.join(bundle, module));
          await attempt(`${module} linked out of the bundle`, {}, module);
          rmSync(path.join(bundle, module));
          break;
        }
        default: {
          const bytes = flip(original.get(module), random);
          write(module, bytes);
          const edited = manifest();
          edited.files[module] = { size: bytes.length, sha256: digest(bytes) };
          seal(edited); // whoever wrote this bundle knew how to seal it
          await attempt(`a flipped bit in ${module}, sealed again`, {});
        }
      }
      for (const file of changed) {
        writeFileSync(path.join(scratch, 'restored'), original.get(file));
        renameSync(path.join(scratch, 'restored'), path.join(bundle, file));
      }
    }
    await attempt('the bundle as it was', {}).then(() => {
      if (tally.accepted === 0) failures.push('the undamaged bundle was refused: the group shows nothing');
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return {
    measured: `${tally.refused} refused, ${tally.accepted} accepted (sealed or unhashed flips that change no meaning), ${failures.length} bad`,
    failures,
  };
}
