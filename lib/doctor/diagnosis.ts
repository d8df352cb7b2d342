// Derives the problem and its solution from the outcome of a probe.
import { CALIBRATION_FILE } from '../calibration/calibration.js';
import type { ProbeOutcome } from './probe.js';
import { libtorchPackage } from '../native/libtorch/platform.js';

/** Stable identifier of a problem, for programs. */
export type Cause =
  | 'node-too-old'
  | 'addon-missing'
  | 'engine-missing'
  | 'libtorch-not-found'
  | 'libtorch-mismatch'
  | 'libtorch-damaged'
  | 'library-missing'
  | 'system-too-old'
  | 'symbol-missing'
  | 'not-permitted'
  | 'illegal-instruction'
  | 'crashed'
  | 'killed'
  | 'timeout'
  | 'out-of-memory'
  | 'device-unavailable'
  | 'bundle-not-found'
  | 'bundle-invalid'
  | 'bundle-corrupt'
  | 'calibration-invalid'
  | 'images-unreadable'
  | 'golden-differs'
  | 'unknown';

/** A diagnosis. */
export interface Problem {
  readonly cause: Cause;
  /** Code of the error, if any. */
  readonly code: string;
  readonly message: string;
  /** Steps to solve the problem. */
  readonly help: readonly string[];
}

/** Environment of the probe. */
export interface Surroundings {
  readonly libc: string;
  readonly nvidiaDriver: string | null;
  readonly libtorchPath: string | undefined;
}

const GET_LIBTORCH = [
  'npx diad libtorch install   (downloads it into the cache with pip)',
  `npm install ${libtorchPackage()}   (the CPU libraries as a package)`,
  'or set DIAD_LIBTORCH to a folder that contains lib/, or DIAD_PYTHON to a Python that has torch',
];

const CALIBRATE = [
  'npx diad calibrate --good <folder> --model <bundle>   (computes the thresholds of this model)',
  'or delete calibration.json: scores do not change but have no verdict',
];

interface Pattern {
  readonly match: RegExp;
  readonly cause: Cause;
  readonly help: (found: RegExpExecArray, surroundings: Surroundings) => readonly string[];
}

/** Messages of the dynamic loader, most specific first. */
const LOADER_MESSAGES: readonly Pattern[] = [
  {
    match: /version [`'"]((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found/,
    cause: 'system-too-old',
    help: ([, version], { libc }) => [
      `this system (${libc}) lacks ${version ?? ''}: ` +
        'use a newer one (Debian 12, Ubuntu 22.04, RHEL 10, or newer)',
      'or build here from source: npm run build:native in the package folder, with DIAD_LIBTORCH set',
    ],
  },
  {
    match: /(lib(?:cu|nv|nccl|cudnn)[\w.+-]*\.so[\d.]*): cannot open shared object file/,
    cause: 'library-missing',
    help: ([, library]) => [
      `this LibTorch is a CUDA build whose library ${library ?? ''} is not installed`,
      'npx diad libtorch install --variant cuda   (includes the CUDA libraries)',
      'or install torch with pip without --no-deps',
      'or use a CPU build: npx diad libtorch install',
    ],
  },
  {
    match: /(lib[\w.+-]+\.so[\d.]*): cannot open shared object file/,
    cause: 'library-missing',
    help: ([, library]) => [
      `the library ${library ?? ''} is not installed: ` +
        `install it (Debian and Ubuntu: apt-file search ${library ?? ''})`,
      'or use a complete LibTorch: npx diad libtorch install',
    ],
  },
  {
    match: /undefined symbol: (\S+)/,
    cause: 'symbol-missing',
    help: () => [
      'the engine was built for a LibTorch with other symbols: ' +
        'version.py or build-version may not match the version of the libraries',
      'if LD_LIBRARY_PATH or LD_PRELOAD is set, another LibTorch may be found first: unset it',
      'npx diad libtorch install   (installs a matching LibTorch)',
    ],
  },
  {
    match:
      /file too short|invalid ELF header|wrong ELF class|ELF load command|cannot read file data|not a mach-o|Exec format/i,
    cause: 'libtorch-damaged',
    help: (_found, { libtorchPath }) => [
      `${libtorchPath ?? 'LibTorch'} is truncated or built for another platform: install it again`,
      'npx diad libtorch list --verify   (checks the installs in the cache)',
      'npx diad libtorch install',
    ],
  },
  {
    match: /failed to map segment|Operation not permitted|Permission denied/,
    cause: 'not-permitted',
    help: (_found, { libtorchPath }) => [
      `the system does not allow mapping libraries from ${libtorchPath ?? 'the LibTorch folder'}: ` +
        'check whether it is mounted noexec or its files are unreadable',
      'install LibTorch elsewhere: XDG_CACHE_HOME=<folder> npx diad libtorch install',
    ],
  },
  {
    match: /cannot allocate memory/i,
    cause: 'out-of-memory',
    help: () => [
      'LibTorch needs about 500 MB of address space and 200 MB of memory: ' +
        'raise the limit (ulimit -v, the container)',
    ],
  },
];

/** Problems by error code. */
const CODES: Readonly<
  Record<string, { readonly cause: Cause; readonly help: (surroundings: Surroundings) => readonly string[] }>
> = {
  ERR_DIAD_LIBTORCH_NOT_FOUND: { cause: 'libtorch-not-found', help: () => GET_LIBTORCH },
  ERR_DIAD_LIBTORCH_MISMATCH: {
    cause: 'libtorch-mismatch',
    help: () => [
      ...GET_LIBTORCH,
      'or build an engine for your LibTorch: ' +
        'npm run build:native in the package folder, with DIAD_LIBTORCH set',
    ],
  },
  ERR_DIAD_OUT_OF_MEMORY: {
    cause: 'out-of-memory',
    help: () => ['free memory, raise the limit, or use a smaller bundle'],
  },
  ERR_DIAD_DEVICE_UNAVAILABLE: {
    cause: 'device-unavailable',
    help: ({ nvidiaDriver }) =>
      nvidiaDriver === null
        ? ['no NVIDIA driver found: install it, or use --device cpu']
        : [
            `found an NVIDIA driver (${nvidiaDriver}), so this LibTorch is a CPU build ` +
              'or too new for the driver: npx diad libtorch install --variant cuda',
          ],
  },
  ERR_DIAD_BUNDLE_NOT_FOUND: {
    cause: 'bundle-not-found',
    help: () => ['pass a folder that contains manifest.json with --model'],
  },
  ERR_DIAD_BUNDLE_INVALID: {
    cause: 'bundle-invalid',
    help: () => ['export the bundle again with a compatible version of diad'],
  },
  ERR_DIAD_BUNDLE_CORRUPT: {
    cause: 'bundle-corrupt',
    help: () => [
      'a file does not match the manifest: copy or download the bundle again; ' +
        'for the base model, install diad again',
    ],
  },
  ERR_DIAD_IMAGE_DECODE: {
    cause: 'images-unreadable',
    help: () => [
      'the engine works but sharp does not: npm install --include=optional sharp   ' +
        '(its binaries are optional dependencies)',
    ],
  },
};

function crashed(outcome: ProbeOutcome, message: string): Problem {
  const { signal = 'SIGKILL', stage } = outcome;
  const code = 'ERR_DIAD_INTERNAL';
  const where = {
    addon: 'starting',
    libtorch: 'opening LibTorch',
    bundle: 'loading the bundle',
    score: 'scoring',
    image: 'decoding',
    golden: 'verifying',
  }[stage];
  const said = `${message} while ${where}`;
  if (signal === 'SIGILL') {
    return {
      cause: 'illegal-instruction',
      code,
      message: said,
      help: [
        'LibTorch used an instruction that this CPU does not support',
        'set ATEN_CPU_CAPABILITY=default for the most portable kernels; ' +
          'see the CPU features above (avx2 is the least that is fast)',
      ],
    };
  }
  if (signal === 'SIGKILL' || signal === 'SIGTERM') {
    return {
      cause: 'killed',
      code,
      message: said,
      help: [
        'the probe was killed, usually by the kernel because memory ran out: ' +
          'see dmesg and the memory limit above',
      ],
    };
  }
  return {
    cause: 'crashed',
    code,
    message: said,
    help: [
      stage === 'libtorch'
        ? 'the libraries are damaged or from different versions: npx diad libtorch install'
        : 'this should not happen: please file an issue with this report',
      'other libraries in the process may interfere: try without LD_PRELOAD and LD_LIBRARY_PATH',
    ],
  };
}

/** Diagnoses a failed probe. Returns undefined when the probe succeeded. */
export function diagnose(outcome: ProbeOutcome, surroundings: Surroundings): Problem | undefined {
  const { failure, signal, timedOut, stage, exitCode, stderr } = outcome;
  if (failure !== undefined) {
    const { code, message } = failure;
    const pattern = LOADER_MESSAGES.map((known) => ({ ...known, found: known.match.exec(message) })).find(
      ({ found }) => found !== null,
    );
    const fromLoader = stage === 'libtorch' && /cannot be opened|does not fit the LibTorch in/.test(message);
    if (fromLoader && pattern?.found != null) {
      return { cause: pattern.cause, code, message, help: pattern.help(pattern.found, surroundings) };
    }
    if (stage === 'image')
      return {
        cause: 'images-unreadable',
        code,
        message,
        help: CODES['ERR_DIAD_IMAGE_DECODE']!.help(surroundings),
      };
    if (message.startsWith(`${CALIBRATION_FILE}: `))
      return { cause: 'calibration-invalid', code, message, help: CALIBRATE };
    const known = CODES[code];
    return {
      cause: known?.cause ?? 'unknown',
      code,
      message,
      help: known?.help(surroundings) ?? ['please file an issue with this report'],
    };
  }
  if (timedOut) {
    const help = ['the machine may be busy or the disk slow: run it again with a larger --timeout'];
    return {
      cause: 'timeout',
      code: 'ERR_DIAD_TIMEOUT',
      message: `The probe did not end in time (at: ${stage})`,
      help,
    };
  }
  if (signal !== undefined) return crashed(outcome, `The probe was ended by ${signal}`);
  if (exitCode !== 0) {
    const tail = stderr.trim().split('\n').slice(-3).join(' ');
    const message = `The probe ended with exit code ${exitCode ?? '?'}: ${tail}`;
    return {
      cause: 'unknown',
      code: 'ERR_DIAD_INTERNAL',
      message,
      help: ['please file an issue with this report'],
    };
  }
  return undefined;
}
