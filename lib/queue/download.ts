// Downloads images over http(s), only from allowed hosts and public addresses. Checks redirects the same way.
import { lookup as systemLookup, type LookupAddress } from 'node:dns';
import http from 'node:http';
import https from 'node:https';
import type { LookupFunction } from 'node:net';
import ipaddr from 'ipaddr.js';
import type { ReadPolicy } from './types.js';
import { Unreadable } from './unreadable.js';

const MOST_REDIRECTS = 3;
const TIMEOUT_MS = 30_000;

function isPublic(address: string): boolean {
  // process() converts IPv4-mapped IPv6 addresses.
  return ipaddr.process(address).range() === 'unicast';
}

/** DNS lookup that fails for private addresses. The connection uses the checked address. */
const publicLookup: LookupFunction = (hostname, options, callback) => {
  systemLookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
    const bad = error === null ? addresses.find(({ address }) => !isPublic(address)) : undefined;
    const failure =
      error ??
      (bad === undefined
        ? null
        : new Unreadable(`${hostname} resolves to the private address ${bad.address}`));
    const [first] = addresses ?? [];
    if (options.all === true) callback(failure, failure === null ? addresses : []);
    else callback(failure, first?.address ?? '', first?.family);
  });
};

function check(
  url: string,
  { hosts = [], privateHosts = [] }: ReadPolicy,
): { target: URL; lookup: LookupFunction | undefined } {
  if (!URL.canParse(url)) throw new Unreadable(`${url} is not a URL`);
  const target = new URL(url);
  if (target.protocol !== 'https:' && target.protocol !== 'http:')
    throw new Unreadable(`${target.protocol} is not supported, only http: and https:`);
  const name = target.hostname.replace(/^\[|\]$/g, '');
  if (!hosts.includes(name))
    throw new Unreadable(`The host ${name} is not allowed (allowed: ${hosts.join(', ') || 'none'})`);
  if (privateHosts.includes(name)) return { target, lookup: undefined };
  // An IP address in the URL is not looked up, so check it here.
  if (ipaddr.isValid(name) && !isPublic(name)) throw new Unreadable(`${name} is a private address`);
  return { target, lookup: publicLookup };
}

function get(
  target: URL,
  lookup: LookupFunction | undefined,
  maxBytes: number,
): Promise<{ redirect: string } | { bytes: Buffer }> {
  return new Promise((resolve, reject) => {
    const client = target.protocol === 'https:' ? https : http;
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const request = client.get(target, { signal, ...(lookup === undefined ? {} : { lookup }) }, (answer) => {
      const { statusCode = 0, headers } = answer;
      const fail = (error: Error): void => {
        answer.destroy();
        reject(error);
      };
      if ([301, 302, 303, 307, 308].includes(statusCode) && headers.location !== undefined) {
        answer.destroy();
        resolve({ redirect: headers.location });
        return;
      }
      // Client errors other than 408 and 429 are permanent.
      const permanent = statusCode >= 400 && statusCode < 500 && statusCode !== 408 && statusCode !== 429;
      if (permanent) fail(new Unreadable(`${target.href} responded with ${statusCode}`));
      else if (statusCode !== 200) fail(new Error(`${target.href} responded with ${statusCode}`));
      const parts: Buffer[] = [];
      let size = 0;
      answer.on('data', (part: Buffer) => {
        size += part.length;
        if (size > maxBytes) fail(new Unreadable(`${target.href} has more than ${maxBytes} bytes`));
        else parts.push(part);
      });
      answer.once('end', () => {
        resolve({ bytes: Buffer.concat(parts) });
      });
      answer.once('error', reject);
    });
    request.once('error', reject);
  });
}

/**
 * Downloads an image.
 *
 * @throws Unreadable for a host that is not allowed, a private address (including redirects), a permanent
 *   client error, or too many bytes
 */
export async function download(url: string, policy: ReadPolicy, maxBytes: number): Promise<Buffer> {
  let next = url;
  for (let hops = 0; hops <= MOST_REDIRECTS; hops++) {
    const { target, lookup } = check(next, policy);
    const got = await get(target, lookup, maxBytes);
    if ('bytes' in got) return got.bytes;
    next = new URL(got.redirect, target).href;
  }
  throw new Unreadable(`${url} redirects more than ${MOST_REDIRECTS} times`);
}
