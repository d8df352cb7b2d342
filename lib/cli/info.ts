// diad info: describes a bundle.
import process from 'node:process';
import { loadModel, type ModelOptions } from './inputs.js';

/** Prints the properties of a bundle and the engine. */
export async function info(options: ModelOptions & { readonly json?: boolean }): Promise<void> {
  const diad = await loadModel(options);
  const { bundle, device, precision, threads, libtorch, engine, loadMs } = diad.info;
  await diad.close();
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(diad.info, null, 2)}\n`);
    return;
  }
  const cut =
    bundle.calibratedTile === undefined ? '' : `, for tiles of ${bundle.calibratedTile.size} pixels`;
  const lines: [string, string][] = [
    ['bundle', `${bundle.name} (${bundle.path})`],
    ['', bundle.description],
    ['classes', bundle.classes.join(', ') || 'not specified'],
    ['image', `${bundle.imageSize} x ${bundle.imageSize}, ${bundle.steps} steps`],
    ['size', `${(bundle.sizeBytes / 2 ** 20).toFixed(1)} MiB`],
    ['threshold', bundle.threshold === undefined ? 'not calibrated' : `${bundle.threshold}${cut}`],
    ['digest', bundle.digest],
    ['device', `${device}, ${precision}, ${threads} threads`],
    ['LibTorch', `${libtorch.version}, ${libtorch.source} (${libtorch.path})`],
    ['engine', `${engine}, loaded in ${loadMs.toFixed(0)} ms`],
  ];
  process.stdout.write(`${lines.map(([name, value]) => `${name.padEnd(10)} ${value}`).join('\n')}\n`);
}
