// TorchScript files with operators outside the numeric set, in a bundle whose hashes are right.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { baseBundle, library, python, root } from './harness.mjs';

export const abuse =
  'TorchScript files with file access, save, print, loops, __setstate__, hooks, objects, forks, other formats';
export const mustHold = 'refused before anything runs, naming file and operator';
export const amounts = { short: 1, full: 4 }; // rounds; each round puts the files in another module's place

const MODULES = ['encoder.pt', 'denoiser.pt', 'decoder.pt', 'extractor.pt'];
const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

export async function run(count) {
  const { Diad } = await library();
  const failures = [];
  const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-torchscript-'));
  const bundle = path.join(scratch, 'bundle');
  const witness = path.join(scratch, 'witness');
  let refused = 0;
  try {
    cpSync(baseBundle, bundle, { recursive: true });
    const script = path.join(root, 'bench', 'abuse', 'hostile_modules.py');
    const written = JSON.parse(execFileSync(python, [script, scratch, witness], { encoding: 'utf8' }));
    const manifest = readFileSync(path.join(bundle, 'manifest.json'), 'utf8');
    for (let round = 0; round < count; round++) {
      const module = MODULES[round % MODULES.length];
      const original = readFileSync(path.join(bundle, module));
      for (const { file, refusal } of written) {
        const bytes = readFileSync(path.join(scratch, file));
        const edited = JSON.parse(manifest);
        edited.files[module] = { size: bytes.length, sha256: digest(bytes) };
        const text = JSON.stringify(edited);
        writeFileSync(path.join(bundle, module), bytes);
        writeFileSync(path.join(bundle, 'manifest.json'), text);
        writeFileSync(path.join(bundle, 'manifest.sha256'), `${digest(text)}\n`);
        try {
          await (await Diad.load(bundle, { warmup: false })).close();
          failures.push(`${file} as ${module}: accepted`);
        } catch (error) {
          const named = error.message.includes(module) && error.message.includes(refusal);
          if (/^ERR_DIAD_BUNDLE_(INVALID|CORRUPT)$/.test(error.code) && named) refused++;
          else failures.push(`${file} as ${module}: ${error.code} ${error.message}`);
        }
      }
      writeFileSync(path.join(bundle, module), original);
    }
    if (existsSync(witness)) failures.push('a file was written: something ran');
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return { measured: `${refused} refused, ${failures.length} bad`, failures };
}
