// Parses numbers from the command line.
import { InvalidArgumentError } from 'commander';

/** Parses a whole number of at least 0. */
export function wholeNumber(value: string): number {
  const parsed = Number(value);
  if (value.trim() === '' || !Number.isSafeInteger(parsed) || parsed < 0)
    throw new InvalidArgumentError('Expected a whole number from 0.');
  return parsed;
}

/** Parses a rate above 0 and at most 1. */
export function rate(value: string): number {
  const parsed = Number(value);
  if (!(parsed > 0 && parsed <= 1)) throw new InvalidArgumentError('Expected a number above 0, at most 1.');
  return parsed;
}

/** Parses a number above 0. */
export function positive(value: string): number {
  const parsed = Number(value);
  if (!(parsed > 0 && Number.isFinite(parsed))) throw new InvalidArgumentError('Expected a number above 0.');
  return parsed;
}
