// Uses the package's types like a consumer; compiled with several module resolutions, never run.
import { readFile } from 'node:fs/promises';
import {
  Diad,
  DiadError,
  type DiadErrorCode,
  type DiadInfo,
  type ImageInput,
  type LoadOptions,
  type ScoreResult,
} from 'diad';

const options: LoadOptions = { device: 'cpu', precision: 'float32', maxBatch: 4 };

export async function scoreFile(file: string): Promise<number> {
  const diad: Diad = await Diad.load(undefined, options);
  const image: ImageInput = await readFile(file);
  const result: ScoreResult = await diad.score(image, { seed: 3n, signal: AbortSignal.timeout(1000) });
  const info: DiadInfo = diad.info;
  const values: Float32Array = result.map.data;
  for await (const { score } of diad.scoreMany([image]))
    if (score > info.bundle.imageSize) throw new Error('unlikely');
  await diad.close();
  return result.score + values.length;
}

export function codeOf(error: unknown): DiadErrorCode | undefined {
  return error instanceof DiadError ? error.code : undefined;
}

// @ts-expect-error: an unknown option must not pass
export const wrong: LoadOptions = { devise: 'cpu' };
