// Public API of diad/watch: scores images as they appear in a folder.
export type { WatchEvent } from './event.js';
export { EventRefused, jsonlSink, mqttSink, signature, stdoutSink, webhookSink, type Sink } from './sinks.js';
export type { WatchOptions } from './options.js';
export { watch, type Watching } from './watch.js';
