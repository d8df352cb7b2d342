// Command line.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { inFolder, root, runProgram } from '../support/support.js';

const diad = (args: readonly string[], env: NodeJS.ProcessEnv = {}) =>
  runProgram(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args], env);

async function withImages<T>(use: (folder: string) => Promise<T>): Promise<T> {
  return inFolder(async (folder) => {
    await mkdir(path.join(folder, 'sub'));
    await cp(path.join(root, 'examples', 'gear-good.png'), path.join(folder, 'b.png'));
    await cp(path.join(root, 'examples', 'capsule-crack.jpg'), path.join(folder, 'sub', 'A.JPG'));
    await writeFile(path.join(folder, 'notes.txt'), 'not an image');
    return use(folder);
  });
}

describe('command line', () => {
  it('score --json prints an object per image of a folder; --csv and --out write files', () =>
    withImages(async (folder) => {
      const [csv, out] = [path.join(folder, 'tables', 'scores.csv'), path.join(folder, 'out')];
      const { code, stdout, stderr } = await diad([
        'score',
        folder,
        '--json',
        '--csv',
        csv,
        '--out',
        out,
        '--seed',
        '4',
      ]);
      assert.equal(code, 0, stderr);
      const rows = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as { file: string; score: number; seed: number; map: string });
      assert.deepEqual(
        rows.map(({ file }) => path.relative(folder, file)),
        ['b.png', path.join('sub', 'A.JPG')],
      );
      for (const { score, seed, map } of rows) {
        assert.ok(score > 0);
        assert.equal(seed, 4);
        assert.equal((await readFile(map)).subarray(1, 4).toString(), 'PNG');
      }
      const lines = (await readFile(csv, 'utf8')).trim().split('\n');
      assert.equal(lines[0], 'file,score,seed,threshold,anomalous,map');
      assert.equal(lines.length, 3);
      assert.equal(Number(lines[1]!.split(',')[1]), rows[0]!.score);
    }));

  it('reports a bad file, continues, and exits with code 1', () =>
    withImages(async (folder) => {
      const { code, stdout, stderr } = await diad([
        'score',
        path.join(folder, 'notes.txt'),
        path.join(folder, 'gone.png'),
        path.join(folder, 'b.png'),
        '--json',
      ]);
      assert.equal(code, 1);
      assert.equal(stdout.trim().split('\n').length, 1);
      assert.match(stderr, /notes\.txt: Expected PNG, JPEG/);
      assert.match(stderr, /gone\.png: .*ENOENT/);
    }));

  it('applies --max-pixels in every command that loads a model', () =>
    withImages(async (folder) => {
      const { code, stderr } = await diad(['score', path.join(folder, 'b.png'), '--max-pixels', '100']);
      assert.equal(code, 1);
      assert.match(stderr, /at most 100 pixels .* raise maxPixels \(--max-pixels\)/);
    }));

  it('exits without stack trace or failure when the reader of the output closes it', () =>
    withImages(async (folder) => {
      for (let i = 0; i < 30; i++) await cp(path.join(folder, 'b.png'), path.join(folder, `${i}.png`));
      const child = spawn(
        process.execPath,
        [path.join(root, 'dist', 'cli', 'main.js'), 'score', folder, '--json'],
        { cwd: root },
      );
      let said = '';
      child.stderr.setEncoding('utf8').on('data', (part: string) => (said += part));
      child.stdout.once('data', () => child.stdout.destroy());
      const [code] = (await once(child, 'close')) as [number | null];
      assert.deepEqual([code, said], [0, '']);
    }));

  it('still writes requested files when the reader of the output closes it', () =>
    withImages(async (folder) => {
      for (let i = 0; i < 12; i++) await cp(path.join(folder, 'b.png'), path.join(folder, `${i}.png`));
      const [out, csv] = [path.join(folder, 'maps'), path.join(folder, 'scores.csv')];
      const args = ['score', folder, '--out', out, '--csv', csv];
      const child = spawn(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args], {
        cwd: root,
      });
      let said = '';
      child.stderr.setEncoding('utf8').on('data', (part: string) => (said += part));
      child.stdout.once('data', () => child.stdout.destroy());
      const [code] = (await once(child, 'close')) as [number | null];
      assert.deepEqual([code, said, (await readdir(out)).length], [0, '', 14]);
      assert.equal((await readFile(csv, 'utf8')).trim().split('\n').length, 15);
    }));

  it('ignores heat maps in a folder of images', () =>
    withImages(async (folder) => {
      for (let run = 0; run < 2; run++) {
        const { code, stdout, stderr } = await diad(['score', folder, '--out', folder]);
        assert.equal(code, 0, stderr);
        assert.equal(stdout.trim().split('\n').length, 2, stdout);
      }
      assert.equal((await readdir(folder)).filter((name) => name.endsWith('.heatmap.png')).length, 2);
    }));

  it('reports an unwritable table before loading anything', () =>
    withImages(async (folder) => {
      const { code, stdout, stderr } = await diad(['score', folder, '--csv', folder], {
        DIAD_LIBTORCH: '/nowhere',
      });
      assert.deepEqual([code, stdout], [1, '']);
      assert.match(stderr, /^diad: EISDIR: /);
    }));

  it('watch fails when the reader of the output closes it, so that a supervisor restarts it', () =>
    withImages(async (folder) => {
      const child = spawn(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), 'watch', folder], {
        cwd: root,
      });
      child.stderr.resume();
      child.stdout.once('data', () => {
        child.stdout.destroy();
        void cp(path.join(folder, 'b.png'), path.join(folder, 'late.png'));
      });
      const [code] = (await once(child, 'close')) as [number | null];
      assert.equal(code, 1);
    }));

  it('treats --version after a command as an option of the command', async () => {
    const { version } = JSON.parse(await readFile(path.join(root, 'package.json'), 'utf8')) as {
      version: string;
    };
    for (const option of ['--version', '-V']) assert.equal((await diad([option])).stdout, `${version}\n`);
    for (const args of [['--version', '2.x'], ['--version=2.x']]) {
      const { code, stdout, stderr } = await diad(['libtorch', 'install', ...args]);
      assert.deepEqual([code, stdout], [1, '']);
      assert.match(stderr, /three numbers.*2\.x/);
    }
    const { stdout } = await diad(['convert', '--version'], { DIAD_PYTHON: '/bin/echo' });
    assert.equal(stdout, '-m diad_reference convert --version\n');
  });

  it('rejects tiles with stage dumps before loading anything', async () => {
    const { code, stderr } = await diad(['score', 'x.png', '--tile', '128', '--dump', 'd'], {
      DIAD_LIBTORCH: '/nowhere',
    });
    assert.equal(code, 1);
    assert.match(stderr, /ERR_DIAD_INVALID_ARGUMENT: Expected --tile or --dump but received both/);
  });

  it('score supports globs, text output and stage dumps', () =>
    withImages(async (folder) => {
      const dump = path.join(folder, 'dump');
      const { code, stdout } = await diad(['score', `${folder}/*.png`, '--dump', dump]);
      assert.equal(code, 0);
      assert.match(stdout, /^\d+\.\d{4}.*b\.png\n$/);
      const names = await readdir(dump);
      for (const stage of [
        'x',
        'moments',
        'z',
        'x_T',
        'step_x',
        'reconstruction',
        'distance_layer1',
        'map_raw',
        'map',
        'score',
      ]) {
        assert.ok(names.includes(`000.${stage}.npy`), stage);
      }
    }));

  it('reconstruct writes PNG files', () =>
    withImages(async (folder) => {
      const out = path.join(folder, 'rebuilt');
      const { code, stdout } = await diad(['reconstruct', path.join(folder, 'b.png'), '--out', out]);
      assert.equal(code, 0);
      assert.equal(stdout.trim(), path.join(out, '000-b.png'));
      assert.equal((await readFile(stdout.trim())).subarray(1, 4).toString(), 'PNG');
    }));

  it('info describes the bundle', async () => {
    const { code, stdout } = await diad(['info', '--json']);
    assert.equal(code, 0);
    const info = JSON.parse(stdout) as {
      bundle: { name: string; steps: number };
      libtorch: { version: string };
    };
    assert.deepEqual([info.bundle.name, info.bundle.steps], ['base', 1]);
    assert.match((await diad(['info'])).stdout, /^bundle +base/);
  });

  it('doctor reports its findings and problems', async () => {
    const { code, stdout } = await diad(['doctor', '--json']);
    assert.equal(code, 0);
    const report = JSON.parse(stdout) as {
      node: string;
      libc: string;
      devices: string[];
      libtorch: { source: string };
      tried: unknown[];
    };
    assert.equal(report.node, process.versions.node);
    assert.match(report.libc, /glibc \d/);
    assert.equal(report.devices[0], 'cpu');
    assert.ok(report.tried.length > 0);
    const broken = await diad(['doctor'], { DIAD_LIBTORCH: '/nowhere' });
    assert.equal(broken.code, 1);
    assert.match(broken.stdout, /problem +ERR_DIAD_LIBTORCH_NOT_FOUND: .*\/nowhere\/lib\/libtorch\.so/s);
  });

  it('passes --precision to the engine in every command that loads a model', () =>
    inFolder(async (folder) => {
      const image = path.join(root, 'examples', 'gear-good.png');
      for (const [name, file] of [
        ['good', 'gear-good.png'],
        ['bad', 'gear-missing_part.png'],
      ] as const) {
        await mkdir(path.join(folder, name));
        await cp(path.join(root, 'examples', file), path.join(folder, name, '0.png'));
      }
      for (const args of [
        ['score', image],
        ['reconstruct', image, '--out', path.join(folder, 'rebuilt')],
        ['info'],
        ['verify'],
        ['eval', '--data', folder, '--out', path.join(folder, 'out')],
        ['calibrate', '--good', path.join(folder, 'good')],
        ['serve', '--port', '0'],
        ['worker', '--root', folder, '--redis', 'redis://127.0.0.1:1'],
        ['watch', folder],
      ]) {
        const { code, stderr } = await diad([...args, '--precision', 'int8'], {
          ATEN_CPU_CAPABILITY: 'avx2',
        });
        assert.equal(code, 1, args.join(' '));
        assert.match(
          stderr,
          /ERR_DIAD_DEVICE_UNAVAILABLE: The precision int8 needs a CPU with AVX-512 VNNI/,
          args.join(' '),
        );
      }
    }));

  it('reports invalid usage with exit code 1', async () => {
    for (const [args, message] of [
      [['score'], /missing required argument 'inputs'/],
      [['score', 'x.png', '--seed', 'one'], /Expected a whole number from 0/],
      [['score', 'x.png', '--color'], /unknown option '--color'/],
      [['score', 'x.png', '--steps', '2'], /unknown option '--steps'/],
      [['score', `${root}/none-*.png`], /Expected images for .*none-\*\.png but found none/],
      [
        ['score', 'x.png', '--device', 'tpu'],
        /ERR_DIAD_INVALID_ARGUMENT: Expected auto, cpu, cuda or cuda:N for device/,
      ],
      [['score', 'x.png', '--precision', 'int4'], /Allowed choices are float32, bfloat16, float16, int8/],
      [['info', '--model', '/nowhere'], /ERR_DIAD_BUNDLE_NOT_FOUND/],
      [['fly'], /unknown command 'fly'/],
    ] as const) {
      const { code, stderr } = await diad(args);
      assert.equal(code, 1, args.join(' '));
      assert.match(stderr, message);
    }
  });
});
