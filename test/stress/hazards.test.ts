// Hazards that crash native addons, as listed in docs/design/reliability.md.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { evaluateClass, type ClassArrays } from '../../lib/evaluation/metrics.js';
import { addonPath } from '../../lib/native/addon.js';
import { example, root, runModule } from '../support/support.js';

const IMAGE = JSON.stringify(path.join(root, 'examples', 'gear-good.png'));

describe('hazards of native addons @slow', () => {
  it('links the addon so that it is never unmapped and exports only the symbols that Node needs', () => {
    const file = addonPath();
    const readelf = (...options: string[]): string =>
      execFileSync('readelf', ['-W', ...options, file], { encoding: 'utf8' });
    assert.match(readelf('--dynamic'), /FLAGS_1\).*NODELETE/);
    const exported = [...readelf('--dyn-syms').matchAll(/GLOBAL\s+DEFAULT\s+\d+ (\S+)$/gm)].map(
      ([, name]) => name,
    );
    assert.deepEqual(exported.sort(), ['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
  });

  it('metrics copy arrays before they can be overwritten or transferred', async () => {
    const side = 256;
    const make = (): ClassArrays => ({
      maps: Float32Array.from({ length: 8 * side * side }, (_, i) => ((i * 7919) % 10007) / 10007),
      masks: Uint8Array.from({ length: 8 * side * side }, (_, i) => ((i * 104729) % 1009 < 90 ? 1 : 0)),
      height: side,
      width: side,
      indices: Uint32Array.of(0, 2, 5, 7),
      imageScores: new Float64Array(),
      imageLabels: new Uint8Array(),
    });
    const options = { mode: 'exact', fprLimit: 0.3, scratchBytes: 2 ** 20 } as const;
    const expected = await evaluateClass(make(), options);
    assert.ok(expected.metrics.pixel_auroc! > 0);
    const overwritten = make();
    const first = evaluateClass(overwritten, options);
    overwritten.maps.fill(0.5);
    overwritten.masks.fill(0);
    assert.deepEqual(await first, expected);
    const transferred = make();
    const second = evaluateClass(transferred, options);
    const buffers = [transferred.maps.buffer, transferred.masks.buffer] as ArrayBuffer[];
    structuredClone(null, { transfer: buffers });
    assert.equal(transferred.maps.length, 0);
    assert.deepEqual(await second, expected);
  });

  it('a closed model leaves no thread behind, including those of OpenMP', async () => {
    const { code, stdout, stderr } = await runModule(`
      import { readFileSync, readdirSync } from 'node:fs';
      import { settledThreads } from ${JSON.stringify(pathToFileURL(path.join(root, 'bench', 'abuse', 'harness.mjs')).href)};
      const image = readFileSync(${IMAGE});
      const once = async (maxBatch) => {
        const diad = await Diad.load(undefined, { threads: 3, maxBatch, warmup: false });
        await diad.score(image, { timeoutMs: 60_000 });
        const during = readdirSync('/proc/self/task').length;
        await diad.close();
        return during;
      };
      await once(1); // LibTorch and libuv create their threads here
      const before = await settledThreads();
      const during = await once(2);
      for (let i = 3; i < 7; i++) await once(i);
      console.log(JSON.stringify({ before, during, after: await settledThreads() }));`);
    assert.equal(code, 0, stderr);
    const { before, during, after } = JSON.parse(stdout) as Record<'before' | 'during' | 'after', number>;
    assert.ok(during > before, `${during} threads while a model is loaded, ${before} before`);
    assert.equal(after, before);
  });

  it('neither exit nor a terminated worker waits for a loading bundle', async () => {
    const library = JSON.stringify(pathToFileURL(path.join(root, 'dist', 'index.js')).href);
    const loading = `await (await Diad.load(undefined, { warmup: false })).close();
      const pending = Diad.load(undefined, { maxBatch: 3 }).then(() => 'loaded', (error) => error.code);`;
    const worker = `import { parentPort } from 'node:worker_threads'; import { Diad } from ${library}; ${loading} parentPort.postMessage('loading');`;
    const { code, stdout, stderr } = await runModule(`
      import { Worker } from 'node:worker_threads';
      const diad = await Diad.load();
      for (let i = 0; i < 3; i++) {
        const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(worker)})));
        await new Promise((resolve) => worker.once('message', resolve));
        await new Promise((resolve) => setTimeout(resolve, 15 * i));
        await worker.terminate();
      }
      console.log('alive');
      ${loading}
      setTimeout(() => process.exit(5), 30);`);
    assert.deepEqual([code, stdout.trim()], [5, 'alive'], stderr);
    assert.doesNotMatch(stderr, /terminate called|Segmentation|core dumped/);
  });

  it('scores an input buffer that is transferred right after the call', async () => {
    const { Diad } = await import('../../lib/index.js');
    const diad = await Diad.load();
    const image = Uint8Array.from(await example('gear-good.png'));
    const { score } = await diad.score(image);
    const pending = diad.score(image);
    structuredClone(null, { transfer: [image.buffer] });
    assert.equal((await pending).score, score);
    await diad.close();
  });
});
