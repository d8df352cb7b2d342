// diad/watch: a folder's images scored as they appear.
export type { WatchEvent } from './event.js';
export { EventRefused, jsonlSink, mqttSink, signature, stdoutSink, webhookSink, type Sink } from './sinks.js';
export type { WatchOptions } from './options.js';
export { watch, type Watching } from './watch.js';
