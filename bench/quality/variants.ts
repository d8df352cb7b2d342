// Variants to compare: copies of a trained bundle with one kind of evidence, and the calibrated base bundle.
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import { writeTogether } from '../../lib/io/atomic-file.js';
import { calibrate } from '../../lib/evaluation/calibrate.js';
import type { CalibrationImage } from '../../lib/evaluation/calibration-types.js';
import { copyBundle, writeCalibration } from '../../lib/evaluation/calibration-files.js';
import { calibrationImages } from '../../lib/cli/training-run.js';
import { Diad } from '../../lib/index.js';

/** Weights of the two normalized maps. */
export interface Weights {
  readonly reconstruction: number;
  readonly memory: number;
}

/**
 * Copies a bundle and changes the weights of its evidence. All files except the manifest and its hash are
 * shared with the original.
 *
 * @throws Error if the bundle has no evidence
 */
export async function deriveBundle(from: string, to: string, weights: Weights): Promise<void> {
  await rm(to, { recursive: true, force: true });
  await copyBundle(from, to);
  const file = path.join(to, 'manifest.json');
  const manifest = JSON.parse(await readFile(file, 'utf8')) as { evidence?: { weights: Weights } };
  if (manifest.evidence === undefined)
    throw new Error(`Expected a bundle with evidence but ${from} has none`);
  const text = JSON.stringify(
    { ...manifest, evidence: { ...manifest.evidence, weights, classWeights: undefined } },
    null,
    2,
  );
  const seal = `${createHash('sha256').update(text).digest('hex')}\n`;
  // Replace the files instead of writing to them, because both are links to the original files.
  await writeTogether([
    [file, text],
    [path.join(to, 'manifest.sha256'), seal],
  ]);
}

/** Calibrates a bundle in place. Returns the time in seconds. */
export async function calibrateBundle(bundle: string, good: readonly CalibrationImage[]): Promise<number> {
  const started = performance.now();
  const diad = await Diad.load(bundle, { calibration: false });
  try {
    const { evidence } = diad.info.bundle;
    const { calibration, normality } = await calibrate(diad, {
      good: evidence === undefined ? good : calibrationImages(good, evidence),
    });
    await writeCalibration(bundle, calibration, normality);
  } finally {
    await diad.close();
  }
  return (performance.now() - started) / 1000;
}
