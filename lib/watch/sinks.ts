// Receivers of results: standard output, a JSONL file, a webhook, MQTT.
import { createHmac } from 'node:crypto';
import path from 'node:path';
import process from 'node:process';
import { LineFile, parsedLine } from '../io/atomic-file.js';
import { DiadError } from '../errors.js';
import { invalid, requiredText } from '../validate.js';
import type { WatchEvent } from './event.js';

/** A receiver of events. */
export interface Sink {
  /** Name in the log and in the journal, which stores the receiver's position under it. */
  readonly name: string;
  /**
   * Sends an event. Resolves when the receiver has it permanently; a rejection is retried.
   *
   * @param signal - aborts some time after the watch is closed
   * @throws EventRefused when the receiver permanently rejects the event
   */
  send(event: WatchEvent, signal?: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** Permanent rejection of an event by a receiver. After six of them the event is set aside. */
export class EventRefused extends Error {
  override readonly name = 'EventRefused';
}

/**
 * Status codes that concern the event, as opposed to the state, address or authentication of the receiver.
 */
const REFUSALS: ReadonlySet<number> = new Set([400, 409, 413, 422]);

/** Size of the end of a JSONL file that is searched for existing events, bytes: some ten thousand events. */
const TAIL = 1 << 22;

/** Formats an address for logs: without user, password, query values and path segments as long as a token. */
export function shownAddress(address: string): string {
  if (!URL.canParse(address)) return '…';
  const url = new URL(address);
  if (url.host === '') return `${url.protocol}…`;
  const query = [...url.searchParams.keys()].map((key) => `${key}=…`).join('&');
  const shownPath = url.pathname.replace(/[^/]{20,}/g, '…');
  return `${url.protocol}//${url.host}${shownPath}${query === '' ? '' : `?${query}`}`;
}

/** Returns the root cause of an error; for several attempts, that of the first. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const below: unknown = error instanceof AggregateError ? error.errors[0] : error.cause;
  return below instanceof Error ? reasonOf(below) : error.message;
}

export function stdoutSink(): Sink {
  return {
    name: 'stdout',
    send: (event) =>
      new Promise((resolve, reject) => {
        process.stdout.write(`${JSON.stringify(event)}\n`, (error) => {
          if (error == null) resolve();
          else reject(error);
        });
      }),
    close: () => Promise.resolve(),
  };
}

/** Appends to a JSONL file. Reads the last ids first, so that an event is not written again after a crash. */
export async function jsonlSink(file: string): Promise<Sink> {
  const lines = await LineFile.open(requiredText(file, 'file'));
  const size = await lines.size();
  const written = new Set<string>();
  let whole = Math.max(0, size - TAIL);
  for await (const { text, end } of lines.lines(whole)) {
    const event: Partial<WatchEvent> | undefined = parsedLine(text);
    if (event?.id !== undefined) written.add(event.id);
    whole = end;
  }
  if (whole < size) await lines.append('\n'); // terminate a truncated line
  return {
    name: path.resolve(file),
    send: async (event) => {
      if (!written.has(event.id)) await lines.append(`${JSON.stringify(event)}\n`);
    },
    close: () => lines.close(),
  };
}

/** Computes the signature of a webhook body: hex HMAC-SHA256 over `timestamp.body`. */
export function signature(secret: string, timestamp: string, body: string): string {
  return createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex');
}

/**
 * POSTs events as JSON. Headers: `diad-event-id` (the same for every attempt, for deduplication),
 * `diad-timestamp` (seconds), `diad-signature: sha256=…`, see {@link signature}; user and password of the URL
 * as `authorization`. Any 2xx means received; 400, 409, 413 and 422 reject the event; everything else is
 * retried.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the URL is not http(s)
 */
export function webhookSink(url: string, secret: string | undefined): Sink {
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    // Do not report the URL, because it can contain a password.
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', 'Expected an http:// or https:// URL for the webhook');
  }
  const name = shownAddress(url);
  const address = new URL(url);
  const user = [address.username, address.password].map(decodeURIComponent).join(':');
  [address.username, address.password] = ['', '']; // fetch() rejects URLs with credentials
  const authorization =
    user === ':' ? {} : { authorization: `Basic ${Buffer.from(user).toString('base64')}` };
  return {
    name,
    send: async (event, signal) => {
      const body = JSON.stringify(event);
      const timestamp = String(Math.floor(Date.now() / 1000));
      const signed =
        secret === undefined ? {} : { 'diad-signature': `sha256=${signature(secret, timestamp, body)}` };
      const eventHeaders = {
        'content-type': 'application/json',
        'diad-event-id': event.id,
        'diad-timestamp': timestamp,
      };
      const answer = await fetch(address, {
        method: 'POST',
        body,
        headers: { ...eventHeaders, ...signed, ...authorization },
        redirect: 'error',
        signal: AbortSignal.any([AbortSignal.timeout(10_000), ...(signal === undefined ? [] : [signal])]),
      }).catch((error: unknown) => {
        // The message of fetch() itself is just "fetch failed".
        throw new Error(reasonOf(error), { cause: error });
      });
      await answer.body?.cancel();
      if (REFUSALS.has(answer.status)) throw new EventRefused(`responded with ${answer.status}`);
      if (!answer.ok) throw new Error(`responded with ${answer.status}`);
    },
    close: () => Promise.resolve(),
  };
}

/**
 * Publishes events with QoS 1. Resolves when the broker has acknowledged.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for a topic with wildcards or an invalid broker URL
 */
export async function mqttSink(url: string, topic: string): Promise<Sink> {
  // A broker disconnects clients that publish to a wildcard topic, which would repeat forever.
  if (typeof topic !== 'string' || !/^[^+#\0]+$/.test(topic))
    throw invalid('a topic without + and #', 'topic', topic);
  if (!URL.canParse(url) || !/^(mqtts?|tcp|ssl|tls|wss?):$/.test(new URL(url).protocol)) {
    // Do not report the URL, because it can contain a password.
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      'Expected an mqtt://, mqtts://, ws:// or wss:// URL for the broker',
    );
  }
  const { connect } = await import('mqtt');
  const client = connect(url, { reconnectPeriod: 1000 });
  let reason = '';
  client.on('error', (error) => (reason = `: ${reasonOf(error)}`)); // reported by the next send
  client.on('connect', () => (reason = ''));
  return {
    name: shownAddress(url),
    send: async (event) => {
      if (!client.connected) throw new Error(`not connected${reason}`);
      await client.publishAsync(topic, JSON.stringify(event), { qos: 1 });
    },
    close: () => client.endAsync(true),
  };
}
