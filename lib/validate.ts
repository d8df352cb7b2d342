// Validates arguments. All errors have the form "Expected X for Y but received Z of type T".
import { DiadError } from './errors.js';

function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'object' && value !== null) {
    const name = (Object.getPrototypeOf(value) as { constructor?: { name?: string } } | null)?.constructor
      ?.name;
    return name === undefined || name === 'Object' ? 'an object' : `an instance of ${name}`;
  }
  return typeof value === 'bigint' ? `${String(value)}n` : String(value);
}

/**
 * Creates the error for an invalid argument.
 *
 * @param expected - description of valid values, for example "an integer from 1 to 64"
 * @param name - name of the argument
 * @param received - the invalid value
 */
export function invalid(expected: string, name: string, received: unknown): DiadError {
  const type = received === null ? 'null' : typeof received;
  return new DiadError(
    'ERR_DIAD_INVALID_ARGUMENT',
    `Expected ${expected} for ${name} but received ${shown(received)} of type ${type}`,
  );
}

/** Checks for an options object with only known keys; undefined becomes an empty object. */
export function optionsObject<T extends object>(
  value: T | undefined,
  name: string,
  keys: readonly (keyof T & string)[],
): Partial<T> {
  if (value === undefined) return {};
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid('an object', name, value);
  for (const key of Object.keys(value)) {
    if (!(keys as readonly string[]).includes(key)) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `Expected one of ${keys.join(', ')} in ${name} but received the unknown key ${key}`,
      );
    }
  }
  return value;
}

/** Checks for an integer within bounds; undefined becomes the default. */
export function integer(value: unknown, name: string, low: number, high: number, byDefault: number): number {
  if (value === undefined) return byDefault;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high) {
    throw invalid(`an integer from ${low} to ${high}`, name, value);
  }
  return value;
}

/** Checks for a finite number within bounds; undefined becomes the default. */
export function number(value: unknown, name: string, low: number, high: number, byDefault: number): number {
  if (value === undefined) return byDefault;
  if (typeof value !== 'number' || !(value >= low && value <= high))
    throw invalid(`a number from ${low} to ${high}`, name, value);
  return value;
}

/** Checks for a boolean; undefined becomes the default. */
export function boolean(value: unknown, name: string, byDefault: boolean): boolean {
  if (value === undefined) return byDefault;
  if (typeof value !== 'boolean') throw invalid('a boolean', name, value);
  return value;
}

/** Checks for one of several words; undefined becomes the default. */
export function oneOf<T extends string>(value: unknown, name: string, words: readonly T[], byDefault: T): T {
  if (value === undefined) return byDefault;
  if (typeof value !== 'string' || !(words as readonly string[]).includes(value))
    throw invalid(`one of ${words.join(', ')}`, name, value);
  return value as T;
}

/** Checks for a non-empty string or undefined. */
export function text(value: unknown, name: string): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'string' || value === '' || value.includes('\0'))
    throw invalid('a non-empty string', name, value);
  return value;
}

/** Checks for a non-empty string. */
export function requiredText(value: unknown, name: string): string {
  const given = text(value, name);
  if (given === undefined) throw invalid('a non-empty string', name, value);
  return given;
}

/** Checks for a loaded bundle, or an object with the same interface. */
export function loadedBundle<T extends { readonly score: unknown; readonly info: unknown }>(
  value: T | undefined,
  name: string,
): T {
  if (typeof value?.score !== 'function' || typeof value.info !== 'object')
    throw invalid('a loaded bundle', name, value);
  return value;
}

/** Checks for a synchronous or asynchronous iterable other than a string or bytes. */
export function iterable<T extends object>(value: T, expected: string, name: string): T {
  const fits =
    typeof value === 'object' &&
    value !== null &&
    (Symbol.iterator in value || Symbol.asyncIterator in value);
  if (!fits || value instanceof Uint8Array) throw invalid(expected, name, value);
  return value;
}

/** Checks for a seed: an integer from 0, as number (to 2^53 - 1) or bigint (to 2^64 - 1); default 0. */
export function seed(value: unknown): bigint {
  if (value === undefined) return 0n;
  const fits =
    typeof value === 'bigint'
      ? value >= 0n && value < 2n ** 64n
      : Number.isSafeInteger(value) && (value as number) >= 0;
  if (!fits) throw invalid('an integer from 0 to 2^53 - 1, or a bigint up to 2^64 - 1,', 'seed', value);
  return BigInt(value as number | bigint);
}

/** Checks for an AbortSignal or undefined. */
export function abortSignal(value: unknown): AbortSignal | undefined {
  if (value !== undefined && !(value instanceof AbortSignal))
    throw invalid('an AbortSignal', 'signal', value);
  return value;
}

/** Checks for a function or undefined. */
export function callback<T>(value: T | undefined, name: string): T | undefined {
  if (value !== undefined && typeof value !== 'function') throw invalid('a function', name, value);
  return value;
}
