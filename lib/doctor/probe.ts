// Runs the probe in a forked child and reports its last stage and how it ended.
import { fork } from 'node:child_process';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import type { DiadInfo } from '../scoring/info.js';
import type { EngineVersion } from '../native/addon.js';
import type { VerifyReport } from '../verify/verify.js';
import type { ProbeMessage, ProbeRequest, ProbeStage } from './probe-child.js';

/** How a child ended, and its messages up to then. */
export interface ProbeOutcome {
  /** Last stage that it entered. */
  readonly stage: ProbeStage;
  readonly version?: EngineVersion;
  readonly info?: DiadInfo;
  readonly score?: number;
  /** Duration of the score, milliseconds. */
  readonly milliseconds?: number;
  /** Comparison with the bundle's golden results, if it has any. */
  readonly verified?: VerifyReport;
  /** Error reported by the child. */
  readonly failure?: { readonly code: string; readonly message: string };
  /** Signal that ended the child. */
  readonly signal?: NodeJS.Signals;
  /** Whether the child was killed because it exceeded the timeout. */
  readonly timedOut: boolean;
  readonly exitCode: number | null;
  /** End of its standard error. */
  readonly stderr: string;
}

const CHILD = fileURLToPath(new URL('./probe-child.js', import.meta.url));
const KEPT = 4000; // characters of standard error

/**
 * Runs a probe in a child process. Never rejects because of a failure in the child.
 *
 * @param timeoutMs - time after which the child is killed
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
    // If the child dies immediately, the send fails and 'close' reports the exit.
    child.send(request, () => undefined);
  });
}

/** Returns the environment variables that affect LibTorch. */
export function relevantVariables(): Readonly<Record<string, string>> {
  const names = /^(DIAD_|OMP_|MKL_|CUDA_|ATEN_|TORCH_|LD_LIBRARY_PATH$|LD_PRELOAD$|DYLD_|KMP_|GOMP_)/;
  return Object.fromEntries(
    Object.entries(process.env).filter(
      (pair): pair is [string, string] => names.test(pair[0]) && pair[1] !== undefined,
    ),
  );
}
