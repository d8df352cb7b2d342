// Options of the server, with their defaults and bounds.
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import type { Diad } from '../diad.js';
import { RECHECK_MS } from '../health/engine-health.js';
import { NO_LIMITS } from '../image/decode.js';
import { boolean, integer, invalid, oneOf, optionsObject, text } from '../validate.js';

/** The part of a loaded bundle that the server uses. */
export type Scorer = Pick<Diad, 'score' | 'reconstruct' | 'info' | 'stats' | 'close'>;

/** Options of `createServer`. */
export interface ServerOptions {
  /** Loads the bundle; called once, after the server has started to listen. */
  readonly load: () => Promise<Scorer>;
  /** Address to listen on. Default '127.0.0.1'. A non-loopback address requires `tokens` or `auth: false`. */
  readonly host?: string;
  /** Port to listen on; 0 selects a free one. Default 8080. */
  readonly port?: number;
  /** Accepted bearer tokens, at least 16 characters each. Default: none. */
  readonly tokens?: readonly string[];
  /** false: require no token on any address; conflicts with `tokens`. Default true. */
  readonly auth?: boolean;
  /** Largest request body, bytes. Default 32 MiB. */
  readonly bodyLimit?: number;
  /** Most bytes of request bodies in memory. Default 256 MiB. */
  readonly bytesInFlight?: number;
  /** Largest image, width x height. Default 32,000,000. */
  readonly maxPixels?: number;
  /**
   * Most pages or frames of an image; only the first is scored. Default 1: multi-frame images are rejected.
   */
  readonly maxFrames?: number;
  /** Most pixels of all images in flight. Default 128,000,000. */
  readonly pixelsInFlight?: number;
  /** Time limit for a client to send a request, milliseconds. Default 30,000. */
  readonly requestTimeoutMs?: number;
  /** Time limit from the arrival of an image to its score, milliseconds. Default 60,000. */
  readonly scoreTimeoutMs?: number;
  /**
   * Interval between probes of a failing engine, milliseconds; after six failed probes it is lost. Default
   * 5,000.
   */
  readonly recheckMs?: number;
  /** Requests per minute and token (or address, without tokens). Default 6,000. */
  readonly rateLimit?: number;
  /** Other origins whose pages may call the server. Default: none. */
  readonly corsOrigins?: readonly string[];
  /** Certificate chain and private key, PEM. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Time limit for open requests at shutdown, milliseconds. Default 30,000. */
  readonly drainMs?: number;
  /** Lowest level that is logged to standard error. Default 'info'. */
  readonly logLevel?: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent';
}

/** Validated server options. */
export type ValidatedServer = Required<Omit<ServerOptions, 'tls' | 'tokens'>> & {
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
  /** SHA-256 of each token: allows comparison in constant time and keeps no token in memory. */
  readonly tokenDigests: readonly Buffer[];
};

const KEYS = [
  'load',
  'host',
  'port',
  'tokens',
  'auth',
  'bodyLimit',
  'bytesInFlight',
  'maxPixels',
  'maxFrames',
  'pixelsInFlight',
  'requestTimeoutMs',
  'scoreTimeoutMs',
  'recheckMs',
  'rateLimit',
  'corsOrigins',
  'tls',
  'drainMs',
  'logLevel',
] as const;

const MIB = 2 ** 20;
const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

/** Checks whether an address is reachable only from this machine. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}

/** Computes the SHA-256 of a token. */
export function tokenDigest(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

/** Validates origins. They must be written as browsers send them, or they would never match. */
function origins(given: unknown): readonly string[] {
  if (given === undefined) return [];
  if (!Array.isArray(given)) throw invalid('an array of origins', 'corsOrigins', given);
  return given.map((origin: unknown) => {
    const fits = typeof origin === 'string' && URL.canParse(origin) && new URL(origin).origin === origin;
    if (!fits)
      throw invalid(
        'an origin like https://line.example:8443, without a path,',
        'corsOrigins (--cors-origin)',
        origin,
      );
    return origin;
  });
}

/** @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option */
export function validateServerOptions(options: ServerOptions): ValidatedServer {
  const given = optionsObject(options, 'server options', KEYS);
  if (typeof given.load !== 'function') throw invalid('a function that loads a bundle', 'load', given.load);
  const host = text(given.host, 'host') ?? '127.0.0.1';
  const tokens = given.tokens ?? [];
  const auth = boolean(given.auth, 'auth', true);
  if (!auth && tokens.length > 0)
    throw invalid('no tokens (--token-file) with auth: false (--no-auth)', 'tokens', tokens);
  for (const token of tokens) {
    if (typeof token !== 'string' || token.length < 16 || /\s/.test(token)) {
      throw invalid(
        '16 characters or more without white space',
        'a token',
        typeof token === 'string' ? `${token.length} characters` : token,
      );
    }
  }
  if (auth && tokens.length === 0 && !isLoopback(host)) {
    throw invalid('a loopback address, or tokens (--token-file), or auth: false (--no-auth),', 'host', host);
  }
  const maxPixels = integer(given.maxPixels, 'maxPixels', 1, Number.MAX_SAFE_INTEGER, 32_000_000);
  const bodyLimit = integer(given.bodyLimit, 'bodyLimit', 1024, 2 ** 31 - 1, 32 * MIB);
  return {
    load: given.load,
    host,
    port: integer(given.port, 'port', 0, 65_535, 8080),
    tokenDigests: auth ? tokens.map(tokenDigest) : [],
    auth,
    bodyLimit,
    bytesInFlight: integer(
      given.bytesInFlight,
      'bytesInFlight',
      bodyLimit,
      Number.MAX_SAFE_INTEGER,
      Math.max(256 * MIB, bodyLimit),
    ),
    maxPixels,
    maxFrames: integer(given.maxFrames, 'maxFrames', 1, NO_LIMITS.maxFrames, 1),
    pixelsInFlight: integer(
      given.pixelsInFlight,
      'pixelsInFlight',
      maxPixels,
      Number.MAX_SAFE_INTEGER,
      Math.max(128_000_000, maxPixels),
    ),
    requestTimeoutMs: integer(given.requestTimeoutMs, 'requestTimeoutMs', 100, 3_600_000, 30_000),
    scoreTimeoutMs: integer(given.scoreTimeoutMs, 'scoreTimeoutMs', 1, 3_600_000, 60_000),
    recheckMs: integer(given.recheckMs, 'recheckMs', 1, 3_600_000, RECHECK_MS),
    rateLimit: integer(given.rateLimit, 'rateLimit', 1, 1_000_000_000, 6_000),
    corsOrigins: origins(given.corsOrigins),
    tls: given.tls,
    drainMs: integer(given.drainMs, 'drainMs', 0, 3_600_000, 30_000),
    logLevel: oneOf(given.logLevel, 'logLevel', LEVELS, 'info'),
  };
}
