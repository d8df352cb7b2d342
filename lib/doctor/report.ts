// The doctor's report: machine, addon, LibTorch, bundle, and a score checked against a reference.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { codeOf } from '../errors.js';
import { findLibTorch, type LibTorch, type Miss } from '../native/libtorch/search.js';
import { variantOf } from '../native/libtorch/version.js';
import { addonPath, engines, packageRoot } from '../native/addon.js';
import { diagnose, type Cause, type Problem } from './diagnosis.js';
import { describeMachine, type Machine } from './machine.js';
import { probe, relevantVariables, type ProbeOutcome } from './probe.js';

/** Options of {@link examine}. */
export interface Examination {
  /** Default: the base bundle. */
  readonly bundle?: string | undefined;
  readonly device: string;
  /** Time limit of one probe, milliseconds. */
  readonly timeoutMs: number;
}

/** Comparison of a score with a reference value. */
export interface Golden {
  /** Reference: golden results in the bundle or, without them, a second process on the CPU. */
  readonly against: 'bundle' | 'process';
  readonly relativeDifference: number;
  /** Largest accepted relative difference. */
  readonly tolerance: number;
}

/** Output of `diad doctor --json`. */
export interface Report extends Machine {
  /** Whether images can be scored. */
  readonly ok: boolean;
  readonly diad: string;
  /** Environment variables that affect LibTorch. */
  readonly environment: Readonly<Record<string, string>>;
  readonly addon?: string;
  /** LibTorch minor versions with an engine. */
  readonly engines?: readonly string[];
  readonly libtorch?: {
    readonly version: string;
    readonly variant: string;
    readonly path: string;
    readonly source: string;
  };
  /** Locations searched before LibTorch was found, with the reason why each was rejected. */
  readonly tried: readonly Miss[];
  readonly cpuCapability?: string;
  readonly threads?: number;
  readonly devices?: readonly string[];
  readonly bundle?: {
    readonly path: string;
    readonly name: string;
    readonly digest: string;
    readonly imageSize: number;
    readonly steps: number;
  };
  /** First score of the built-in image. */
  readonly score?: { readonly value: number; readonly milliseconds: number };
  readonly golden?: Golden;
  readonly problem?: Problem;
}

/**
 * Tolerance on the same device: the order of operations is the same, but threads can split sums differently.
 */
const SAME_DEVICE = 1e-5;
/** Tolerance between devices, which sum in a different order; float32 throughout. */
const OTHER_DEVICE = 1e-2;
const NODE_API = 9;

function problem(cause: Cause, error: unknown, help: readonly string[]): Problem {
  return {
    cause,
    code: codeOf(error) ?? 'ERR_DIAD_INTERNAL',
    message: error instanceof Error ? error.message : String(error),
    help,
  };
}

function examineAddon(
  machine: Machine,
): { readonly addon: string; readonly engines: readonly string[] } | Problem {
  const rebuild =
    'build it: npm run build in a clone of the repository, or npm run build:native in the package folder ' +
    '(needs CMake, a C++20 compiler, LibTorch)';
  if (machine.nodeApi < NODE_API) {
    const message = `Node ${machine.node} has Node-API ${machine.nodeApi}, the addon needs ${NODE_API}`;
    return { cause: 'node-too-old', code: 'ERR_DIAD_INTERNAL', message, help: ['use Node 20.19 or newer'] };
  }
  let addon: string;
  try {
    addon = addonPath();
  } catch (error) {
    const musl = machine.platform.startsWith('linux') && machine.libc === 'not glibc';
    const why = musl
      ? 'this Linux has no glibc (Alpine?); diad and PyTorch need glibc: use a glibc image'
      : rebuild;
    return problem('addon-missing', error, [why]);
  }
  const minors = [...engines(addon).keys()].sort();
  if (minors.length > 0) return { addon, engines: minors };
  return {
    ...problem('engine-missing', new Error(`No engine library found next to ${addon}`), [
      'install diad again',
      rebuild,
    ]),
  };
}

function differs(what: string): Problem {
  const help = [
    'results on this machine cannot be trusted: check for faulty memory or overclocking',
    'try another LibTorch: npx diad libtorch install',
  ];
  return { cause: 'golden-differs', code: 'ERR_DIAD_INTERNAL', message: what, help };
}

/** Compares with the bundle's golden results or, without them, with a second process on the CPU. */
async function compare(first: ProbeOutcome, examination: Examination): Promise<Golden | Problem> {
  const { score = Number.NaN, info, verified } = first;
  if (verified !== undefined) {
    const { maxRelative: relativeDifference = Number.NaN, tolerance = 0 } =
      verified.stages.find(({ stage }) => stage === 'score') ?? {};
    const failed = verified.stages.filter(({ passed }) => !passed).map(({ stage }) => stage);
    if (!verified.passed)
      return differs(
        `These stages exceed the tolerance to the golden results: ${failed.join(', ')}; see diad verify`,
      );
    return { against: 'bundle', relativeDifference, tolerance };
  }
  const second = await probe({ bundle: examination.bundle, device: 'cpu' }, examination.timeoutMs);
  const reference = second.score;
  if (reference === undefined) {
    const surroundings = { libc: '', nvidiaDriver: null, libtorchPath: undefined };
    return (
      diagnose(second, surroundings) ??
      problem('unknown', new Error('The second probe sent no score'), ['run it again'])
    );
  }
  const tolerance = (info?.device ?? 'cpu') === 'cpu' ? SAME_DEVICE : OTHER_DEVICE;
  const relativeDifference = Math.abs(score - reference) / Math.max(Math.abs(reference), Number.MIN_VALUE);
  if (relativeDifference <= tolerance) return { against: 'process', relativeDifference, tolerance };
  return differs(`The same image scored ${score} in one process and ${reference} in another on the CPU`);
}

/**
 * Examines the installation. Native code runs only in child processes, so that a crash cannot end this one.
 */
export async function examine(examination: Examination): Promise<Report> {
  const machine = describeMachine();
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  const tried: Miss[] = [];
  let report: Omit<Report, 'ok' | 'tried'> = { ...machine, diad: version, environment: relevantVariables() };
  const finish = (found: Problem | undefined): Report => ({
    ...report,
    tried,
    ok: found === undefined,
    ...(found === undefined ? {} : { problem: found }),
  });

  const addon = examineAddon(machine);
  if ('cause' in addon) return finish(addon);
  report = { ...report, ...addon };
  let libtorch: LibTorch;
  try {
    libtorch = await findLibTorch(undefined, packageRoot, addon.engines, tried);
  } catch (error) {
    const failure = {
      code: codeOf(error) ?? 'ERR_DIAD_INTERNAL',
      message: error instanceof Error ? error.message : String(error),
    };
    const surroundings = { libc: machine.libc, nvidiaDriver: machine.nvidiaDriver, libtorchPath: undefined };
    return finish(
      diagnose({ stage: 'libtorch', failure, timedOut: false, exitCode: 0, stderr: '' }, surroundings),
    );
  }
  const { libFolder, source } = libtorch;
  report = {
    ...report,
    libtorch: {
      version: libtorch.version,
      variant: variantOf(libtorch.version) ?? 'not specified',
      path: libFolder,
      source,
    },
  };

  const outcome = await probe(
    { bundle: examination.bundle, device: examination.device },
    examination.timeoutMs,
  );
  const { version: opened, info } = outcome;
  if (opened !== undefined) {
    const { cpuCapability, threads, cudaDevices } = opened;
    report = { ...report, cpuCapability, threads, devices: ['cpu', ...cudaDevices] };
  }
  if (info !== undefined) {
    const { path: folder, name, digest, imageSize, steps } = info.bundle;
    report = { ...report, threads: info.threads, bundle: { path: folder, name, digest, imageSize, steps } };
  }
  if (outcome.score !== undefined)
    report = { ...report, score: { value: outcome.score, milliseconds: outcome.milliseconds ?? 0 } };
  const surroundings = { libc: machine.libc, nvidiaDriver: machine.nvidiaDriver, libtorchPath: libFolder };
  const found = diagnose(outcome, surroundings);
  if (found !== undefined) return finish(found);
  const golden = await compare(outcome, examination);
  if ('cause' in golden) return finish(golden);
  report = { ...report, golden };
  return finish(undefined);
}
