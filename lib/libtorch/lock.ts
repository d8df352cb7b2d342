// A lock file that names its owner's process, so that a lock left behind by a killed process does not block for ever.
import { mkdir, open, readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { codeOf } from '../errors.js';

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return codeOf(error) === 'EPERM';
  }
}

/**
 * Runs `work` while holding a lock file.
 *
 * @param file - the lock; made, and removed afterwards
 * @param busy - makes the error for when another process that is alive holds it
 */
export async function withLock<T>(file: string, busy: (pid: number) => Error, work: () => Promise<T>): Promise<T> {
  await mkdir(path.dirname(file), { recursive: true });
  for (;;) {
    try {
      const handle = await open(file, 'wx');
      await handle.writeFile(String(process.pid));
      await handle.close();
      break;
    } catch (error) {
      if (codeOf(error) !== 'EEXIST') throw error;
      const owner = Number(await readFile(file, 'utf8').catch(() => ''));
      if (owner > 0 && isAlive(owner)) throw busy(owner);
      await rm(file, { force: true });
    }
  }
  try {
    return await work();
  } finally {
    await rm(file, { force: true });
  }
}
