// Profiles the operators of one image with diad-engine, without Node.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root } from './contenders.mjs';
import { noisePixels } from './noise.mjs';

/**
 * Runs `diad-engine profile`.
 *
 * @param bundle - bundle folder
 * @param repeat - number of images to average
 * @returns computeMs and profiledMs, the time of an image without and with profiling, and `operators`: rows
 *   of operator, calls, ms and gflop per image, sorted by time
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
