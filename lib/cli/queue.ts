// diad worker, diad submit, diad results.
import { createReadStream } from 'node:fs';
import { realpath } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { createHash } from 'node:crypto';
import { createInterface } from 'node:readline';
import { pipeline } from 'node:stream/promises';
import { DiadError } from '../errors.js';
import { baseBundle } from '../native/addon.js';
import { expandInputs, loadModel, stopSignal, type ModelOptions } from './inputs.js';
import type { Reference, RunResult, Submission } from '../queue/index.js';

interface WorkerCliOptions extends ModelOptions {
  readonly redis: string;
  readonly root: string;
  readonly allowHost?: readonly string[];
  readonly allowPrivateHost?: readonly string[];
  readonly allowBucket?: readonly string[];
  readonly s3Endpoint?: string;
  readonly maxBytes?: number;
  readonly concurrency: number;
  readonly rate?: number;
  readonly keep: number;
  readonly maxStalls: number;
  readonly lockMs: number;
  readonly unsafeBroker?: boolean;
}

/** Processes jobs until SIGTERM or SIGINT. */
export async function worker(options: WorkerCliOptions): Promise<void> {
  const { startWorker } = await import('../queue/index.js');
  const diad = await loadModel(options);
  const log = (line: string): void => {
    process.stderr.write(`diad: ${line}\n`);
  };
  try {
    const running = await startWorker({
      redis: options.redis,
      scorer: diad,
      root: options.root,
      hosts: [...(options.allowHost ?? []), ...(options.allowPrivateHost ?? [])],
      privateHosts: options.allowPrivateHost ?? [],
      buckets: options.allowBucket ?? [],
      ...(options.s3Endpoint === undefined ? {} : { s3Endpoint: options.s3Endpoint }),
      ...(options.maxBytes === undefined ? {} : { maxBytes: options.maxBytes }),
      concurrency: options.concurrency,
      ...(options.rate === undefined ? {} : { jobsPerSecond: options.rate }),
      keepSeconds: options.keep,
      maxStalls: options.maxStalls,
      lockMs: options.lockMs,
      allowUnsafeBroker: options.unsafeBroker === true,
      log,
    });
    log(`processing jobs for the model ${diad.info.bundle.name}`);
    const lost = await Promise.race([stopSignal(), running.lost]);
    await running.close();
    if (lost !== undefined) throw lost;
  } finally {
    await diad.close();
  }
}

async function fileDigest(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  return hash.digest('hex');
}

function referenceOf(text: string): Reference {
  if (/^https?:\/\//.test(text)) return { kind: 'url', url: text };
  const object = /^s3:\/\/([^/]+)\/(.+)$/.exec(text);
  if (object !== null) return { kind: 's3', bucket: object[1]!, key: object[2]! };
  return { kind: 'file', path: text };
}

/** Parses sha256sum lines: the hash, two characters, then a path under the root, a URL or s3://bucket/key. */
async function* manifestEntries(file: string): AsyncGenerator<Submission, void, undefined> {
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Infinity })) {
    if (line.trim() === '') continue;
    const [, escaped, sha256, written] = /^(\\?)([0-9a-f]{64}) [ *](.+)$/.exec(line) ?? [];
    if (sha256 === undefined || written === undefined) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `${file}: Expected sha256sum lines but received "${line.slice(0, 80)}"`,
      );
    }
    // sha256sum starts a line with a backslash when the name contains backslashes or line breaks.
    const text =
      escaped === ''
        ? written
        : written.replace(/\\([\\nr])/g, (_, letter: string) => ({ n: '\n', r: '\r' })[letter] ?? '\\');
    yield { file: text, sha256, reference: referenceOf(text) };
  }
}

async function* fileEntries(
  files: readonly string[],
  root: string,
): AsyncGenerator<Submission, void, undefined> {
  const base = await realpath(root);
  for (const file of files) {
    const inside = path.relative(base, await realpath(file));
    if (inside.startsWith('..') || path.isAbsolute(inside)) {
      throw new DiadError(
        'ERR_DIAD_INVALID_ARGUMENT',
        `${file} is outside the root ${root} from which workers read files`,
      );
    }
    yield { file: inside, sha256: await fileDigest(file), reference: { kind: 'file', path: inside } };
  }
}

interface SubmitCliOptions {
  readonly redis: string;
  readonly root: string;
  readonly model?: string;
  readonly seed: number;
  readonly priority: number;
}

/** Submits images and prints the run id. */
export async function submit(inputs: string[], options: SubmitCliOptions): Promise<void> {
  const { bundleDigest, submitRun } = await import('../queue/index.js');
  const address = inputs.find((input) => /^(https?|s3):\/\//.test(input));
  if (address !== undefined) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `${address}: Expected files, folders or globs. List URLs and objects in a file NAME.sha256, ` +
        'one per line: SHA-256, two spaces, address',
    );
  }
  const manifests = inputs.filter((input) => input.endsWith('.sha256'));
  const files = await expandInputs(inputs.filter((input) => !input.endsWith('.sha256')));
  const entries = async function* (): AsyncGenerator<Submission, void, undefined> {
    yield* fileEntries(files, options.root);
    for (const manifest of manifests) yield* manifestEntries(manifest);
  };
  const others = entries();
  const first = await others.next();
  if (first.done === true)
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected images in ${inputs.join(', ')} but found none`,
    );
  const all = async function* (): AsyncGenerator<Submission, void, undefined> {
    yield first.value;
    yield* others;
  };
  const model = await bundleDigest(options.model ?? baseBundle);
  const { redis, seed, priority } = options;
  process.stdout.write(`${await submitRun(all(), { redis, model, seed, priority })}\n`);
}

/** Formats a result for the text output. */
function summary(result: RunResult): string {
  if (result.status === 'done') return result.score.toFixed(4);
  return result.status === 'failed' ? `failed: ${result.error}` : result.status;
}

/**
 * Prints a line for each image of a run. Exit code: 1 if any failed, else 2 if any are waiting, else 3 if any
 * results have expired.
 */
export async function results(
  run: string,
  options: { redis: string; wait?: boolean; json?: boolean },
): Promise<void> {
  const { runResults } = await import('../queue/index.js');
  const seen = new Set<string>();
  for await (const result of runResults(run, { redis: options.redis, wait: options.wait === true })) {
    seen.add(result.status);
    process.stdout.write(
      options.json === true ? `${JSON.stringify(result)}\n` : `${summary(result)}  ${result.file}\n`,
    );
  }
  process.exitCode = seen.has('failed') ? 1 : seen.has('waiting') ? 2 : seen.has('expired') ? 3 : 0;
}
