// Runs the probe in a forked child, and says how far the child came and how it ended.
import { fork } from 'node:child_process';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import type { DiadInfo } from '../info.js';
import type { EngineVersion } from '../native.js';
import type { VerifyReport } from '../verify.js';
import type { ProbeMessage, ProbeRequest, ProbeStage } from './probe-child.js';

/** How a child ended, and what it had said by then. */
export interface ProbeOutcome {
  /** Where it was when it ended. */
  readonly stage: ProbeStage;
  readonly version?: EngineVersion;
  readonly info?: DiadInfo;
  readonly score?: number;
  /** Of the score, milliseconds. */
  readonly milliseconds?: number;
  /** Of the bundle's golden results, when it has some. */
  readonly verified?: VerifyReport;
  /** An error that the child reported itself. */
  readonly failure?: { readonly code: string; readonly message: string };
  /** The signal that ended it. */
  readonly signal?: NodeJS.Signals;
  /** It did not end by itself in time. */
  readonly timedOut: boolean;
  readonly exitCode: number | null;
  /** The end of what it printed to standard error. */
  readonly stderr: string;
}

const CHILD = fileURLToPath(new URL('./probe-child.js', import.meta.url));
const KEPT = 4000; // characters of standard error

/**
 * Probes in a child process. Never rejects for what happens in the child.
 *
 * @param timeoutMs - then the child is killed
 */
export function probe(request: ProbeRequest, timeoutMs: number): Promise<ProbeOutcome> {
  return new Promise((resolve, reject) => {
    const child = fork(CHILD, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] });
    let outcome: Omit<ProbeOutcome, 'timedOut' | 'exitCode' | 'stderr'> = { stage: 'addon' };
    let [stderr, timedOut] = ['', false];
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill('SIGKILL');
    }, timeoutMs);
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      stderr = (stderr + chunk).slice(-KEPT);
    });
    child.on('message', (received) => {
      const message = received as ProbeMessage;
      switch (message.kind) {
        case 'entering':
          outcome = { ...outcome, stage: message.stage };
          break;
        case 'opened':
          outcome = { ...outcome, version: message.version };
          break;
        case 'loaded':
          outcome = { ...outcome, info: message.info };
          break;
        case 'scored':
          outcome = { ...outcome, score: message.score, milliseconds: message.milliseconds };
          break;
        case 'verified':
          outcome = { ...outcome, verified: message.report };
          break;
        case 'failed':
          outcome = { ...outcome, failure: { code: message.code, message: message.message } };
          break;
      }
    });
    child.once('error', reject);
    child.once('close', (exitCode, signal) => {
      clearTimeout(timer);
      resolve({ ...outcome, timedOut, exitCode, stderr, ...(signal === null ? {} : { signal }) });
    });
    // A child that dies at once takes the channel with it; then 'close' says so.
    child.send(request, () => undefined);
  });
}

/** Variables that change how LibTorch runs, of those that are set. */
export function relevantVariables(): Readonly<Record<string, string>> {
  const names = /^(DIAD_|OMP_|MKL_|CUDA_|ATEN_|TORCH_|LD_LIBRARY_PATH$|LD_PRELOAD$|DYLD_|KMP_|GOMP_)/;
  return Object.fromEntries(
    Object.entries(process.env).filter(
      (pair): pair is [string, string] => names.test(pair[0]) && pair[1] !== undefined,
    ),
  );
}
