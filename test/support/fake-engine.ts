// A Diad with an engine in JavaScript, for tests of the code around the native part.
import { Diad, type BundleEvidence } from '../../lib/index.js';
import type { Calibration } from '../../lib/calibration/calibration.js';
import type { NativeEngine, NativeCalibration, NativeSubmitOptions } from '../../lib/native/addon.js';
import { validateLoadOptions } from '../../lib/scoring/options.js';

export const EVIDENCE: BundleEvidence = {
  dimensions: 4,
  grid: 2,
  memoryVectors: 100,
  weights: { reconstruction: 0.5, memory: 1 },
};
export const DIGEST = 'a'.repeat(64);

const NO_TIME = {
  queueMs: 0,
  computeMs: 0,
  resizeMs: 0,
  encodeMs: 0,
  denoiseMs: 0,
  decodeMs: 0,
  extractMs: 0,
  mapMs: 0,
};
const NO_EVIDENCE = Object.assign(new Error('The bundle has no evidence in its manifest'), {
  code: 'ERR_DIAD_INVALID_ARGUMENT',
});

export interface FakeEngine {
  readonly diad: Diad;
  /** Options of every submission. */
  readonly submitted: NativeSubmitOptions[];
  /** Calls of createCalibrator, finishCalibrator and dropCalibrator. */
  readonly calls: string[];
}

/** Options of {@link fakeEngine}. */
interface Options {
  readonly evidence?: BundleEvidence | undefined;
  readonly calibration?: Calibration;
  /** Result of finishCalibrator; default: row i of a judged image i scores i and has the peak 2 i. */
  readonly finish?: (submitted: readonly NativeSubmitOptions[]) => Promise<NativeCalibration>;
}

/** Rows of the images in the statistics: image i scores i, its map maximum is 2 i. */
export function rowsOf(submitted: readonly NativeSubmitOptions[]): NativeCalibration {
  const indices = submitted
    .flatMap(({ calibration }) => (calibration?.inStatistics === true ? [calibration.index] : []))
    .sort((a, b) => a - b);
  const values = Float64Array.from(indices);
  const rows = {
    indices: Uint32Array.from(indices),
    scores: values,
    reconstruction: values,
    memory: values,
    peaks: values.map((value) => 2 * value),
  };
  return { normality: Uint8Array.of(1, 2, 3), images: rows };
}

/** Creates a loaded bundle with an engine that scores every image 1.5 and records its calls. */
export function fakeEngine({
  evidence = EVIDENCE,
  calibration,
  finish = (all) => Promise.resolve(rowsOf(all)),
}: Options = {}): FakeEngine {
  const submitted: NativeSubmitOptions[] = [];
  const calls: string[] = [];
  const engine: NativeEngine = {
    info: () => '{}',
    stats: () => {
      throw new Error('not asked for');
    },
    submit: (_frame, options) => {
      submitted.push(options);
      const found = { reconstruction: 0.25, memory: 1.25 };
      const result = {
        score: 1.5,
        size: 2,
        map: new Float32Array(4),
        reconstruction: new Uint8Array(12),
        evidence: found,
        timings: NO_TIME,
        batchSize: 1,
      };
      return { id: submitted.length, result: Promise.resolve(result) };
    },
    cancel: () => false,
    createCalibrator: () => {
      if (evidence === undefined) throw NO_EVIDENCE;
      calls.push('create');
      return 7;
    },
    finishCalibrator: (id) => {
      calls.push(`finish ${id}`);
      return finish(submitted);
    },
    dropCalibrator: (id) => {
      calls.push(`drop ${id}`);
    },
    close: () => Promise.resolve(),
  };
  const bundle = {
    digest: DIGEST,
    imageSize: 2,
    calibratedClasses: [],
    ...(evidence === undefined ? {} : { evidence }),
  };
  const Loaded = Diad as unknown as new (...args: unknown[]) => Diad; // the constructor is private
  const info = { bundle, precision: 'float32' };
  return {
    diad: new Loaded(engine, info, validateLoadOptions(undefined, undefined), calibration),
    submitted,
    calls,
  };
}
