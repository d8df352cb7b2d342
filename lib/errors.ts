// DiadError and its codes.

/** What went wrong, stable over versions. */
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

/** Every error of this library, aborts aside: those reject with the signal's reason. */
export class DiadError extends Error {
  override readonly name = 'DiadError';
  readonly code: DiadErrorCode;

  /**
   * @param code - what went wrong
   * @param message - what was wrong, with which value, and what to do
   * @param options - `cause`: the original error
   */
  constructor(code: DiadErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The error for an argument that the caller can correct. */
export const invalidArgument = (message: string): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', message);

/** Whether the same image would meet an error again, whatever becomes of the engine and the machine. */
export function isOfImage(error: unknown): error is DiadError {
  const lasting: readonly DiadErrorCode[] = [
    'ERR_DIAD_IMAGE_DECODE',
    'ERR_DIAD_IMAGE_TOO_LARGE',
    'ERR_DIAD_INVALID_ARGUMENT',
  ];
  return error instanceof DiadError && lasting.includes(error.code);
}

/** The `code` of an error that has one. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/**
 * A native rejection as a DiadError whose stack is the caller's.
 *
 * @param error - what the addon rejected with: an Error with a `code`
 */
export function fromNative(error: unknown): DiadError {
  if (error instanceof DiadError) return error;
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  const known = code !== undefined && CODES.has(code);
  return new DiadError(known ? (code as DiadErrorCode) : 'ERR_DIAD_INTERNAL', message, { cause: error });
}
