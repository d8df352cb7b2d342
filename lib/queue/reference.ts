// References to images. A job contains a reference and the image's SHA-256, but the image itself only if
// small.
import { createHash } from 'node:crypto';
import { open, realpath } from 'node:fs/promises';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { codeOf } from '../errors.js';
import { download } from './download.js';
import { Unreadable } from './unreadable.js';
import type { ReadPolicy } from './types.js';

/** Largest image that a job can contain, bytes. */
export const INLINE_LIMIT = 64 * 1024;

/** Time limit for one object, from the request to its last byte. */
const S3_TIMEOUT_MS = 60_000;

/** Reference to an image. `file` is relative to the worker's root. */
export type Reference =
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'url'; readonly url: string }
  | { readonly kind: 's3'; readonly bucket: string; readonly key: string }
  | { readonly kind: 'inline'; readonly base64: string };

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // invalid percent-encoding
  }
}

/**
 * Returns the path whose folders can name the class of an image: the file path, URL path or object key.
 *
 * @param label - name of the image in results, used for inline images
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

/** Computes the SHA-256, hex. */
export const sha256 = (bytes: Uint8Array | string): string =>
  createHash('sha256').update(bytes).digest('hex');

/**
 * Resolves a path below a root. Neither `..` nor links can leave the root.
 *
 * @throws Unreadable when the path is outside; another error when it does not exist
 */
export async function insideRoot(root: string, file: string): Promise<string> {
  const base = await realpath(root);
  let full: string;
  try {
    full = await realpath(path.resolve(base, file));
  } catch (error) {
    if (codeOf(error) !== 'ENOENT' && codeOf(error) !== 'ENOTDIR') throw error;
    // Not permanent: on a network share, a new file can become visible later.
    throw new Error(`${file} not found under ${root}`, { cause: error });
  }
  if (full !== base && !full.startsWith(base.endsWith(path.sep) ? base : `${base}${path.sep}`))
    throw new Unreadable(`${file} is outside the allowed root ${root}`);
  return full;
}

async function readInside(root: string | undefined, file: string, maxBytes: number): Promise<Buffer> {
  if (root === undefined) throw new Unreadable(`${file} is a file but this worker has no root folder`);
  const handle = await open(await insideRoot(root, file), 'r');
  try {
    const status = await handle.stat();
    if (!status.isFile()) throw new Unreadable(`${file} is not a file`);
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
    throw new Unreadable(`The bucket ${bucket} is not allowed (allowed: ${buckets.join(', ') || 'none'})`);
  const { S3Client, GetObjectCommand } = await import('@aws-sdk/client-s3').catch((error: unknown) => {
    throw new Unreadable('S3 objects need the package @aws-sdk/client-s3: npm install @aws-sdk/client-s3', {
      cause: error,
    });
  });
  // Without a limit, a stalled store would hold the job forever, because its lock is renewed.
  const signal = AbortSignal.timeout(S3_TIMEOUT_MS);
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
    // An unread body fails when the client is destroyed. Readers still receive their own error.
    body?.on('error', () => undefined);
    if (ContentLength > maxBytes)
      throw new Unreadable(`s3://${bucket}/${key} has ${ContentLength} bytes, more than ${maxBytes}`);
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of (body ?? []) as AsyncIterable<Uint8Array>) {
      size += part.length;
      // The store can omit the length.
      if (size > maxBytes) throw new Unreadable(`s3://${bucket}/${key} has more than ${maxBytes} bytes`);
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
 * Reads an image and verifies its hash.
 *
 * @param expected - SHA-256, hex
 * @throws Unreadable when the policy forbids the reference or the hash differs; other errors for temporary
 *   failures, including missing files
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
    throw new Unreadable(
      `The image differs from the submitted one: its SHA-256 is ${found}, not ${expected}`,
    );
  return bytes;
}
