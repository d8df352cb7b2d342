// DiadError and its codes.

/** Error codes, stable across versions. */
export type DiadErrorCode =
  | 'ERR_DIAD_INVALID_ARGUMENT'
  | 'ERR_DIAD_IMAGE_DECODE'
  | 'ERR_DIAD_IMAGE_TOO_LARGE'
  | 'ERR_DIAD_BUNDLE_NOT_FOUND'
  | 'ERR_DIAD_BUNDLE_INVALID'
  | 'ERR_DIAD_BUNDLE_CORRUPT'
  | 'ERR_DIAD_LIBTORCH_NOT_FOUND'
  | 'ERR_DIAD_LIBTORCH_MISMATCH'
  | 'ERR_DIAD_DEVICE_UNAVAILABLE'
  | 'ERR_DIAD_OUT_OF_MEMORY'
  | 'ERR_DIAD_QUEUE_FULL'
  | 'ERR_DIAD_TIMEOUT'
  | 'ERR_DIAD_CLOSED'
  | 'ERR_DIAD_BROKER_UNAVAILABLE'
  | 'ERR_DIAD_INTERNAL';

const CODES: ReadonlySet<string> = new Set<DiadErrorCode>([
  'ERR_DIAD_INVALID_ARGUMENT',
  'ERR_DIAD_IMAGE_DECODE',
  'ERR_DIAD_IMAGE_TOO_LARGE',
  'ERR_DIAD_BUNDLE_NOT_FOUND',
  'ERR_DIAD_BUNDLE_INVALID',
  'ERR_DIAD_BUNDLE_CORRUPT',
  'ERR_DIAD_LIBTORCH_NOT_FOUND',
  'ERR_DIAD_LIBTORCH_MISMATCH',
  'ERR_DIAD_DEVICE_UNAVAILABLE',
  'ERR_DIAD_OUT_OF_MEMORY',
  'ERR_DIAD_QUEUE_FULL',
  'ERR_DIAD_TIMEOUT',
  'ERR_DIAD_CLOSED',
  'ERR_DIAD_BROKER_UNAVAILABLE',
  'ERR_DIAD_INTERNAL',
]);

/** Error class of this library. Aborts reject with the signal's reason instead. */
export class DiadError extends Error {
  override readonly name = 'DiadError';
  readonly code: DiadErrorCode;

  /**
   * @param code - kind of error
   * @param message - what was wrong, with which value, and what to do
   * @param options - `cause`: the original error
   */
  constructor(code: DiadErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Creates the error for an invalid argument. */
export const invalidArgument = (message: string): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', message);

/** Checks whether an error is caused by the image, so that a retry would fail too. */
export function isOfImage(error: unknown): error is DiadError {
  const lasting: readonly DiadErrorCode[] = [
    'ERR_DIAD_IMAGE_DECODE',
    'ERR_DIAD_IMAGE_TOO_LARGE',
    'ERR_DIAD_INVALID_ARGUMENT',
  ];
  return error instanceof DiadError && lasting.includes(error.code);
}

/** Returns the `code` of an error, if it has one. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/**
 * Converts a native rejection into a DiadError with the caller's stack.
 *
 * @param error - Error with a `code`, as rejected by the addon
 */
export function fromNative(error: unknown): DiadError {
  if (error instanceof DiadError) return error;
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  const known = code !== undefined && CODES.has(code);
  return new DiadError(known ? (code as DiadErrorCode) : 'ERR_DIAD_INTERNAL', message, { cause: error });
}
