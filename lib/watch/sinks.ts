// Where results go: standard output, a JSONL file, a webhook, MQTT.
import { createHmac } from 'node:crypto';
import path from 'node:path';
import process from 'node:process';
import { LineFile, parsedLine } from '../durable.js';
import { DiadError } from '../errors.js';
import { invalid, requiredText } from '../validate.js';
import type { WatchEvent } from './event.js';

/** A receiver. */
export interface Sink {
  /** In the log, and in the journal, which keeps under it how far the receiver has got. */
  readonly name: string;
  /**
   * Fulfilled when the receiver has the event for good; rejected, it is tried again.
   *
   * @param signal - aborted some time after the watch is closed: nobody waits any more
   * @throws EventRefused when the receiver will not have this event, however often
   */
  send(event: WatchEvent, signal?: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** A receiver's word that it will not have an event. After six of them the event is set aside and the next one has its turn. */
export class EventRefused extends Error {
  override readonly name = 'EventRefused';
}

/** Answers that are about the event, not about the receiver's state, its address or who may talk to it. */
const REFUSALS: ReadonlySet<number> = new Set([400, 409, 413, 422]);

/** Bytes at the end of a JSONL file that are searched for events it has already: some ten thousand. */
const TAIL = 1 << 22;

/** An address for logs: without user and password, values in the query, and parts of the path as long as a token. */
export function shownAddress(address: string): string {
  if (!URL.canParse(address)) return '…';
  const url = new URL(address);
  if (url.host === '') return `${url.protocol}…`;
  const query = [...url.searchParams.keys()].map((key) => `${key}=…`).join('&');
  return `${url.protocol}//${url.host}${url.pathname.replace(/[^/]{20,}/g, '…')}${query === '' ? '' : `?${query}`}`;
}

/** What went wrong at the bottom of an error: of several attempts, the first one's. */
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

/** Appends; on start the ids at the file's end are read, so that an event cut off between file and journal is not written twice. */
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
  if (whole < size) await lines.append('\n'); // a line that was cut short must not swallow the next one
  return {
    name: path.resolve(file),
    send: async (event) => {
      if (!written.has(event.id)) await lines.append(`${JSON.stringify(event)}\n`);
    },
    close: () => lines.close(),
  };
}

/** Signature of a webhook's body: hex HMAC-SHA256 over `timestamp.body`. */
export function signature(secret: string, timestamp: string, body: string): string {
  return createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex');
}

/**
 * POSTs JSON. Headers: `diad-event-id` (the same for every attempt, for receivers to drop repeats), `diad-timestamp` (seconds),
 * `diad-signature: sha256=…`, see {@link signature}; user and password of the address as `authorization`. Any 2xx counts as received; 400, 409, 413
 * and 422 refuse the event, everything else is tried again.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the address is not http(s)
 */
export function webhookSink(url: string, secret: string | undefined): Sink {
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    // The address is not told: what is wrong with it may be a password.
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      'Expected an address with http:// or https:// for the webhook',
    );
  }
  const name = shownAddress(url);
  const address = new URL(url);
  const user = [address.username, address.password].map(decodeURIComponent).join(':');
  [address.username, address.password] = ['', '']; // fetch() refuses an address that has them
  const authorization =
    user === ':' ? {} : { authorization: `Basic ${Buffer.from(user).toString('base64')}` };
  return {
    name,
    send: async (event, signal) => {
      const body = JSON.stringify(event);
      const timestamp = String(Math.floor(Date.now() / 1000));
      const signed =
        secret === undefined ? {} : { 'diad-signature': `sha256=${signature(secret, timestamp, body)}` };
      const told = {
        'content-type': 'application/json',
        'diad-event-id': event.id,
        'diad-timestamp': timestamp,
      };
      const answer = await fetch(address, {
        method: 'POST',
        body,
        headers: { ...told, ...signed, ...authorization },
        redirect: 'error',
        signal: AbortSignal.any([AbortSignal.timeout(10_000), ...(signal === undefined ? [] : [signal])]),
      }).catch((error: unknown) => {
        throw new Error(reasonOf(error), { cause: error }); // fetch() itself says no more than that it failed
      });
      await answer.body?.cancel();
      if (REFUSALS.has(answer.status)) throw new EventRefused(`answers ${answer.status}`);
      if (!answer.ok) throw new Error(`answers ${answer.status}`);
    },
    close: () => Promise.resolve(),
  };
}

/**
 * Publishes with QoS 1: fulfilled when the broker has acknowledged.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT for a topic that nobody can publish to, and for what is no address of a broker
 */
export async function mqttSink(url: string, topic: string): Promise<Sink> {
  // A broker ends the connection of whoever publishes to a pattern, again and again.
  if (typeof topic !== 'string' || !/^[^+#\0]+$/.test(topic))
    throw invalid('a topic without + and #', 'topic', topic);
  if (!URL.canParse(url) || !/^(mqtts?|tcp|ssl|tls|wss?):$/.test(new URL(url).protocol)) {
    // The address is not told: what is wrong with it may be a password.
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      'Expected an address with mqtt://, mqtts://, ws:// or wss:// for the broker',
    );
  }
  const { connect } = await import('mqtt');
  const client = connect(url, { reconnectPeriod: 1000 });
  let reason = '';
  client.on('error', (error) => (reason = `: ${reasonOf(error)}`)); // told by the publication that waits
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
