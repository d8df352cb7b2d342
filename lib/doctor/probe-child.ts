// Child process of the doctor, isolated because LibTorch can crash it. Opens LibTorch and the engine, loads
// the bundle, scores, verifies, and reports its progress.
import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { Diad } from '../diad.js';
import { codeOf } from '../errors.js';
import { encodePng } from '../scoring/anomaly-map.js';
import type { RawFrame } from '../image/types.js';
import { openNative, type EngineVersion } from '../native/addon.js';
import type { DiadInfo } from '../scoring/info.js';
import { verifyBundle, type VerifyReport } from '../verify/verify.js';

/** Request to the child. */
export interface ProbeRequest {
  readonly bundle: string | undefined;
  readonly device: string;
}

/** Stages of a probe, in order. */
export type ProbeStage = 'addon' | 'libtorch' | 'bundle' | 'score' | 'image' | 'golden';

/** Messages of the child. */
export type ProbeMessage =
  | { readonly kind: 'entering'; readonly stage: ProbeStage }
  | { readonly kind: 'opened'; readonly version: EngineVersion }
  | { readonly kind: 'loaded'; readonly info: DiadInfo }
  | { readonly kind: 'scored'; readonly score: number; readonly milliseconds: number }
  | { readonly kind: 'verified'; readonly report: VerifyReport }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string };

/** Draws the built-in 96 x 96 RGB test image: a disc with a scratch on a gradient. */
function builtInImage(): RawFrame {
  const side = 96;
  const data = new Uint8Array(side * side * 3);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const inDisc = (x - 48) ** 2 + (y - 48) ** 2 < 30 ** 2;
      const inScratch = inDisc && Math.abs(x - y - 6) < 2;
      const gray = inScratch ? 30 : inDisc ? 170 : 60 + x;
      data.set([gray, Math.min(255, gray + (y >> 2)), Math.max(0, gray - (y >> 3))], 3 * (y * side + x));
    }
  }
  return { data, width: side, height: side, channels: 3 };
}

async function probe({ bundle, device }: ProbeRequest, say: (message: ProbeMessage) => void): Promise<void> {
  const enter = (stage: ProbeStage): void => {
    say({ kind: 'entering', stage });
  };
  enter('libtorch');
  const { version } = await openNative();
  say({ kind: 'opened', version });
  enter('bundle');
  const diad = await Diad.load(bundle, { device });
  say({ kind: 'loaded', info: diad.info });
  enter('score');
  const frame = builtInImage();
  const started = performance.now();
  const { score } = await diad.score(frame);
  say({ kind: 'scored', score, milliseconds: performance.now() - started });
  enter('image');
  await diad.score(await encodePng(frame));
  const folder = diad.info.bundle.path;
  await diad.close();
  if (!existsSync(path.join(folder, 'golden'))) return;
  enter('golden');
  say({ kind: 'verified', report: await verifyBundle(folder, { device }) });
}

process.once('message', (request) => {
  const say = (message: ProbeMessage): void => {
    process.send?.(message);
  };
  probe(request as ProbeRequest, say)
    .catch((error: unknown) => {
      say({
        kind: 'failed',
        code: codeOf(error) ?? 'ERR_DIAD_INTERNAL',
        message: error instanceof Error ? error.message : String(error),
      });
    })
    .finally(() => {
      process.disconnect();
    });
});
