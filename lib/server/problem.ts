// Converts failures to RFC 9457 problem details with a status and a message for the client.
import { STATUS_CODES } from 'node:http';
import type { FastifyError } from 'fastify';
import { DiadError, type DiadErrorCode } from '../errors.js';

/** Codes of HTTP failures, as opposed to image failures. */
export type HttpCode =
  | 'ERR_HTTP_BAD_REQUEST'
  | 'ERR_HTTP_UNAUTHORIZED'
  | 'ERR_HTTP_FORBIDDEN'
  | 'ERR_HTTP_NOT_FOUND'
  | 'ERR_HTTP_METHOD_NOT_ALLOWED'
  | 'ERR_HTTP_NOT_ACCEPTABLE'
  | 'ERR_HTTP_TIMEOUT'
  | 'ERR_HTTP_TOO_LARGE'
  | 'ERR_HTTP_UNSUPPORTED_MEDIA_TYPE'
  | 'ERR_HTTP_RATE_LIMITED'
  | 'ERR_HTTP_HEADERS_TOO_LARGE'
  | 'ERR_HTTP_UNAVAILABLE'
  | 'ERR_HTTP_INTERNAL';

const STATUS_OF: Readonly<Record<HttpCode, number>> = {
  ERR_HTTP_BAD_REQUEST: 400,
  ERR_HTTP_UNAUTHORIZED: 401,
  ERR_HTTP_FORBIDDEN: 403,
  ERR_HTTP_NOT_FOUND: 404,
  ERR_HTTP_METHOD_NOT_ALLOWED: 405,
  ERR_HTTP_NOT_ACCEPTABLE: 406,
  ERR_HTTP_TIMEOUT: 408,
  ERR_HTTP_TOO_LARGE: 413,
  ERR_HTTP_UNSUPPORTED_MEDIA_TYPE: 415,
  ERR_HTTP_RATE_LIMITED: 429,
  ERR_HTTP_HEADERS_TOO_LARGE: 431,
  ERR_HTTP_UNAVAILABLE: 503,
  ERR_HTTP_INTERNAL: 500,
};

const STATUS_OF_DIAD: Partial<Readonly<Record<DiadErrorCode, number>>> = {
  ERR_DIAD_INVALID_ARGUMENT: 400,
  ERR_DIAD_IMAGE_DECODE: 422,
  ERR_DIAD_IMAGE_TOO_LARGE: 413,
  ERR_DIAD_QUEUE_FULL: 503,
  ERR_DIAD_TIMEOUT: 503, // the server was too busy; the same request can succeed later
  ERR_DIAD_CLOSED: 503,
  ERR_DIAD_OUT_OF_MEMORY: 503,
};

/** A failure with an HTTP status. */
export class HttpFailure extends Error {
  override readonly name = 'HttpFailure';
  readonly code: HttpCode | DiadErrorCode;
  readonly status: number;

  constructor(code: HttpCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.status = STATUS_OF[code];
  }
}

/** Body of an application/problem+json response. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  /** ERR_DIAD_* or ERR_HTTP_*, stable across versions. */
  readonly code: string;
  readonly detail: string;
  /** Identifies the request in the server's log. */
  readonly requestId?: string;
}

const FASTIFY_CODES: Readonly<Record<string, HttpCode>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'ERR_HTTP_UNSUPPORTED_MEDIA_TYPE',
  FST_ERR_RATE_LIMIT: 'ERR_HTTP_RATE_LIMITED',
  FST_UNDER_PRESSURE: 'ERR_HTTP_UNAVAILABLE',
};

function codeForStatus(status: number): HttpCode {
  const found = (Object.entries(STATUS_OF) as [HttpCode, number][]).find(([, known]) => known === status);
  return found?.[0] ?? (status < 500 ? 'ERR_HTTP_BAD_REQUEST' : 'ERR_HTTP_INTERNAL');
}

function classify(error: unknown): { status: number; code: string; detail: string } {
  if (error instanceof HttpFailure) return { status: error.status, code: error.code, detail: error.message };
  if (error instanceof DiadError) {
    const status = STATUS_OF_DIAD[error.code] ?? 500;
    return {
      status,
      code: error.code,
      detail: status === 500 ? 'The engine failed; see the log' : error.message,
    };
  }
  const { statusCode = 500, code = '', message } = error as Partial<FastifyError>;
  const known = FASTIFY_CODES[code] ?? codeForStatus(statusCode);
  const status = statusCode < 500 || known !== 'ERR_HTTP_INTERNAL' ? STATUS_OF[known] : 500;
  return {
    status,
    code: known,
    detail: status === 500 || message === undefined ? 'The server failed; see the log' : message,
  };
}

/** Converts a failure to a problem. Reveals nothing about internal failures except the request id. */
export function toProblem(error: unknown, requestId?: string): Problem {
  const { status, code, detail } = classify(error);
  const title = STATUS_CODES[status] ?? 'Error';
  return {
    type: 'about:blank',
    title,
    status,
    code,
    detail,
    ...(requestId === undefined ? {} : { requestId }),
  };
}
