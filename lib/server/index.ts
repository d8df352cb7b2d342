// diad/server: the HTTP service as a library.
export { createServer, type DiadServer } from './server.js';
export type { Scorer, ServerOptions } from './options.js';
