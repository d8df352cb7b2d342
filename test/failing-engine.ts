// An engine that scores, fails while it is told to, and says how often it was asked; for the tests of what stands around one.
import { DiadError } from '../lib/index.js';
import type { Scorer } from '../lib/server/index.js';
import { STUB_MODEL } from './queue-support.js';
import { stubScorer } from './server-support.js';

export interface FailingEngine {
  readonly scorer: Scorer;
  /** Whether it fails; 'files': with encoded images only, not with the gray frame. */
  failing: boolean | 'files';
  /** Calls since the start. */
  asked: number;
  /** Of them those with a frame: the questions, the warm-up included. */
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
