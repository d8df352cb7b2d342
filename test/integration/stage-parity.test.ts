// Converted checkpoints in the published format, compared with the published reference at every stage.
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import sharp, { type Sharp } from 'sharp';
import { Diad, verifyBundle } from '../../lib/index.js';
import { readNpy } from '../../lib/io/npy.js';
import { CPU_FLOAT32, largestDifference } from '../../lib/verify/verify.js';
import { inFolder, python, root, runProgram } from '../support/support.js';

const SEED = 5;
const ONE_LEVEL = 1.01 / 255 / 0.224; // in a normalized image
const environment = { PYTHONPATH: path.join(root, 'python') };

async function run(command: string, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runProgram(command, args, environment);
  assert.equal(code, 0, stderr);
  return stdout;
}

/** Writes a published-format checkpoint and converts it with the command line. */
async function converted(
  folder: string,
  size: 'small' | 'medium',
): Promise<{ readonly published: string[]; readonly bundle: string }> {
  await run(python, [path.join(root, 'python', 'tests', 'published_format.py'), folder, size]);
  const [checkpoint, config, bundle] = ['model.ckpt', 'diad.yaml', 'bundle'].map((name) =>
    path.join(folder, name),
  ) as [string, string, string];
  const convert = ['convert', '--checkpoint', checkpoint, '--config', config, '--out', bundle];
  assert.match(
    await run(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...convert]),
    /ignored: .*optimizer_states/,
  );
  return { published: ['--published', checkpoint, '--config-file', config], bundle };
}

/** Returns noise over a gradient, so that every pixel differs from its neighbors. */
function raw(width: number, height: number, channels: 1 | 3 | 4): Sharp {
  const data = Buffer.alloc(width * height * channels);
  let state = width * 31 + height;
  for (let i = 0; i < data.length; i++) {
    state = (state * 1103515245 + 12345) % 2147483648;
    data[i] = Math.min(255, ((i / data.length) * 160 + (state >> 16) / 350) | 0);
  }
  return sharp(data, { raw: { width, height, channels } });
}

async function writeImages(folder: string): Promise<{ readonly exact: string[]; readonly jpeg: string[] }> {
  const images: Record<string, Sharp> = {
    'wide.png': raw(90, 40, 3).png(),
    'high.png': raw(70, 330, 3).png(),
    'large.png': raw(400, 290, 3).png(),
    'tiny.png': raw(3, 2, 3).png(),
    'gray.png': raw(61, 77, 1).toColorspace('b-w').png(),
    'alpha.png': raw(50, 80, 4).png(),
    'deep.png': raw(60, 50, 3).toColorspace('rgb16').png(),
    'lossless.webp': raw(130, 60, 3).webp({ lossless: true }),
    'tagged.tiff': raw(64, 48, 3).withMetadata({ orientation: 8 }).tiff({ compression: 'lzw' }),
    'photo.jpg': raw(120, 90, 3).blur(2).jpeg({ quality: 92 }),
    'turned.jpg': raw(120, 90, 3).blur(2).withMetadata({ orientation: 6 }).jpeg({ quality: 92 }),
  };
  await mkdir(folder, { recursive: true });
  for (const [name, image] of Object.entries(images))
    await writeFile(path.join(folder, name), await image.toBuffer());
  const names = Object.keys(images).map((name) => path.join(folder, name));
  return {
    exact: names.filter((name) => !name.endsWith('.jpg')),
    jpeg: names.filter((name) => name.endsWith('.jpg')),
  };
}

async function reference(
  published: readonly string[],
  files: readonly string[],
  dump: string,
  more: readonly string[] = [],
): Promise<void> {
  await run(python, [
    '-m',
    'diad_reference',
    'score',
    ...published,
    '--seed',
    String(SEED),
    '--dump',
    dump,
    ...more,
    ...files,
  ]);
}

/** Compares the stage files of two dumps. */
async function compareDumps(mine: string, expected: string, number: number, what: string): Promise<void> {
  const name = String(number).padStart(3, '0');
  for (const [stage, tolerance] of Object.entries(CPU_FLOAT32)) {
    const [a, b] = (await Promise.all(
      [mine, expected].map((folder) => readNpy(path.join(folder, `${name}.${stage}.npy`))),
    )) as [Awaited<ReturnType<typeof readNpy>>, Awaited<ReturnType<typeof readNpy>>];
    assert.deepEqual(a.shape, b.shape, `${what}: shape of ${stage}`);
    const difference = largestDifference(a.data, b.data);
    const judged = stage === 'score' ? difference / Math.abs(b.data[0]!) : difference;
    assert.ok(judged <= tolerance, `${what}: ${stage} differs by ${judged}`);
  }
}

describe('parity of converted checkpoints', () => {
  it('small: Node matches the published reference on several kinds of images @slow', () =>
    inFolder(async (folder) => {
      const { published, bundle } = await converted(folder, 'small');
      const { exact, jpeg } = await writeImages(path.join(folder, 'images'));
      const dumps = { node: path.join(folder, 'node'), reference: path.join(folder, 'reference') };
      await reference(published, [...exact, ...jpeg], dumps.reference, ['--as-published']);
      const score = [
        'score',
        '--model',
        bundle,
        '--seed',
        String(SEED),
        '--dump',
        dumps.node,
        ...exact,
        ...jpeg,
      ];
      await run(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...score]);
      for (const [i, file] of exact.entries())
        await compareDumps(dumps.node, dumps.reference, i, path.basename(file));
      for (const [i, file] of jpeg.entries()) {
        const name = `${String(exact.length + i).padStart(3, '0')}.x.npy`;
        const [a, b] = [
          await readNpy(path.join(dumps.node, name)),
          await readNpy(path.join(dumps.reference, name)),
        ];
        assert.ok(largestDifference(a.data, b.data) <= ONE_LEVEL, `${file}: more than one gray level`);
      }
      assert.equal((await verifyBundle(bundle)).passed, true);
    }));

  it('medium: Node and diad-engine match the published reference', () =>
    inFolder(async (folder) => {
      const { published, bundle } = await converted(folder, 'medium');
      const { data, info } = await raw(300, 200, 3).raw().toBuffer({ resolveWithObject: true });
      const frame = path.join(folder, 'frame.ppm');
      await writeFile(frame, Buffer.concat([Buffer.from(`P6\n${info.width} ${info.height}\n255\n`), data]));
      const image = path.join(folder, 'frame.png');
      await sharp(data, { raw: { width: info.width, height: info.height, channels: 3 } })
        .png()
        .toFile(image);
      const [expected, engine, node] = ['reference', 'engine', 'node'].map((name) =>
        path.join(folder, name),
      ) as [string, string, string];
      await reference(published, [image], expected, ['--as-published']);
      const binary = path.join(root, 'build', 'Release', 'diad-engine');
      await run(binary, ['score', '--bundle', bundle, '--seed', String(SEED), '--dump', engine, frame]);
      await run(process.execPath, [
        ...[path.join(root, 'dist', 'cli', 'main.js'), 'score', '--model', bundle],
        ...['--seed', String(SEED), '--dump', node, image],
      ]);
      await compareDumps(engine, expected, 0, 'diad-engine');
      await compareDumps(node, expected, 0, 'Node');
    }));

  it('convert rejects an invalid checkpoint with the reason and writes nothing', () =>
    inFolder(async (folder) => {
      await run(python, [path.join(root, 'python', 'tests', 'published_format.py'), folder, 'small']);
      const config = path.join(folder, 'diad.yaml');
      await writeFile(
        config,
        (await readFile(config, 'utf8')).replaceAll('context_dim: 48', 'context_dim: 64'),
      );
      const { code, stderr } = await runProgram(
        process.execPath,
        [
          ...[
            path.join(root, 'dist', 'cli', 'main.js'),
            'convert',
            '--checkpoint',
            path.join(folder, 'model.ckpt'),
          ],
          ...['--config', config, '--out', path.join(folder, 'bundle')],
        ],
        environment,
      );
      assert.equal(code, 1);
      assert.match(stderr, /does not match the configuration; .*with a wrong shape: .*attn2\.to_k\.weight/);
      await assert.rejects(Diad.load(path.join(folder, 'bundle')), /no bundle folder/);
    }));
});
