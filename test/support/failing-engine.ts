// A stub engine that fails on demand and counts calls, for tests of the code around an engine.
import { DiadError } from '../../lib/index.js';
import type { Scorer } from '../../lib/server/index.js';
import { STUB_MODEL } from './queue-support.js';
import { stubScorer } from './server-support.js';

export interface FailingEngine {
  readonly scorer: Scorer;
  /** Whether it fails; 'files': only for encoded images, not for the gray frame. */
  failing: boolean | 'files';
  /** Calls since the start. */
  asked: number;
  /** Calls with a frame: health probes, including the warm-up. */
  questions: number;
}

export const DEVICE_LOST = 'the device is lost';

export function failingEngine(): FailingEngine {
  const stub = stubScorer();
  const score: Scorer['score'] = async (image, options) => {
    engine.asked++;
    const isFile = image instanceof Uint8Array;
    if (!isFile) engine.questions++;
    if (engine.failing === true || (engine.failing === 'files' && isFile))
      throw new DiadError('ERR_DIAD_INTERNAL', DEVICE_LOST);
    return stub.score(image, options);
  };
  const bundle = { name: 'stub', digest: STUB_MODEL, imageSize: 8, calibratedClasses: [] };
  const info = { bundle, precision: 'float32', queueLimit: 64 } as unknown as Scorer['info'];
  const engine: FailingEngine = { scorer: { ...stub, info, score }, failing: false, asked: 0, questions: 0 };
  return engine;
}
