// Where the time of one image goes, operator by operator: the engine alone, without Node.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root } from './contenders.mjs';
import { noisePixels } from './noise.mjs';

/**
 * @param bundle - its folder
 * @param repeat - images that are averaged
 * @returns computeMs and profiledMs, an image's time without and with a clock on every operator, and `operators`: rows of operator, calls, ms, gflop of
 * one image, most time first
 */
export function operatorProfile(bundle, { device, repeat }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'diad-profile-'));
  try {
    const image = path.join(folder, 'noise.ppm');
    writeFileSync(image, Buffer.concat([Buffer.from('P6 256 256 255\n'), noisePixels(256)]));
    const engine = path.join(root, 'build', 'Release', 'diad-engine');
    const args = ['profile', '--bundle', bundle, '--device', device, '--repeat', String(repeat), image];
    return JSON.parse(execFileSync(engine, args, { encoding: 'utf8', maxBuffer: 1 << 26 }));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
