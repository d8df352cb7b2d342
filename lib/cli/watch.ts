// diad watch: scores images as they appear in a folder.
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import type { Sink } from '../watch/index.js';
import { loadModel, stopSignal, type ModelOptions } from './inputs.js';

interface WatchCliOptions extends ModelOptions {
  readonly done?: string;
  readonly journal?: string;
  readonly webhook?: string;
  readonly webhookSecretFile?: string;
  readonly mqtt?: string;
  readonly topic: string;
  readonly jsonl?: string;
  readonly class?: string;
  readonly seed: number;
  readonly settle: number;
  readonly poll?: number;
}

async function sinksOf(options: WatchCliOptions): Promise<Sink[]> {
  const { jsonlSink, mqttSink, stdoutSink, webhookSink } = await import('../watch/index.js');
  const sinks: Sink[] = [];
  if (options.jsonl !== undefined) sinks.push(await jsonlSink(options.jsonl));
  if (options.webhook !== undefined) {
    const secret =
      options.webhookSecretFile === undefined
        ? undefined
        : (await readFile(options.webhookSecretFile, 'utf8')).trim();
    sinks.push(webhookSink(options.webhook, secret));
  }
  if (options.mqtt !== undefined) sinks.push(await mqttSink(options.mqtt, options.topic));
  return sinks.length > 0 ? sinks : [stdoutSink()];
}

/** Watches until SIGTERM or SIGINT. */
export async function watch(folder: string, options: WatchCliOptions): Promise<void> {
  const { watch: start } = await import('../watch/index.js');
  const diad = await loadModel(options);
  const log = (line: string): void => {
    process.stderr.write(`diad: ${line}\n`);
  };
  try {
    const watching = await start({
      folder,
      scorer: diad,
      sinks: await sinksOf(options),
      seed: options.seed,
      settleMs: options.settle,
      log,
      ...(options.done === undefined ? {} : { done: options.done }),
      ...(options.journal === undefined ? {} : { journal: options.journal }),
      ...(options.poll === undefined ? {} : { poll: options.poll }),
      ...(options.class === undefined ? {} : { className: options.class }),
    });
    log(`watching ${folder}`);
    const lost = await Promise.race([stopSignal(), watching.lost]);
    await watching.close();
    if (lost !== undefined) throw lost;
  } finally {
    await diad.close();
  }
}
