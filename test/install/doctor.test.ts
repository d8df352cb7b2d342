// diad doctor: the report, and libraries that crash, hang or do not match, compiled here.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { diagnose, type Cause, type Surroundings } from '../../lib/doctor/diagnosis.js';
import type { ProbeOutcome } from '../../lib/doctor/probe.js';
import type { Report } from '../../lib/doctor/report.js';
import { HANG_GUARD_MS, inFolder, root, runProgram, withBundleCopy } from '../support/support.js';

function doctor(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): { readonly code: number | null; readonly report: Report } {
  const command = [path.join(root, 'dist', 'cli', 'main.js'), 'doctor', '--json', ...args];
  const options = {
    cwd: root,
    env: { ...process.env, ...env },
    encoding: 'utf8',
    timeout: HANG_GUARD_MS,
  } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, command, options);
  assert.notEqual(stdout, '', stderr);
  return { code: status, report: JSON.parse(stdout) as Report };
}

/** Creates a folder that looks like LibTorch 2.13, whose libtorch.so runs this C code when opened. */
async function plantedLibTorch(folder: string, onOpen: string): Promise<string> {
  await mkdir(path.join(folder, 'lib'), { recursive: true });
  await writeFile(path.join(folder, 'build-version'), '2.13.0+planted\n');
  const source = path.join(folder, 'libtorch.c');
  await writeFile(
    source,
    `#include <signal.h>\n#include <unistd.h>\n__attribute__((constructor)) static void opened(void) { ${onOpen} }\n`,
  );
  const { code, stderr } = await runProgram('cc', [
    '-shared',
    '-fPIC',
    '-o',
    path.join(folder, 'lib', 'libtorch.so'),
    source,
  ]);
  assert.equal(code, 0, stderr);
  return folder;
}

const surroundings: Surroundings = { libc: 'glibc 2.31', nvidiaDriver: null, libtorchPath: '/torch/lib' };

function failed(code: string, message: string, stage: ProbeOutcome['stage'] = 'libtorch'): ProbeOutcome {
  return { stage, failure: { code, message }, timedOut: false, exitCode: 0, stderr: '' };
}

describe('doctor', () => {
  it('scores with the expected result', () => {
    const { code, report } = doctor([], {});
    assert.equal(code, 0, JSON.stringify(report.problem));
    assert.equal(report.ok, true);
    assert.ok(report.golden !== undefined && report.golden.relativeDifference <= report.golden.tolerance);
    assert.ok(report.score !== undefined && report.score.value > 0);
    assert.deepEqual(report.engines, ['2.13']);
    assert.equal(report.bundle?.name, 'base');
  });

  for (const [name, onOpen, cause] of [
    ['a segmentation fault', 'raise(SIGSEGV);', 'crashed'],
    ['an illegal instruction', 'raise(SIGILL);', 'illegal-instruction'],
    ['being killed', 'raise(SIGKILL);', 'killed'],
    ['leaving the process', '_exit(3);', 'unknown'],
    ['nothing: the engine finds no LibTorch in it', '', 'library-missing'],
  ] as const) {
    it(`survives a LibTorch whose opening is ${name}, because only the probe ends`, () =>
      inFolder(async (folder) => {
        const { code, report } = doctor([], { DIAD_LIBTORCH: await plantedLibTorch(folder, onOpen) });
        assert.equal(code, 1);
        assert.equal(report.problem?.cause, cause, JSON.stringify(report.problem));
        assert.ok(report.problem.help.length > 0);
        assert.equal(report.libtorch?.version, '2.13.0+planted');
      }));
  }

  it('gives up on a LibTorch that never finishes opening', () =>
    inFolder(async (folder) => {
      const { code, report } = doctor(['--timeout', '5'], {
        DIAD_LIBTORCH: await plantedLibTorch(folder, 'sleep(1000);'),
      });
      assert.deepEqual([code, report.problem?.cause], [1, 'timeout']);
    }));

  it('diagnoses a truncated file, another minor version, and no LibTorch', () =>
    inFolder(async (folder) => {
      await plantedLibTorch(folder, '');
      await writeFile(path.join(folder, 'lib', 'libtorch.so'), 'short');
      assert.equal(doctor([], { DIAD_LIBTORCH: folder }).report.problem?.cause, 'libtorch-damaged');
      await writeFile(path.join(folder, 'build-version'), '2.9.0\n');
      const mismatch = doctor([], { DIAD_LIBTORCH: folder }).report;
      assert.equal(mismatch.problem?.cause, 'libtorch-mismatch');
      assert.ok(mismatch.tried.some(({ reason }) => reason.includes('2.9.0')));
      assert.equal(doctor([], { DIAD_LIBTORCH: '/nowhere' }).report.problem?.cause, 'libtorch-not-found');
    }));

  it('diagnoses a changed byte in a bundle, and a missing bundle', () =>
    withBundleCopy(async (bundle) => {
      await writeFile(path.join(bundle, 'MODEL_CARD.md'), 'other words');
      const { report } = doctor(['--model', bundle], {});
      assert.equal(report.problem?.cause, 'bundle-corrupt');
      assert.ok(report.devices !== undefined, 'LibTorch was opened, and the report says so');
      assert.equal(doctor(['--model', '/nowhere'], {}).report.problem?.cause, 'bundle-not-found');
    }));

  it('understands messages of the dynamic loader', () => {
    const open = 'ERR_DIAD_LIBTORCH_NOT_FOUND';
    const cases: readonly (readonly [ProbeOutcome, Cause, RegExp])[] = [
      [
        failed(
          open,
          "LibTorch cannot be opened: /lib/libc.so.6: version `GLIBC_2.34' not found (required by x)",
        ),
        'system-too-old',
        /glibc 2\.31.* GLIBC_2\.34/,
      ],
      [
        failed(
          open,
          'LibTorch cannot be opened: libcudnn.so.9: cannot open shared object file: No such file',
        ),
        'library-missing',
        /CUDA build .*libcudnn\.so\.9/,
      ],
      [
        failed(open, 'LibTorch cannot be opened: libgomp.so.1: cannot open shared object file: No such file'),
        'library-missing',
        /libgomp\.so\.1 is not installed/,
      ],
      [
        failed(
          'ERR_DIAD_LIBTORCH_MISMATCH',
          'The engine does not fit the LibTorch in /torch/lib: e.so: undefined symbol: _ZN3c10',
        ),
        'symbol-missing',
        /other symbols/,
      ],
      [
        failed(open, 'LibTorch cannot be opened: x.so: failed to map segment from shared object'),
        'not-permitted',
        /noexec/,
      ],
      [failed('ERR_DIAD_DEVICE_UNAVAILABLE', 'no cuda', 'bundle'), 'device-unavailable', /no NVIDIA driver/],
      [
        failed('ERR_DIAD_BUNDLE_INVALID', 'manifest.json: Expected version 1', 'bundle'),
        'bundle-invalid',
        /export the bundle again/,
      ],
      [
        failed('ERR_DIAD_BUNDLE_INVALID', 'calibration.json: Expected thresholds of this model', 'bundle'),
        'calibration-invalid',
        /calibrate --good .*\n.*delete calibration\.json/,
      ],
      [
        failed('ERR_DIAD_INTERNAL', 'Could not load the "sharp" module', 'image'),
        'images-unreadable',
        /--include=optional sharp/,
      ],
    ];
    for (const [outcome, cause, help] of cases) {
      const problem = diagnose(outcome, surroundings);
      assert.equal(problem?.cause, cause, outcome.failure?.message);
      assert.match(problem.help.join('\n'), help);
    }
    assert.equal(
      diagnose({ stage: 'image', timedOut: false, exitCode: 0, stderr: '' }, surroundings),
      undefined,
    );
  });
});
