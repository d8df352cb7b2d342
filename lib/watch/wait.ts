// Exponential backoff between attempts.
import { setTimeout as sleep } from 'node:timers/promises';

const LONGEST_WAIT_MS = 30_000;

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/**
 * Logs a failure and waits: 0.25 s, doubled with each attempt up to 30 s, minus a random part of up to half.
 *
 * @param attempt - from 0
 * @throws the signal's AbortError
 */
export async function waitAfter(
  what: string,
  error: unknown,
  attempt: number,
  signal: AbortSignal,
  log: (line: string) => void,
): Promise<void> {
  const wait = Math.min(LONGEST_WAIT_MS, 250 * 2 ** attempt) * (0.5 + Math.random() / 2);
  log(`${what}: ${messageOf(error)}; retrying in ${Math.round(wait)} ms`);
  await sleep(wait, undefined, { signal });
}
