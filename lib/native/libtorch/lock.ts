// Lock file for one process at a time, across containers and hosts with synchronized clocks that share a
// folder. The owner keeps a lock alive by touching its file.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf } from '../../errors.js';

/** Age at which an untouched lock counts as abandoned, milliseconds. */
const STALE_MS = 15_000;
const LOOK_MS = 500;

/** Options of {@link withLock}. */
export interface LockOptions {
  /** Cancels waiting. Also passed to the work. */
  readonly signal: AbortSignal | undefined;
  /** Called once if another process holds the lock. */
  readonly onWait: () => void;
}

/**
 * Runs `work` while holding a lock, and waits while another process holds it. Takes over the lock of a killed
 * process after 15 s, regardless of process ids.
 *
 * @param file - the lock is `${file}.lock`; removed afterwards
 * @param work - its signal also aborts when the lock is lost, for example after the process was suspended
 * @throws errors of `work`; the signal's reason; the system error when the lock cannot be created
 */
export async function withLock<T>(
  file: string,
  { signal, onWait }: LockOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  // Imported late, because the import installs signal handlers.
  const { lock } = await import('proper-lockfile');
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
    await release().catch(() => undefined); // already lost
  }
}
