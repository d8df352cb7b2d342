// Options of the server, with their defaults and bounds.
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import type { Diad } from '../diad.js';
import { RECHECK_MS } from '../engine-health.js';
import { NO_LIMITS } from '../image.js';
import { boolean, integer, invalid, oneOf, optionsObject, text } from '../validate.js';

/** What the server needs of a loaded bundle. */
export type Scorer = Pick<Diad, 'score' | 'reconstruct' | 'info' | 'stats' | 'close'>;

/** Options of `createServer`. */
export interface ServerOptions {
  /** Loads the bundle; called once, after the server has begun to listen. */
  readonly load: () => Promise<Scorer>;
  /** Address to listen on. Default '127.0.0.1'. Any other than a loopback address needs `tokens` or `auth: false`. */
  readonly host?: string;
  /** Default 8080; 0 takes a free one. */
  readonly port?: number;
  /** Bearer tokens that are accepted, each 16 characters or longer. Default none. */
  readonly tokens?: readonly string[];
  /** false: no token is asked for, whatever the address; not together with `tokens`. Default true. */
  readonly auth?: boolean;
  /** Largest request body, bytes. Default 32 MiB. */
  readonly bodyLimit?: number;
  /** Bytes of request bodies in memory at once. Default 256 MiB. */
  readonly bytesInFlight?: number;
  /** Largest image, width x height. Default 32,000,000. */
  readonly maxPixels?: number;
  /** Pages or frames an image may have; the first is scored. Default 1: images of several are refused. */
  readonly maxFrames?: number;
  /** Pixels of all images in flight at once. Default 128,000,000. */
  readonly pixelsInFlight?: number;
  /** How long a client may take to send a request, milliseconds. Default 30,000. */
  readonly requestTimeoutMs?: number;
  /** How long an image may take from its arrival to its score, milliseconds. Default 60,000. */
  readonly scoreTimeoutMs?: number;
  /** How often an engine that fails is asked whether it scores again, milliseconds; after six times it counts as lost. Default 5,000. */
  readonly recheckMs?: number;
  /** Requests a minute and token (or address, without tokens). Default 6,000. */
  readonly rateLimit?: number;
  /** Origins whose pages may call the server. Default none but its own. */
  readonly corsOrigins?: readonly string[];
  /** PEM texts; both or neither. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** How long a shutdown waits for requests that run, milliseconds. Default 30,000. */
  readonly drainMs?: number;
  /** Least severe level that is logged, to standard error. Default 'info'. */
  readonly logLevel?: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent';
}

/** Server options after validation. */
export type ValidatedServer = Required<Omit<ServerOptions, 'tls' | 'tokens'>> & {
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
  /** SHA-256 of each token: equal lengths for a comparison in constant time, and no token kept in memory. */
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

/** Whether an address can be reached from this machine only. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}

/** SHA-256 of a token. */
export function tokenDigest(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

/** Origins as browsers send them: one that is written otherwise would let nobody in. */
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
    throw invalid('no tokens (--token-file) beside auth: false (--no-auth)', 'tokens', tokens);
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
