// Public API of diad/server: the HTTP server as a library.
export { createServer, type DiadServer } from './server.js';
export type { Scorer, ServerOptions } from './options.js';
