// diad verify.
import assert from 'node:assert/strict';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import path from 'node:path';
import process from 'node:process';
import { verifyBundle } from '../../lib/index.js';
import { readNpy, writeNpy } from '../../lib/io/npy.js';
import { largestDifference, tolerancesFor } from '../../lib/verify/verify.js';
import { inFolder, python, rejects, root, runProgram, withBundleCopy } from '../support/support.js';

const cli = (...args: string[]) =>
  runProgram(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), 'verify', ...args]);

/** Changes a file of a bundle and its manifest, like an export with other results. */
async function replaceFile(
  bundle: string,
  name: string,
  change: (file: string) => Promise<void>,
): Promise<void> {
  const file = path.join(bundle, name);
  await change(file);
  const manifestFile = path.join(bundle, 'manifest.json');
  const manifest = JSON.parse(await readFile(manifestFile, 'utf8')) as {
    files: Record<string, { sha256: string; size: number }>;
  };
  const bytes = await readFile(file);
  manifest.files[name] = { sha256: createHash('sha256').update(bytes).digest('hex'), size: bytes.length };
  const text = JSON.stringify(manifest);
  await writeFile(manifestFile, text);
  await writeFile(
    path.join(bundle, 'manifest.sha256'),
    `${createHash('sha256').update(text).digest('hex')}\n`,
  );
}

describe('verify', () => {
  it('passes for the base bundle: table, JSON, exit code 0', async () => {
    const { code, stdout, stderr } = await cli();
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, /^map +\d\.\d\de-\d+ +\d\.\d\de-\d+ +0\.00002 +pass$/m);
    assert.match(stdout, /2 golden images: pass/);
    const report = JSON.parse((await cli('--json')).stdout) as {
      passed: boolean;
      stages: { stage: string; maxAbsolute: number }[];
    };
    assert.equal(report.passed, true);
    assert.equal(report.stages.length, 12);
    assert.equal(report.stages.find(({ stage }) => stage === 'x')?.maxAbsolute, 0);
  });

  it('uses separate tolerances for half precision', async () => {
    const report = await verifyBundle(undefined, { device: 'cpu', precision: 'bfloat16' });
    assert.equal(report.precision, 'bfloat16');
    const stage = (name: string) => report.stages.find((found) => found.stage === name)!;
    assert.ok(stage('map').maxAbsolute > 2e-5, 'bfloat16 cannot be as exact as float32');
    assert.equal(stage('map').tolerance, 3e-2);
    assert.equal(stage('step_x').tolerance, undefined);
    assert.deepEqual(Object.keys(tolerancesFor('cuda:1', 'float32')), ['x', 'map', 'score']);
  });

  it('uses a separate tolerance for int8, or rejects it without the instructions', async () => {
    const flags = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
    const verified = verifyBundle(undefined, { device: 'cpu', precision: 'int8' });
    if (!flags.includes('avx512_vnni'))
      return rejects(verified, 'ERR_DIAD_DEVICE_UNAVAILABLE', /int8 needs a CPU with AVX-512 VNNI/);
    const report = await verified;
    const stage = (name: string) => report.stages.find((found) => found.stage === name)!;
    for (const name of ['moments', 'step_x'])
      assert.ok(stage(name).maxAbsolute > 1e-3, `${name} cannot be as exact as in float32`);
    assert.deepEqual([stage('map').tolerance, stage('score').tolerance], [5e-2, 2e-2]);
    assert.equal(report.passed, true);
  });

  it('rejects int8 without the instructions', async () => {
    const { code, stderr } = await runProgram(
      process.execPath,
      [
        path.join(root, 'dist', 'cli', 'main.js'),
        'score',
        '--precision',
        'int8',
        path.join(root, 'examples', 'gear-good.png'),
      ],
      { ATEN_CPU_CAPABILITY: 'avx2' },
    );
    assert.equal(code, 1);
    assert.match(
      stderr,
      /ERR_DIAD_DEVICE_UNAVAILABLE.*int8 needs a CPU with AVX-512 VNNI; use float32 or bfloat16/,
    );
  });

  it('fails a stage with a slightly changed golden result, exit code 1', () =>
    withBundleCopy(async (bundle) => {
      await replaceFile(bundle, 'golden/001.map.npy', async (file) => {
        const { shape, data } = await readNpy(file);
        data[77]! += 5e-5;
        await writeNpy(file, shape, data);
      });
      const { code, stdout } = await cli('--bundle', bundle);
      assert.equal(code, 1);
      assert.match(stdout, /^map +(4\.9|5\.0)\de-5 .*FAIL$/m);
      assert.match(stdout, /^map_raw .*pass$/m);
    }));

  it('detects one flipped bit in golden/ before computing anything', () =>
    withBundleCopy(async (bundle) => {
      const file = path.join(bundle, 'golden', '000.z.npy');
      const bytes = await readFile(file);
      bytes[bytes.length - 1]! ^= 1;
      await writeFile(file, bytes);
      await rejects(
        verifyBundle(bundle),
        'ERR_DIAD_BUNDLE_CORRUPT',
        /golden\/000\.z\.npy does not have the sha256/,
      );
    }));

  it('rejects an invalid golden.json', () =>
    withBundleCopy(async (bundle) => {
      await replaceFile(bundle, 'golden/golden.json', (file) => writeFile(file, '{"cases": []}'));
      await rejects(verifyBundle(bundle), 'ERR_DIAD_BUNDLE_INVALID', /golden\.json is invalid/);
    }));

  it('ignores the calibration of another model; --model is an alias of --bundle', () =>
    withBundleCopy(async (bundle) => {
      await writeFile(
        path.join(bundle, 'calibration.json'),
        JSON.stringify({ threshold: 1, model: 'f'.repeat(64) }),
      );
      const { code, stdout } = await cli('--model', bundle);
      assert.equal(code, 0);
      assert.ok(stdout.startsWith(bundle));
      assert.equal((await cli('--model', bundle, '--bundle', bundle)).code, 1);
    }));

  it('explains how to get golden results for a bundle without them', () =>
    withBundleCopy(async (bundle) => {
      await rm(path.join(bundle, 'golden'), { recursive: true });
      const manifestFile = path.join(bundle, 'manifest.json');
      const manifest = JSON.parse(await readFile(manifestFile, 'utf8')) as { files: Record<string, unknown> };
      manifest.files = Object.fromEntries(
        Object.entries(manifest.files).filter(([name]) => !name.startsWith('golden/')),
      );
      const text = JSON.stringify(manifest);
      await writeFile(manifestFile, text);
      await writeFile(
        path.join(bundle, 'manifest.sha256'),
        `${createHash('sha256').update(text).digest('hex')}\n`,
      );
      await rejects(
        verifyBundle(bundle),
        'ERR_DIAD_BUNDLE_INVALID',
        /contains no golden\/ .* export or convert it again/,
      );
    }));

  it('uses the tolerances of the Python tests', () =>
    inFolder(async (folder) => {
      const source = 'import json, stage_tolerances; print(json.dumps(stage_tolerances.TOLERANCES))';
      const { stdout } = await runProgram(
        python,
        ['-c', source],
        { PYTHONPATH: path.join(root, 'python', 'tests') },
        folder,
      );
      assert.deepEqual(JSON.parse(stdout), tolerancesFor('cpu', 'float32'));
    }));

  it('treats NaN and different lengths as infinite differences', () => {
    assert.equal(largestDifference(Float32Array.of(1, 2), Float32Array.of(1, 2.5)), 0.5);
    assert.equal(largestDifference(Float32Array.of(1, NaN), Float32Array.of(1, 2)), Infinity);
    assert.equal(largestDifference(Float32Array.of(1), Float32Array.of(1, 2)), Infinity);
  });
});
