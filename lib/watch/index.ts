// diad/watch: a folder's pictures scored as they appear.
export type { WatchEvent } from './journal.js';
export { jsonlSink, mqttSink, signature, stdoutSink, webhookSink, type Sink } from './sinks.js';
export { watch, type Watching, type WatchOptions } from './watch.js';
