// The check of prebuilt binaries: accepts this build and finds planted faults.
import assert from 'node:assert/strict';
import { appendFile, copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { inFolder, root, runProgram } from '../support/support.js';

const script = (name: string, ...args: string[]) =>
  runProgram(process.execPath, [path.join(root, 'scripts', name), ...args]);
const platform = 'linux-x64';

interface Checked {
  readonly files: readonly {
    readonly file: string;
    readonly bytes: number;
    readonly versions: Readonly<Record<string, string>>;
  }[];
  readonly problems: readonly string[];
}

/** Creates a private copy of this build, stripped as for a release. */
async function withPrebuilds(use: (folder: string, binaries: string) => Promise<void>): Promise<void> {
  await inFolder(async (folder) => {
    const made = await script('prebuild.mjs', '--reuse-build', '--to', folder);
    assert.equal(made.code, 0, made.stderr);
    await use(folder, path.join(folder, platform));
  });
}

async function check(folder: string, ...args: string[]): Promise<Checked & { readonly code: number | null }> {
  const { code, stdout, stderr } = await script('check-prebuilds.mjs', '--folder', folder, '--json', ...args);
  assert.notEqual(stdout, '', stderr);
  return { code, ...(JSON.parse(stdout) as Checked) };
}

describe('prebuilt binaries @slow', () => {
  it('accepts this build and reports the required system', () =>
    withPrebuilds(async (folder) => {
      const { code, files, problems } = await check(folder, '--libtorch', '2.13');
      assert.deepEqual([code, problems], [0, []]);
      assert.deepEqual(files.map(({ file }) => path.basename(file)).sort(), [
        'diad.glibc.node',
        'libdiad_engine-torch2.13.so',
      ]);
      for (const { versions } of files) assert.match(versions['GLIBC'] ?? '', /^2\.\d+$/);
    }));

  it('requires every LibTorch minor version for a release, and names the missing one', () =>
    withPrebuilds(async (folder) => {
      const { code, problems } = await check(folder);
      assert.deepEqual([code, problems], [1, [`${platform}/libdiad_engine-torch2.11.so is missing`]]);
    }));

  it('names planted faults', () =>
    withPrebuilds(async (folder, binaries) => {
      const source = path.join(folder, 'engine.c');
      await writeFile(
        source,
        '#include <math.h>\ndouble half(double x) { return sqrt(x) / 2; }\nconst char *built = "/home/builder/engine.c";\n',
      );
      const engine = path.join(binaries, 'libdiad_engine-torch2.11.so');
      const compiled = await runProgram('cc', [
        '-g',
        '-shared',
        '-fPIC',
        '-o',
        engine,
        source,
        '-Wl,-rpath,/opt/libtorch/lib',
      ]);
      assert.equal(compiled.code, 0, compiled.stderr);
      const { problems } = await check(folder);
      for (const expected of [
        /has a run path: \/opt\/libtorch\/lib/,
        /is not stripped/,
        /cannot record CUDA graphs/,
        /contains paths of the build machine: .*\/home\/builder/,
      ]) {
        assert.ok(
          problems.some((problem) => problem.includes('torch2.11') && expected.test(problem)),
          `${String(expected)}: ${problems.join('; ')}`,
        );
      }
      const older = await check(folder, '--libtorch', '2.13,2.11', '--floor', 'GLIBC=2.17');
      assert.ok(
        older.problems.some((problem) =>
          /diad\.glibc\.node needs GLIBC_2\.\d+; the package declares GLIBC_2\.17/.test(problem),
        ),
      );
    }));

  it('the release workflow matches the schema of GitHub Actions', () =>
    inFolder(async (folder) => {
      const workflow = path.join(root, '.github', 'workflows', 'release.yml');
      const validate = (file: string) =>
        runProgram(path.join(root, 'node_modules', '.bin', 'action-validator'), [file]);
      const { code, stdout } = await validate(workflow);
      assert.equal(code, 0, stdout);
      const wrong = path.join(folder, 'wrong.yml');
      await writeFile(wrong, (await readFile(workflow, 'utf8')).replace('runs-on:', 'runs_on:'));
      assert.equal((await validate(wrong)).code, 1, 'the schema rejects unknown keys');
    }));

  it('merges folders of several machines, but not two different engines for one LibTorch', () =>
    withPrebuilds(async (folder, binaries) => {
      const other = path.join(folder, 'other', platform);
      await mkdir(other, { recursive: true });
      await copyFile(
        path.join(binaries, 'libdiad_engine-torch2.13.so'),
        path.join(other, 'libdiad_engine-torch2.11.so'),
      );
      const out = path.join(folder, 'merged');
      const one = path.join(folder, 'one');
      await mkdir(path.join(one, platform), { recursive: true });
      for (const name of await readdir(binaries))
        await copyFile(path.join(binaries, name), path.join(one, platform, name));
      const merged = await script('merge-prebuilds.mjs', out, one, path.dirname(other));
      assert.equal(merged.code, 0, merged.stderr);
      assert.deepEqual((await check(out)).problems, []);
      await appendFile(path.join(other, 'libdiad_engine-torch2.11.so'), 'x');
      const refused = await script('merge-prebuilds.mjs', out, path.dirname(other));
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /libdiad_engine-torch2\.11\.so differs between two machines/);
    }));
});
