// From how a probe ended to what is wrong and what to do about it.
import { CALIBRATION_FILE } from '../calibration.js';
import type { ProbeOutcome } from './probe.js';
import { libtorchPackage } from '../libtorch/platform.js';

/** What is wrong, in a word that programs can rely on. */
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
  /** Of the error, where there was one. */
  readonly code: string;
  readonly message: string;
  /** What to do, one step each. */
  readonly help: readonly string[];
}

/** What a diagnosis looks at besides the probe. */
export interface Surroundings {
  readonly libc: string;
  readonly nvidiaDriver: string | null;
  readonly libtorchPath: string | undefined;
}

const GET_LIBTORCH = [
  'npx diad libtorch install   (fetches it with your pip into the cache)',
  `npm install ${libtorchPackage()}   (the CPU libraries as a package)`,
  'or set DIAD_LIBTORCH to a folder that holds lib/, or DIAD_PYTHON to a Python that has torch',
];

const CALIBRATE = [
  'npx diad calibrate --good <folder> --model <bundle>   (finds the thresholds of this model)',
  'or delete calibration.json: scores stay as they are, without verdicts',
];

interface Pattern {
  readonly match: RegExp;
  readonly cause: Cause;
  readonly help: (found: RegExpExecArray, surroundings: Surroundings) => readonly string[];
}

/** What the dynamic loader says, most telling first. */
const LOADER_MESSAGES: readonly Pattern[] = [
  {
    match: /version [`'"]((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found/,
    cause: 'system-too-old',
    help: ([, version], { libc }) => [
      `this system (${libc}) lacks ${version ?? ''}: use a newer one (Debian 12, Ubuntu 22.04, RHEL 10, or newer)`,
      'or build here from source: npm run build:native in the package folder, with DIAD_LIBTORCH set',
    ],
  },
  {
    match: /(lib(?:cu|nv|nccl|cudnn)[\w.+-]*\.so[\d.]*): cannot open shared object file/,
    cause: 'library-missing',
    help: ([, library]) => [
      `this LibTorch is a CUDA build whose library ${library ?? ''} is not installed`,
      'npx diad libtorch install --variant cuda   (brings the CUDA libraries)',
      'or install torch with pip without --no-deps',
      'or take a CPU build: npx diad libtorch install',
    ],
  },
  {
    match: /(lib[\w.+-]+\.so[\d.]*): cannot open shared object file/,
    cause: 'library-missing',
    help: ([, library]) => [
      `the library ${library ?? ''} is not on this system: install it (Debian and Ubuntu: apt-file search ${library ?? ''})`,
      'or take a complete LibTorch: npx diad libtorch install',
    ],
  },
  {
    match: /undefined symbol: (\S+)/,
    cause: 'symbol-missing',
    help: () => [
      'the engine was built for a LibTorch with other symbols: version.py or build-version may name another version than the libraries are',
      'is LD_LIBRARY_PATH or LD_PRELOAD set? Then another LibTorch may come first: unset it',
      'npx diad libtorch install   (a LibTorch that fits)',
    ],
  },
  {
    match:
      /file too short|invalid ELF header|wrong ELF class|ELF load command|cannot read file data|not a mach-o|Exec format/i,
    cause: 'libtorch-damaged',
    help: (_found, { libtorchPath }) => [
      `${libtorchPath ?? 'LibTorch'} is cut short, or for another kind of machine: install it again`,
      'npx diad libtorch list --verify   (checks the ones in the cache)',
      'npx diad libtorch install',
    ],
  },
  {
    match: /failed to map segment|Operation not permitted|Permission denied/,
    cause: 'not-permitted',
    help: (_found, { libtorchPath }) => [
      `the system does not let libraries be mapped from ${libtorchPath ?? "LibTorch's folder"}: is it mounted noexec, or are its files not readable?`,
      'put LibTorch elsewhere: XDG_CACHE_HOME=<folder> npx diad libtorch install',
    ],
  },
  {
    match: /cannot allocate memory/i,
    cause: 'out-of-memory',
    help: () => [
      'LibTorch takes about 500 MB of address space and 200 MB of memory: raise the limit (ulimit -v, the container)',
    ],
  },
];

/** Errors by their code. */
const CODES: Readonly<
  Record<string, { readonly cause: Cause; readonly help: (surroundings: Surroundings) => readonly string[] }>
> = {
  ERR_DIAD_LIBTORCH_NOT_FOUND: { cause: 'libtorch-not-found', help: () => GET_LIBTORCH },
  ERR_DIAD_LIBTORCH_MISMATCH: {
    cause: 'libtorch-mismatch',
    help: () => [
      ...GET_LIBTORCH,
      'or build an engine for the LibTorch you have: npm run build:native in the package folder, with DIAD_LIBTORCH set',
    ],
  },
  ERR_DIAD_OUT_OF_MEMORY: {
    cause: 'out-of-memory',
    help: () => ['free memory, raise the limit, or take a smaller bundle'],
  },
  ERR_DIAD_DEVICE_UNAVAILABLE: {
    cause: 'device-unavailable',
    help: ({ nvidiaDriver }) =>
      nvidiaDriver === null
        ? ['there is no NVIDIA driver: install it, or use --device cpu']
        : [
            `there is a driver (${nvidiaDriver}), so this LibTorch is a CPU build or too new for it: npx diad libtorch install --variant cuda`,
          ],
  },
  ERR_DIAD_BUNDLE_NOT_FOUND: {
    cause: 'bundle-not-found',
    help: () => ['name a folder that holds manifest.json with --model'],
  },
  ERR_DIAD_BUNDLE_INVALID: {
    cause: 'bundle-invalid',
    help: () => ['export the bundle again with a version of diad that fits this one'],
  },
  ERR_DIAD_BUNDLE_CORRUPT: {
    cause: 'bundle-corrupt',
    help: () => [
      'a file differs from what the manifest says: copy or download the bundle again; for the base model, install diad again',
    ],
  },
  ERR_DIAD_IMAGE_DECODE: {
    cause: 'images-unreadable',
    help: () => [
      'the engine works, sharp does not: npm install --include=optional sharp   (its binaries are optional dependencies)',
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
        'LibTorch used an instruction that this CPU does not have',
        'ATEN_CPU_CAPABILITY=default in the environment takes the plainest code paths; see the CPU features above (avx2 is the least that is fast)',
      ],
    };
  }
  if (signal === 'SIGKILL' || signal === 'SIGTERM') {
    return {
      cause: 'killed',
      code,
      message: said,
      help: [
        'somebody killed the probe, usually the kernel for want of memory: see dmesg, and the memory limit above',
      ],
    };
  }
  return {
    cause: 'crashed',
    code,
    message: said,
    help: [
      stage === 'libtorch'
        ? 'the libraries are damaged or do not belong together: npx diad libtorch install'
        : 'this should not happen: please report it with this report',
      'other libraries in the process may be why: try without LD_PRELOAD and LD_LIBRARY_PATH',
    ],
  };
}

/** What a failed probe means, or undefined when it went well. */
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
      help: known?.help(surroundings) ?? ['please report it with this report'],
    };
  }
  if (timedOut) {
    const help = ['is the machine very busy, or the bundle on a slow disk? Run it again, with --timeout'];
    return {
      cause: 'timeout',
      code: 'ERR_DIAD_TIMEOUT',
      message: `The probe did not end in time (at: ${stage})`,
      help,
    };
  }
  if (signal !== undefined) return crashed(outcome, `The probe was ended by ${signal}`);
  if (exitCode !== 0) {
    const message = `The probe ended with exit code ${exitCode ?? '?'}: ${stderr.trim().split('\n').slice(-3).join(' ')}`;
    return {
      cause: 'unknown',
      code: 'ERR_DIAD_INTERNAL',
      message,
      help: ['please report it with this report'],
    };
  }
  return undefined;
}
