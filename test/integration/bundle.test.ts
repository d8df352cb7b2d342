// Missing, damaged and invalid bundles, and their calibration.
import assert from 'node:assert/strict';
import { open, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Diad } from '../../lib/index.js';
import { baseBundle, editManifest, example, inFolder, rejects, withBundleCopy } from '../support/support.js';

describe('bundle', () => {
  it('rejects missing bundles', async () => {
    await rejects(
      Diad.load('/nowhere/at/all'),
      'ERR_DIAD_BUNDLE_NOT_FOUND',
      /no bundle folder at \/nowhere\/at\/all/,
    );
    await inFolder((folder) =>
      rejects(Diad.load(folder), 'ERR_DIAD_BUNDLE_NOT_FOUND', /holds no manifest\.json/),
    );
    await rejects(Diad.load(path.join(baseBundle, 'manifest.json')), 'ERR_DIAD_BUNDLE_NOT_FOUND');
  });

  for (const name of [
    'manifest.json',
    'manifest.sha256',
    'encoder.pt',
    'denoiser.pt',
    'decoder.pt',
    'extractor.pt',
    'MODEL_CARD.md',
  ]) {
    it(`detects one flipped bit in ${name}`, () =>
      withBundleCopy(async (bundle) => {
        const file = await open(path.join(bundle, name), 'r+');
        const { size } = await file.stat();
        const byte = Buffer.alloc(1);
        await file.read(byte, 0, 1, size >> 1);
        byte[0]! ^= 1;
        await file.write(byte, 0, 1, size >> 1);
        await file.close();
        const named = name === 'manifest.sha256' ? /manifest\.sha256/ : new RegExp(name.replace('.', '\\.'));
        await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_CORRUPT', named);
      }));
  }

  it('detects truncated and missing files', () =>
    withBundleCopy(async (bundle) => {
      const file = path.join(bundle, 'decoder.pt');
      await truncate(file, (await stat(file)).size >> 1);
      await rejects(
        Diad.load(bundle),
        'ERR_DIAD_BUNDLE_CORRUPT',
        /decoder\.pt has \d+ bytes, the manifest says \d+/,
      );
      await rejects(Diad.load(bundle, { verify: false }), 'ERR_DIAD_BUNDLE_CORRUPT', /decoder\.pt/);
      await rm(file);
      await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_CORRUPT', /decoder\.pt is missing/);
    }));

  it('rejects a link that leaves the bundle', () =>
    withBundleCopy(async (bundle) => {
      await rm(path.join(bundle, 'decoder.pt'));
      await symlink(path.join(baseBundle, 'decoder.pt'), path.join(bundle, 'decoder.pt'));
      await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_CORRUPT', /decoder\.pt is a link that leads out/);
    }));

  const edits: readonly (readonly [
    string,
    (manifest: Record<string, Record<string, unknown>>) => void,
    RegExp,
  ])[] = [
    [
      'another format version',
      (m) => Object.assign(m, { formatVersion: 2 }),
      /Expected 1 for formatVersion but received 2; .* another version/,
    ],
    [
      'another format',
      (m) => Object.assign(m, { format: 'onnx' }),
      /Expected "diad-bundle" for format but received "onnx"/,
    ],
    ['no schedule', (m) => delete m['schedule'], /Expected the key schedule but it is absent/],
    [
      'a size that is text',
      (m) => Object.assign(m['image']!, { size: '128' }),
      /image\.size but received "128"/,
    ],
    ['a negative size', (m) => Object.assign(m['image']!, { size: -1 }), /image\.size but received -1/],
    [
      'an invalid alpha',
      (m) => Object.assign((m['schedule']!['steps'] as object[])[0]!, { alphaBar: 2 }),
      /schedule\.steps\[0\]\.alphaBar/,
    ],
    ['no steps', (m) => Object.assign(m['schedule']!, { steps: [] }), /1 to 1000 steps/],
    [
      'a path in files',
      (m) => Object.assign(m['files']!, { '../x.pt': { size: 1, sha256: '' } }),
      /plain file names in files but received "\.\.\/x\.pt"/,
    ],
    [
      'pools larger than the map',
      (m) => Object.assign(m['score']!, { poolSize: 60, poolCount: 9 }),
      /leave nothing/,
    ],
  ];
  for (const [what, edit, message] of edits) {
    it(`rejects a manifest with ${what}`, () =>
      withBundleCopy(async (bundle) => {
        await editManifest(bundle, edit);
        await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_INVALID', message);
      }));
  }

  it('rejects a manifest that is not JSON', () =>
    withBundleCopy(async (bundle) => {
      await writeFile(path.join(bundle, 'manifest.json'), '{"format": ');
      await rejects(Diad.load(bundle, { verify: false }), 'ERR_DIAD_BUNDLE_INVALID', /does not parse/);
    }));

  it('reports the missing method when modules are swapped', () =>
    withBundleCopy(async (bundle) => {
      await writeFile(path.join(bundle, 'denoiser.pt'), await readFile(path.join(bundle, 'decoder.pt')));
      await editManifest(bundle, (manifest) => {
        const files = manifest['files'] as unknown as Record<string, unknown>;
        files['denoiser.pt'] = files['decoder.pt'];
      });
      await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_INVALID', /denoiser\.pt/);
    }));

  it('rejects an unknown device', async () => {
    await rejects(
      Diad.load(undefined, { device: 'cuda:97' }),
      'ERR_DIAD_DEVICE_UNAVAILABLE',
      /cuda:97 is not available/,
    );
  });

  it('returns threshold and verdict with a calibration', () =>
    withBundleCopy(async (bundle) => {
      const gear = await example('gear-good.png');
      const plain = await Diad.load(bundle, { warmup: false });
      const { score } = await plain.score(gear);
      await plain.close();
      for (const [threshold, anomalous] of [
        [score + 0.01, false],
        [score - 0.01, true],
      ] as const) {
        await writeFile(path.join(bundle, 'calibration.json'), JSON.stringify({ threshold }));
        const diad = await Diad.load(bundle, { warmup: false });
        const result = await diad.score(gear);
        assert.deepEqual(
          [result.threshold, result.anomalous, diad.info.bundle.threshold],
          [threshold, anomalous, threshold],
        );
        await diad.close();
      }
      for (const broken of ['{', '[]', '{"threshold": "1"}', '{"threshold": null}']) {
        await writeFile(path.join(bundle, 'calibration.json'), broken);
        await rejects(Diad.load(bundle), 'ERR_DIAD_BUNDLE_INVALID', /calibration\.json/);
      }
    }));

  it('shares one queue between loads of the same bundle', async () => {
    const [one, two] = await Promise.all([Diad.load(), Diad.load()]);
    const before = two.stats().completed;
    await one.score(await example('gear-good.png'));
    assert.equal(two.stats().completed, before + 1);
    await one.close();
    assert.ok((await two.score(await example('gear-good.png'))).score > 0);
    await two.close();
  });
});
