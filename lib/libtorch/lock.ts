// One process at a time, over containers and hosts (whose clocks agree) that share a folder: a lock counts for as long as its owner keeps touching it.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf } from '../errors.js';

/** After how long without a touch a lock counts as left behind, milliseconds. */
const STALE_MS = 15_000;
const LOOK_MS = 500;

/** Who waits, and for how long. */
export interface LockOptions {
  /** Ends the waiting, and is handed on to the work. */
  readonly signal: AbortSignal | undefined;
  /** Told once when another process has the lock. */
  readonly onWait: () => void;
}

/**
 * Runs `work` while holding a lock; waits while another process holds it. One that a killed process has left is taken after 15 s, whatever process has
 * its number now.
 *
 * @param file - the lock is beside it, `${file}.lock`; removed afterwards
 * @param work - its signal also aborts when the lock is lost, as it is to a process that was stopped for long
 * @throws what `work` throws; the signal's reason; the system's error when the lock cannot be made
 */
export async function withLock<T>(
  file: string,
  { signal, onWait }: LockOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const { lock } = await import('proper-lockfile'); // from its import on it listens to signals
  await mkdir(path.dirname(file), { recursive: true });
  const lost = new AbortController();
  const onCompromised = (error: Error): void => {
    lost.abort(error);
  };
  let release: () => Promise<void>;
  for (let attempt = 0; ; attempt++) {
    try {
      release = await lock(file, { realpath: false, stale: STALE_MS, onCompromised });
      break;
    } catch (error) {
      if (codeOf(error) !== 'ELOCKED') throw error;
      if (attempt === 0) onWait();
      await sleep(LOOK_MS, undefined, { signal }).catch(() => signal?.throwIfAborted());
    }
  }
  try {
    return await work(signal === undefined ? lost.signal : AbortSignal.any([signal, lost.signal]));
  } finally {
    await release().catch(() => undefined); // lost already
  }
}
