// Search for LibTorch, and errors when it is not found.
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { libtorchPackage } from '../../lib/native/libtorch/platform.js';
import { findLibTorch, type Miss } from '../../lib/native/libtorch/search.js';
import { minorOf } from '../../lib/native/libtorch/version.js';
import { openNative } from '../../lib/native/addon.js';
import { inFolder, rejects, root, runModule, runProgram } from '../support/support.js';

async function fakeTorch(folder: string, version: string): Promise<string> {
  await mkdir(path.join(folder, 'lib'), { recursive: true });
  await writeFile(path.join(folder, 'lib', 'libtorch.so'), '');
  await writeFile(
    path.join(folder, 'version.py'),
    `from typing import Optional\n__version__ = '${version}'\n`,
  );
  return folder;
}

describe('LibTorch', () => {
  it('prefers the load option, which can name the package or its lib folder', () =>
    inFolder(async (folder) => {
      const torch = await fakeTorch(folder, '2.13.1+cpu');
      const found = await findLibTorch(torch, root, ['2.11', '2.13']);
      assert.deepEqual(
        [found.version, path.basename(found.libFolder), found.source],
        ['2.13.1+cpu', 'lib', 'the load option libtorch'],
      );
      assert.equal((await findLibTorch(path.join(torch, 'lib'), root, ['2.13'])).libFolder, found.libFolder);
    }));

  it('reports both versions when a named LibTorch has another minor version', () =>
    inFolder(async (folder) => {
      const torch = await fakeTorch(folder, '2.9.0');
      await rejects(
        findLibTorch(torch, root, ['2.13']),
        'ERR_DIAD_LIBTORCH_MISMATCH',
        /LibTorch 2\.9\.0 in .* is not supported: .* LibTorch 2\.13/,
      );
    }));

  it('reports why a folder without libtorch.so or version is rejected', () =>
    inFolder(async (folder) => {
      await rejects(
        findLibTorch(folder, root, ['2.13']),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /the load option libtorch: .*libtorch\.so not found/,
      );
      await mkdir(path.join(folder, 'lib'));
      await writeFile(path.join(folder, 'lib', 'libtorch.so'), '');
      await rejects(findLibTorch(folder, root, ['2.13']), 'ERR_DIAD_LIBTORCH_NOT_FOUND', /has no version/);
      await writeFile(path.join(folder, 'build-version'), '2.13.0+cu130\n');
      assert.equal((await findLibTorch(folder, root, ['2.13'])).version, '2.13.0+cu130');
    }));

  it('prefers a CUDA build in the cache over the package only with an NVIDIA driver', () =>
    inFolder(async (folder) => {
      const cached = path.join(folder, 'cache', 'diad', 'libtorch', '2.13.0+cu130');
      const project = path.join(folder, 'project');
      const packaged = path.join(project, 'node_modules', libtorchPackage());
      await fakeTorch(path.join(cached, 'torch'), '2.13.0+cu130');
      await fakeTorch(packaged, '2.13.0+cpu');
      const manifest = {
        format: 'diad-libtorch',
        formatVersion: 1,
        version: '2.13.0+cu130',
        variant: 'cuda',
        wheels: {},
        files: {},
      };
      await writeFile(path.join(cached, 'diad-libtorch.json'), JSON.stringify(manifest));
      await writeFile(
        path.join(packaged, 'package.json'),
        JSON.stringify({ name: libtorchPackage(), version: '2.13.0' }),
      );
      const script = `import { findLibTorch } from ${JSON.stringify(path.join(root, 'dist', 'native', 'libtorch', 'search.js'))};
        for (const driver of [true, false]) {
          const { version, source } = await findLibTorch(undefined, ${JSON.stringify(project)}, ['2.13'], [], driver);
          console.log(version + ', ' + source);
        }`;
      const env = {
        DIAD_LIBTORCH: undefined,
        DIAD_PYTHON: undefined,
        XDG_CACHE_HOME: path.join(folder, 'cache'),
      };
      const { stdout } = await runProgram(
        process.execPath,
        ['--input-type=module', '-e', script],
        env,
        project,
      );
      assert.equal(
        stdout,
        `2.13.0+cu130, the CUDA builds of the cache\n2.13.0+cpu, the package ${libtorchPackage()}\n`,
      );
    }));

  it('finds the PyTorch of .venv in this checkout and records rejected locations', async () => {
    const misses: Miss[] = [];
    const found = await findLibTorch(undefined, root, ['2.13'], misses);
    assert.equal(minorOf(found.version), '2.13');
    assert.ok(misses.length >= 1);
    for (const { source, reason } of misses) assert.ok(source !== '' && reason !== '');
  });

  it('opens the engine and reports its LibTorch version', async () => {
    const { version, libtorch } = await openNative();
    assert.equal(minorOf(version.libtorchBuilt), minorOf(libtorch.version));
    const header = await readFile(path.join(root, 'cpp/engine/include/diad_engine.h'), 'utf8');
    assert.equal(version.abi, Number(/#define DIAD_ENGINE_ABI (\d+)/.exec(header)?.[1]));
    assert.ok(version.threads >= 1);
  });

  it('reports an error for a file that is not a library', () =>
    inFolder(async (folder) => {
      const torch = await fakeTorch(folder, '2.13.0');
      const source = `await Diad.load(undefined, { libtorch: ${JSON.stringify(torch)} }).catch((e) => console.log(e.name, e.code, e.message));`;
      const { stdout, code } = await runModule(source);
      assert.equal(code, 0);
      assert.match(
        stdout,
        /^DiadError ERR_DIAD_LIBTORCH_NOT_FOUND LibTorch cannot be opened: .*file too short/,
      );
    }));

  it('lists all locations and solutions when nothing is found', () =>
    inFolder(async (folder) => {
      const script = `import { findLibTorch } from ${JSON.stringify(path.join(root, 'dist', 'native', 'libtorch', 'search.js'))};
        await findLibTorch(undefined, ${JSON.stringify(folder)}, ['2.13']).catch((e) => console.log(e.code, e.message));`;
      const env = { PATH: folder, DIAD_LIBTORCH: undefined, DIAD_PYTHON: undefined, XDG_CACHE_HOME: folder };
      const { stdout } = await runProgram(
        process.execPath,
        ['--input-type=module', '-e', script],
        env,
        folder,
      );
      assert.match(stdout, /^ERR_DIAD_LIBTORCH_NOT_FOUND No LibTorch was found/);
      for (const place of [
        /load option libtorch/,
        /DIAD_LIBTORCH/,
        /@diad\/libtorch-/,
        /the cache: .* is empty/,
        /DIAD_PYTHON/,
        /\.venv/,
        /python3/,
      ]) {
        assert.match(stdout, place);
      }
      assert.match(stdout, /Solutions: npx diad libtorch install; .*pip install "torch==2\.13\.\*"/);
    }));
});
