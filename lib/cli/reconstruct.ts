// diad reconstruct: writes reconstructions as PNG files.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { expandInputs, loadModel, outputName, workThrough, type ModelOptions } from './inputs.js';

interface Options extends ModelOptions {
  readonly out: string;
  readonly seed: number;
}

/** Writes the reconstruction of each file as PNG and prints its path. */
export async function reconstruct(inputs: string[], options: Options): Promise<void> {
  const files = await expandInputs(inputs);
  await mkdir(options.out, { recursive: true });
  const diad = await loadModel(options);
  const work = async (file: string, index: number, signal: AbortSignal): Promise<string> => {
    const { image } = await diad.reconstruct(await readFile(file), { seed: options.seed, signal });
    const out = path.join(options.out, outputName(file, index, '.png'));
    await writeFile(out, image);
    return out;
  };
  try {
    await workThrough(files, 8, work, (out) => {
      process.stdout.write(`${out}\n`);
    });
  } finally {
    await diad.close();
  }
}
