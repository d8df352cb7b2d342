// Authentication: bearer tokens or, without tokens, only local clients.
import { timingSafeEqual } from 'node:crypto';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { isLoopback, tokenDigest, type ValidatedServer } from './options.js';
import { HttpFailure } from './problem.js';

/** Returns the digest of the request's bearer token, if any. */
function presented(request: FastifyRequest): Buffer | undefined {
  const token = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1];
  return token === undefined ? undefined : tokenDigest(token);
}

/** Returns the key of the rate limit: the token, or the client address without tokens. */
export function callerKey(request: FastifyRequest): string {
  return presented(request)?.toString('hex') ?? request.ip;
}

function hostOf(authority: string): string {
  return authority.replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
}

/**
 * Rejects requests from foreign pages. Without tokens, another site could reach a loopback server through its
 * visitor's browser. Such requests have a foreign Origin or, after DNS rebinding, a foreign Host.
 */
function refuseForeignPages(request: FastifyRequest, allowed: readonly string[]): void {
  const { host = '', origin } = request.headers;
  if (!isLoopback(hostOf(host))) {
    throw new HttpFailure(
      'ERR_HTTP_FORBIDDEN',
      `Without a token, only requests to a loopback host are allowed, not to "${host}"`,
    );
  }
  if (origin === undefined || allowed.includes(origin)) return;
  if (!URL.canParse(origin) || new URL(origin).host !== host)
    throw new HttpFailure('ERR_HTTP_FORBIDDEN', `Requests from pages of ${origin} are not allowed`);
}

/** Authenticates every request of the scope. */
export function protect(
  scope: FastifyInstance,
  { tokenDigests, auth, host, corsOrigins }: ValidatedServer,
): void {
  scope.addHook('onRequest', (request, reply, done) => {
    if (tokenDigests.length > 0) {
      const digest = presented(request);
      // Compare with every token, so that the response time reveals nothing.
      const known =
        digest !== undefined && tokenDigests.map((one) => timingSafeEqual(one, digest)).includes(true);
      if (!known) {
        void reply.header('www-authenticate', 'Bearer realm="diad"');
        done(
          new HttpFailure(
            'ERR_HTTP_UNAUTHORIZED',
            'Expected a known token in the header "Authorization: Bearer …"',
          ),
        );
        return;
      }
    } else if (auth && isLoopback(host)) {
      refuseForeignPages(request, corsOrigins);
    }
    done();
  });
}
