// diad serve: runs the HTTP server.
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import process from 'node:process';
import type { ServerOptions } from '../server/index.js';
import { Diad } from '../diad.js';
import { DiadError } from '../errors.js';
import { tuneAllocator } from '../native/addon.js';
import { integer } from '../validate.js';
import type { ModelOptions } from './inputs.js';

/** Options of `diad serve`, as parsed from the command line. */
export interface ServeOptions extends ModelOptions {
  readonly host: string;
  readonly port: number;
  readonly tokenFile?: string;
  readonly auth: boolean;
  readonly workers: number;
  readonly maxBatch?: number;
  readonly queueLimit: number;
  readonly bodyLimit?: number;
  readonly timeout?: number;
  readonly drain?: number;
  readonly rateLimit?: number;
  readonly corsOrigin?: readonly string[];
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly logLevel: NonNullable<ServerOptions['logLevel']>;
}

async function readOption(file: string, option: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `${option}: ${file} cannot be read`, { cause: error });
  }
}

async function readTls({ tlsCert, tlsKey }: ServeOptions): Promise<Pick<ServerOptions, 'tls'>> {
  if (tlsCert === undefined && tlsKey === undefined) return {};
  if (tlsCert === undefined || tlsKey === undefined) {
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      'Expected --tls-cert and --tls-key together but received one of them',
    );
  }
  return {
    tls: { cert: await readOption(tlsCert, '--tls-cert'), key: await readOption(tlsKey, '--tls-key') },
  };
}

/** Reads tokens from a file, one per line. Ignores empty lines and lines that start with #. */
async function readTokens(file: string | undefined): Promise<readonly string[]> {
  if (file === undefined) return [];
  const lines = (await readOption(file, '--token-file')).split('\n').map((line) => line.trim());
  const tokens = lines.filter((line) => line !== '' && !line.startsWith('#'));
  if (tokens.length === 0)
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a token in ${file} but found none`);
  return tokens;
}

/** Computes the threads per server process, so that all processes together use each core once. */
function threadsOf({ threads, workers }: ServeOptions): number | undefined {
  if (threads !== undefined && threads > 0) return threads;
  return workers > 1 ? Math.max(1, Math.floor(os.availableParallelism() / workers)) : undefined;
}

async function serverOptions(options: ServeOptions): Promise<ServerOptions> {
  const threads = threadsOf(options);
  tuneAllocator();
  const load = (): Promise<Diad> =>
    Diad.load(options.model, {
      device: options.device,
      precision: options.precision,
      queueLimit: options.queueLimit,
      ...(threads === undefined ? {} : { threads }),
      ...(options.maxBatch === undefined ? {} : { maxBatch: options.maxBatch }),
      ...(options.maxPixels === undefined ? {} : { maxPixels: options.maxPixels }),
      ...(options.maxFrames === undefined ? {} : { maxFrames: options.maxFrames }),
    });
  return {
    load,
    host: options.host,
    port: options.port,
    auth: options.auth,
    tokens: await readTokens(options.tokenFile),
    logLevel: options.logLevel,
    ...(options.maxPixels === undefined ? {} : { maxPixels: options.maxPixels }),
    ...(options.maxFrames === undefined ? {} : { maxFrames: options.maxFrames }),
    ...(options.bodyLimit === undefined ? {} : { bodyLimit: options.bodyLimit }),
    ...(options.timeout === undefined ? {} : { scoreTimeoutMs: options.timeout }),
    ...(options.drain === undefined ? {} : { drainMs: options.drain }),
    // Connections are distributed over the processes, and each counts separately.
    ...(options.rateLimit === undefined ? {} : { rateLimit: Math.ceil(options.rateLimit / options.workers) }),
    ...(options.corsOrigin === undefined ? {} : { corsOrigins: options.corsOrigin }),
    ...(await readTls(options)),
  };
}

/** Listens and loads the model. Signals, or the death of the primary, then end the process. */
async function serveHere(options: ServerOptions): Promise<void> {
  const { createServer } = await import('../server/index.js');
  const { tellReady, whenPrimaryDies } = await import('../server/cluster.js');
  const server = await createServer(options);
  let stopping = false;
  const stop = async (code = 0): Promise<void> => {
    stopping = true;
    const drained = await server.close();
    if (!drained) process.stderr.write('diad: open requests were aborted\n');
    process.exit(drained ? code : 1);
  };
  void server.lost.then((error) => {
    process.stderr.write(`diad: the engine is lost: ${error.message}\n`);
    return stop(1);
  });
  process.once('SIGTERM', () => void stop());
  process.once('SIGINT', () => void stop());
  whenPrimaryDies(() => void stop());
  process.stderr.write(`diad: listening on ${server.url}\n`);
  try {
    await server.ready;
  } catch (error) {
    if (stopping) return; // stopped before the bundle was ready
    await server.close();
    throw error;
  }
  process.stderr.write('diad: ready\n');
  tellReady();
}

/** Serves until SIGTERM or SIGINT. Exit code 0 when all requests completed. */
export async function serve(options: ServeOptions): Promise<void> {
  const { isClusterWorker, leaveCluster, runPrimary } = await import('../server/cluster.js');
  const { validateServerOptions } = await import('../server/options.js');
  integer(options.workers, '--workers', 1, 1024, 1);
  const given = await serverOptions(options);
  validateServerOptions(given);
  if (options.workers > 1 && !isClusterWorker) {
    process.exitCode = await runPrimary(options.workers);
    return;
  }
  try {
    await serveHere(given);
  } catch (error) {
    leaveCluster();
    throw error;
  }
}
