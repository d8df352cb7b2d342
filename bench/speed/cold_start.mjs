// Milliseconds from process start to the first score of the base bundle, in fresh processes.
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import process from 'node:process';
import { root } from './contenders.mjs';

export function coldStarts(count, imageFile, device) {
  const source = `import { Diad } from ${JSON.stringify(path.join(root, 'dist', 'index.js'))}; import { readFileSync } from 'node:fs';
    const diad = await Diad.load(undefined, { warmup: false, device: ${JSON.stringify(device)} }); await diad.score(readFileSync(${JSON.stringify(imageFile)}));
    console.log(performance.now()); process.exit(0);`;
  const run = () =>
    Number(execFileSync(process.execPath, ['--input-type=module', '-e', source], { encoding: 'utf8' }));
  run(); // files into the page cache
  return Array.from({ length: count }, run);
}
