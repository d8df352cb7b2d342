// Bundles the page in lib/server/page to dist/page: one script, one style sheet, no requests to other
// servers.
import { cpSync, mkdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const source = path.join(root, 'lib', 'server', 'page');
const out = path.join(root, 'dist', 'page');

mkdirSync(out, { recursive: true });
await build({
  entryPoints: [path.join(source, 'app.tsx'), path.join(source, 'app.css')],
  outdir: out,
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['es2022', 'chrome123', 'firefox120', 'safari17.5'],
  jsx: 'automatic',
  jsxImportSource: 'preact',
  legalComments: 'eof',
  logLevel: 'warning',
});
for (const file of ['index.html', 'icon.svg']) cpSync(path.join(source, file), path.join(out, file));
