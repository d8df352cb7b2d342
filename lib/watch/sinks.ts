// Where results go: standard output, a JSONL file, a webhook, MQTT.
import { createHmac } from 'node:crypto';
import { open } from 'node:fs/promises';
import process from 'node:process';
import type { WatchEvent } from './journal.js';

/** A receiver; `send` is fulfilled when it has the event for good. */
export interface Sink {
  readonly name: string;
  send(event: WatchEvent): Promise<void>;
  close(): Promise<void>;
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

/** Appends; on start the ids that the file has already are read, so that an event cut off between file and journal is not written twice. */
export async function jsonlSink(file: string): Promise<Sink> {
  const handle = await open(file, 'a+');
  const text = (await handle.readFile()).toString('utf8');
  const written = new Set<string>();
  for (const line of text.split('\n')) {
    try {
      written.add((JSON.parse(line) as WatchEvent).id);
    } catch {
      // empty, or cut short
    }
  }
  if (text !== '' && !text.endsWith('\n')) await handle.write('\n');
  return {
    name: file,
    send: async (event) => {
      if (written.has(event.id)) return;
      await handle.write(`${JSON.stringify(event)}\n`);
      await handle.datasync();
      written.add(event.id);
    },
    close: () => handle.close(),
  };
}

/** Signature of a webhook's body: hex HMAC-SHA256 over `timestamp.body`. */
export function signature(secret: string, timestamp: string, body: string): string {
  return createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex');
}

/**
 * POSTs JSON. Headers: `diad-event-id` (the same for every attempt, for receivers to drop repeats), `diad-timestamp` (seconds),
 * `diad-signature: sha256=…`, see {@link signature}. Any 2xx counts as received.
 */
export function webhookSink(url: string, secret: string | undefined): Sink {
  return {
    name: url,
    send: async (event) => {
      const body = JSON.stringify(event);
      const timestamp = String(Math.floor(Date.now() / 1000));
      const signed = secret === undefined ? {} : { 'diad-signature': `sha256=${signature(secret, timestamp, body)}` };
      const headers = { 'content-type': 'application/json', 'diad-event-id': event.id, 'diad-timestamp': timestamp, ...signed };
      const answer = await fetch(url, { method: 'POST', body, headers, redirect: 'error', signal: AbortSignal.timeout(10_000) });
      await answer.body?.cancel();
      if (!answer.ok) throw new Error(`${url} answers ${answer.status}`);
    },
    close: () => Promise.resolve(),
  };
}

/** Publishes with QoS 1: fulfilled when the broker has acknowledged. */
export async function mqttSink(url: string, topic: string): Promise<Sink> {
  const { connect } = await import('mqtt');
  const client = connect(url, { reconnectPeriod: 1000 });
  client.on('error', () => undefined); // told by the publication that waits
  return {
    name: url,
    send: async (event) => {
      if (!client.connected) throw new Error(`${url} is not connected`);
      await client.publishAsync(topic, JSON.stringify(event), { qos: 1 });
    },
    close: () => client.endAsync(true),
  };
}
