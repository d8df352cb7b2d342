// Where an image is: a job carries a reference and the image's SHA-256, hardly ever the image itself.
import { createHash } from 'node:crypto';
import { open, realpath } from 'node:fs/promises';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { codeOf, DiadError } from '../errors.js';
import { download } from './download.js';

/** Images up to this size may travel in the job, bytes. */
export const INLINE_LIMIT = 64 * 1024;

/** Of one object, from the request to its last byte. */
const S3_TIMEOUT_MS = 60_000;

/** An image by reference. `file` is relative to the worker's root. */
export type Reference =
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'url'; readonly url: string }
  | { readonly kind: 's3'; readonly bucket: string; readonly key: string }
  | { readonly kind: 'inline'; readonly base64: string };

/** What a worker may read. */
export interface ReadPolicy {
  /** Files must lie in this folder, links followed. Without it no files are read. */
  readonly root?: string;
  /** Host names http(s) images may come from, redirects included. Default none. */
  readonly hosts?: readonly string[];
  /** Of the hosts above, those that may resolve to private or loopback addresses. Default none. */
  readonly privateHosts?: readonly string[];
  /** Buckets S3 objects may come from. Default none. */
  readonly buckets?: readonly string[];
  /** Endpoint of an S3-compatible store. Default: the client's own configuration. */
  readonly s3Endpoint?: string;
  /** Largest image, bytes. Default 32 MiB. */
  readonly maxBytes?: number;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // percent signs that encode nothing
  }
}

/**
 * The path whose folders may name an image's class: a file's below the worker's root, a URL's, an object's key.
 *
 * @param label - what results call the image: the path of one that has no other
 */
export function classPath(reference: Reference, label: string, root = '/'): string {
  switch (reference.kind) {
    case 'file':
      return path.resolve(root, reference.path);
    case 'url':
      return URL.canParse(reference.url) ? decoded(new URL(reference.url).pathname) : '/';
    case 's3':
      return `/${reference.key}`;
    case 'inline':
      return `/${label}`;
  }
}

/** A reference that will never be readable: trying again would not help. */
export class Unreadable extends DiadError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_DIAD_INVALID_ARGUMENT', message, options);
  }
}

/** SHA-256 in hex. */
export const sha256 = (bytes: Uint8Array | string): string =>
  createHash('sha256').update(bytes).digest('hex');

/**
 * Resolves a path below a root; neither `..` nor links lead out.
 *
 * @throws Unreadable when it lies outside; another error when it does not exist
 */
export async function insideRoot(root: string, file: string): Promise<string> {
  const base = await realpath(root);
  let full: string;
  try {
    full = await realpath(path.resolve(base, file));
  } catch (error) {
    if (codeOf(error) !== 'ENOENT' && codeOf(error) !== 'ENOTDIR') throw error;
    // Not for good: a network share shows a new file to its other clients later.
    throw new Error(`There is no file ${file} under ${root}`, { cause: error });
  }
  if (full !== base && !full.startsWith(base.endsWith(path.sep) ? base : `${base}${path.sep}`))
    throw new Unreadable(`${file} is outside of the allowed root ${root}`);
  return full;
}

async function readInside(root: string | undefined, file: string, maxBytes: number): Promise<Buffer> {
  if (root === undefined) throw new Unreadable(`${file} is a file, and this worker has no root folder`);
  const handle = await open(await insideRoot(root, file), 'r');
  try {
    const status = await handle.stat();
    if (!status.isFile()) throw new Unreadable(`${file} is no file`);
    if (status.size > maxBytes)
      throw new Unreadable(`${file} has ${status.size} bytes, more than ${maxBytes}`);
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

async function readObject(
  bucket: string,
  key: string,
  { buckets = [], s3Endpoint }: ReadPolicy,
  maxBytes: number,
): Promise<Buffer> {
  if (!buckets.includes(bucket))
    throw new Unreadable(`The bucket ${bucket} is not among those allowed (${buckets.join(', ') || 'none'})`);
  const { S3Client, GetObjectCommand } = await import('@aws-sdk/client-s3').catch((error: unknown) => {
    throw new Unreadable('S3 objects need the package @aws-sdk/client-s3: npm install @aws-sdk/client-s3', {
      cause: error,
    });
  });
  const signal = AbortSignal.timeout(S3_TIMEOUT_MS); // a store that stalls must not hold the job, whose lock would be renewed for ever
  const client = new S3Client(s3Endpoint === undefined ? {} : { endpoint: s3Endpoint, forcePathStyle: true });
  try {
    const { Body, ContentLength = 0 } = await client.send(
      new GetObjectCommand({ Bucket: bucket, Key: key }),
      { abortSignal: signal },
    );
    const body = Body as Readable | undefined; // in Node
    signal.addEventListener('abort', () =>
      body?.destroy(new Error(`s3://${bucket}/${key} took longer than ${S3_TIMEOUT_MS / 1000} s`)),
    );
    body?.on('error', () => undefined); // one that is left unread fails when the client is destroyed; whoever reads is told all the same
    if (ContentLength > maxBytes)
      throw new Unreadable(`s3://${bucket}/${key} has ${ContentLength} bytes, more than ${maxBytes}`);
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of (body ?? []) as AsyncIterable<Uint8Array>) {
      size += part.length;
      if (size > maxBytes) throw new Unreadable(`s3://${bucket}/${key} has more than ${maxBytes} bytes`); // a store may leave the length out
      parts.push(part);
    }
    return Buffer.concat(parts);
  } catch (error) {
    if (error instanceof Error && ['NoSuchKey', 'NoSuchBucket', 'AccessDenied'].includes(error.name)) {
      throw new Unreadable(`s3://${bucket}/${key}: ${error.name}`, { cause: error });
    }
    throw error;
  } finally {
    client.destroy();
  }
}

/**
 * Reads an image and checks that it is the one that was submitted.
 *
 * @param expected - SHA-256 in hex
 * @throws Unreadable when the policy forbids it or its hash is another; what may pass, a file that is not there among it, is another error
 */
export async function readReference(
  reference: Reference,
  expected: string,
  policy: ReadPolicy,
): Promise<Buffer> {
  const maxBytes = policy.maxBytes ?? 32 * 2 ** 20;
  const read = (): Promise<Buffer> => {
    switch (reference.kind) {
      case 'file':
        return readInside(policy.root, reference.path, maxBytes);
      case 'url':
        return download(reference.url, policy, maxBytes);
      case 's3':
        return readObject(reference.bucket, reference.key, policy, maxBytes);
      case 'inline':
        return Promise.resolve(Buffer.from(reference.base64, 'base64'));
    }
  };
  const bytes = await read();
  const found = sha256(bytes);
  if (found !== expected)
    throw new Unreadable(`The image is not the one submitted: its SHA-256 is ${found}, not ${expected}`);
  return bytes;
}
