// diad libtorch: real pip on small wheels made here, and failing downloads.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { damagedFiles, listInstalled, listPartial } from '../../lib/native/libtorch/cache.js';
import { installLibTorch, type InstallOptions } from '../../lib/native/libtorch/install.js';
import { compareVersions } from '../../lib/native/libtorch/version.js';
import { inFolder, python, rejects, root, runProgram } from '../support/support.js';

interface WheelFile {
  readonly [path: string]: string;
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('base64url');

/** Writes a wheel; `record` replaces the hash of a file to create a mismatch. */
async function writeWheel(
  folder: string,
  [name, version]: readonly [string, string],
  files: WheelFile,
  { requires = [], record = {} }: { readonly requires?: readonly string[]; readonly record?: WheelFile } = {},
): Promise<string> {
  const info = `${name}-${version}.dist-info`;
  const metadata = [
    'Metadata-Version: 2.1',
    `Name: ${name}`,
    `Version: ${version}`,
    ...requires.map((one) => `Requires-Dist: ${one}`),
  ];
  const all: Record<string, string> = {
    ...files,
    [`${info}/METADATA`]: `${metadata.join('\n')}\n`,
    [`${info}/WHEEL`]: 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n',
    [`${info}/licenses/LICENSE`]: 'permission is granted',
  };
  const lines = Object.entries(all).map(
    ([file, text]) => `${file},sha256=${sha256(record[file] ?? text)},${text.length}`,
  );
  all[`${info}/RECORD`] = `${[...lines, `${info}/RECORD,,`].join('\n')}\n`;
  const wheel = path.join(folder, `${name}-${version}-py3-none-any.whl`);
  const zip =
    'import json, sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as z:\n  [z.writestr(k, v) for k, v in json.load(open(sys.argv[2])).items()]';
  await writeFile(`${wheel}.json`, JSON.stringify(all));
  const { code, stderr } = await runProgram(python, ['-c', zip, wheel, `${wheel}.json`]);
  assert.equal(code, 0, stderr);
  return wheel;
}

const TORCH: WheelFile = {
  'torch/version.py': "__version__ = '2.13.0+cpu'\n",
  'torch/lib/libtorch.so': 'the library that brings the others',
  'torch/lib/libtorch_cpu.so': 'x'.repeat(200_000),
  'torch/lib/libgomp.so.1': 'threads',
  'torch/lib/libtorch_python.so': 'only Python needs it',
  'torch/lib/libtorchbind_test.so': 'only its tests need it',
  'torch/__init__.py': 'import everything',
};

/** Creates a folder of wheels as the only source of pip, and a cache. */
async function withWheels(
  use: (
    wheels: string,
    install: (more?: Partial<InstallOptions>) => ReturnType<typeof installLibTorch>,
    cache: string,
  ) => Promise<void>,
): Promise<void> {
  await inFolder(async (folder) => {
    const [wheels, cache] = [path.join(folder, 'wheels'), path.join(folder, 'cache')];
    await mkdir(wheels);
    const before = { ...process.env };
    Object.assign(process.env, { PIP_NO_INDEX: '1', PIP_FIND_LINKS: wheels, PIP_CONFIG_FILE: '/dev/null' });
    try {
      await use(
        wheels,
        (more = {}) => installLibTorch({ version: '2.13.0', variant: 'cpu', python, cache, ...more }),
        cache,
      );
    } finally {
      for (const name of ['PIP_NO_INDEX', 'PIP_FIND_LINKS', 'PIP_CONFIG_FILE']) {
        if (before[name] === undefined) Reflect.deleteProperty(process.env, name);
        else process.env[name] = before[name];
      }
    }
  });
}

describe('LibTorch in the cache @slow', () => {
  it('installs libraries, version and licenses with hashes; downloads nothing the second time', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const seen: number[] = [];
      const { installed, already } = await install({
        onProgress: (bytes, total) => seen.push(bytes / total),
      });
      assert.equal(already, false);
      assert.deepEqual([installed.manifest.version, installed.manifest.variant], ['2.13.0+cpu', 'cpu']);
      assert.deepEqual(Object.keys(installed.manifest.files).sort(), [
        'licenses/torch/LICENSE',
        'torch/lib/libgomp.so.1',
        'torch/lib/libtorch.so',
        'torch/lib/libtorch_cpu.so',
        'torch/version.py',
      ]);
      const file = await readFile(path.join(installed.folder, 'torch', 'lib', 'libtorch_cpu.so'));
      assert.equal(
        createHash('sha256').update(file).digest('hex'),
        installed.manifest.files['torch/lib/libtorch_cpu.so']!.sha256,
      );
      assert.equal(seen.at(-1), 1);
      assert.deepEqual(await listPartial(cache), []);
      await rm(wheels, { recursive: true });
      assert.equal((await install()).already, true);
    }));

  it('finds and repairs one changed byte', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const { installed } = await install();
      await writeFile(path.join(installed.folder, 'torch', 'lib', 'libgomp.so.1'), 'Threads');
      assert.deepEqual(await damagedFiles((await listInstalled(cache))[0]!), ['torch/lib/libgomp.so.1']);
      const again = await install();
      assert.equal(again.already, false);
      assert.deepEqual(await damagedFiles(again.installed), []);
    }));

  it('stops at a file that differs from RECORD and installs nothing', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH, {
        record: { 'torch/lib/libtorch.so': 'something else' },
      });
      await rejects(
        install(),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /libtorch\.so has sha256 [0-9a-f]{64} but RECORD has/,
      );
      assert.deepEqual(await listInstalled(cache), []);
    }));

  it('downloads a truncated wheel again, and names one that is truncated at its source', () =>
    withWheels(async (wheels, install, cache) => {
      const wheel = await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const partial = path.join(cache, '.partial', '2.13.0-cpu', 'torch');
      await mkdir(partial, { recursive: true });
      await writeFile(path.join(partial, path.basename(wheel)), (await readFile(wheel)).subarray(0, 500));
      assert.equal((await install()).already, false);
      await rm(cache, { recursive: true });
      await truncate(wheel, 500);
      await rejects(
        install(),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /could not download torch==2\.13\.0\+cpu:\n.*invalid/s,
      );
    }));

  it('resumes an interrupted unpacking', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const interrupted = new AbortController();
      const reason = new Error('enough');
      const onProgress = (bytes: number): void => {
        if (bytes > 1000) interrupted.abort(reason);
      };
      const first = install({ signal: interrupted.signal, onProgress });
      await assert.rejects(first, reason);
      assert.deepEqual(await listInstalled(cache), []);
      assert.equal((await listPartial(cache)).length, 1);
      const kept = path.join(cache, '.partial', '2.13.0-cpu', 'tree', 'torch', 'version.py');
      await chmod(kept, 0o600); // still set afterwards: the file was not written again
      const { installed } = await install();
      assert.deepEqual(await damagedFiles(installed), []);
      assert.deepEqual(await readdir(path.join(cache, '.partial')), []);
    }));

  it('CUDA: unpacks required wheels too, and rejects a build of the other kind', () =>
    withWheels(async (wheels, install) => {
      const cuda = {
        ...TORCH,
        'torch/version.py': "__version__ = '2.13.0+cu130'\n",
        'torch/lib/libtorch_cuda.so': 'cuda',
      };
      const requires = ['sympy>=1.13.3', 'nvidia-cublas==13.1; python_version >= "3.8"', 'triton==3.6'];
      await writeWheel(wheels, ['torch', '2.13.0'], cuda, { requires });
      const cublas = {
        'nvidia/cu13/lib/libcublas.so.13': 'blas',
        'nvidia/cu13/include/cublas.h': 'not needed',
      };
      await writeWheel(wheels, ['nvidia_cublas', '13.1'], cublas);
      const { installed } = await install({ variant: 'cuda' });
      assert.equal(installed.manifest.version, '2.13.0+cu130');
      const names = Object.keys(installed.manifest.files);
      assert.ok(
        names.includes('nvidia/cu13/lib/libcublas.so.13') && names.includes('licenses/nvidia_cublas/LICENSE'),
        names.join(),
      );
      assert.ok(!names.includes('nvidia/cu13/include/cublas.h'));
      await rejects(
        install(),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /no CPU build of PyTorch 2\.13\.0: pass .*--index-url/s,
      );
      await writeWheel(wheels, ['torch', '2.12.0'], TORCH);
      await rejects(
        install({ version: '2.12.0', variant: 'cuda' }),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /a build for the CPU only, but cuda was requested/,
      );
    }));

  it('runs one installation at a time; others wait and reuse it', () =>
    withWheels(async (wheels, install) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const messages: string[] = [];
      const onMessage = (message: string): unknown => messages.push(message);
      const both = await Promise.all([install({ onMessage }), install({ onMessage })]);
      assert.deepEqual(both.map(({ already }) => already).sort(), [false, true]);
      assert.deepEqual(
        messages.filter((message) => message.startsWith('Waiting')),
        ['Waiting for another process that is installing LibTorch 2.13.0 (cpu)\n'],
      );
    }));

  it('a waiting process can be aborted, and an abandoned lock expires', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const lock = path.join(cache, '.partial', '2.13.0-cpu.lock');
      await mkdir(lock, { recursive: true });
      const stop = new AbortController();
      const onMessage = (): void => {
        stop.abort(new Error('stopped'));
      };
      await assert.rejects(install({ signal: stop.signal, onMessage }), /stopped/);
      const longAgo = new Date(Date.now() - 20_000);
      await utimes(lock, longAgo, longAgo);
      assert.equal((await install()).already, false);
      await assert.rejects(stat(lock), /ENOENT/);
    }));

  it('rejects invalid versions, URLs and Pythons', () =>
    withWheels(async (_wheels, install) => {
      await rejects(install({ version: '--help' }), 'ERR_DIAD_INVALID_ARGUMENT', /three numbers/);
      await rejects(install({ indexUrl: '--extra' }), 'ERR_DIAD_INVALID_ARGUMENT', /URL for --index-url/);
      await rejects(
        install({ python: '/nowhere/python' }),
        'ERR_DIAD_LIBTORCH_NOT_FOUND',
        /\/nowhere\/python: file not found/,
      );
    }));

  it('lists and removes on the command line', () =>
    withWheels(async (wheels, install, cache) => {
      await writeWheel(wheels, ['torch', '2.13.0+cpu'], TORCH);
      const home = path.join(cache, 'xdg');
      await install({ cache: path.join(home, 'diad', 'libtorch') });
      const diad = (...args: string[]) =>
        runProgram(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), 'libtorch', ...args], {
          XDG_CACHE_HOME: home,
        });
      const listed = JSON.parse((await diad('list', '--verify', '--json')).stdout) as {
        installed: { version: string; damaged: string[] }[];
      };
      assert.deepEqual(
        listed.installed.map(({ version, damaged }) => [version, damaged]),
        [['2.13.0+cpu', []]],
      );
      const wrong = await diad('remove', '2.9.0');
      assert.equal(wrong.code, 1);
      assert.match(
        wrong.stderr,
        /Expected an installed version but received 2\.9\.0; installed: 2\.13\.0\+cpu/,
      );
      assert.match((await diad('remove', '2.13.0')).stdout, /^removed .*2\.13\.0\+cpu\n$/);
      assert.match((await diad('list')).stdout, /is empty/);
    }));

  it('orders versions numerically', () => {
    assert.deepEqual(['2.13.0', '2.9.1+cpu', '2.13.0+cu130', '2.11.0'].sort(compareVersions), [
      '2.9.1+cpu',
      '2.11.0',
      '2.13.0',
      '2.13.0+cu130',
    ]);
  });
});
