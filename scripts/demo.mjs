// npm run demo: scores the pictures in examples/ with the base bundle and writes out/demo/index.html, doing all set-up first.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { root, setUp } from './setup.mjs';

const PICTURES = new Set(['.png', '.jpg', '.jpeg', '.webp']);
const STYLE = `
  :root { color-scheme: light dark; --line: #8884; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1060px; padding: 0 1rem; }
  h1 { font-size: 1.4rem; } p { max-width: 70ch; }
  table { border-collapse: collapse; width: 100%; }
  th { text-align: left; font-weight: 600; } th, td { padding: .5rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
  img { width: 200px; height: 200px; object-fit: contain; display: block; border-radius: 6px; }
  .score { font-variant-numeric: tabular-nums; font-size: 1.25rem; } .name { word-break: break-word; }
  .bar { height: 6px; border-radius: 3px; background: linear-gradient(90deg, #f5c542, #c8005a); }`;

const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);
const inline = (bytes, type) => `data:image/${type};base64,${Buffer.from(bytes).toString('base64')}`;

function page(rows, diad, seconds) {
  const top = Math.max(...rows.map((row) => row.score));
  const verdict = (row) => (row.anomalous === undefined ? '' : row.anomalous ? 'anomalous' : 'normal');
  const body = rows.map(
    (row) => `<tr><td class="name">${escape(row.name)}</td>
      <td><img alt="input" src="${inline(row.input, row.type)}"></td>
      <td><img alt="reconstruction" src="${inline(row.reconstruction, 'png')}"></td>
      <td><img alt="heat map" src="${inline(row.heatmap, 'png')}"></td>
      <td><div class="score">${row.score.toFixed(3)}</div>${verdict(row)}<div class="bar" style="width:${((100 * row.score) / top).toFixed(0)}%"></div></td></tr>`,
  );
  const { bundle, device, threads, libtorch } = diad.info;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>diad demo</title><style>${STYLE}</style><h1>diad: ${rows.length} example pictures</h1>
<p>Model “${escape(bundle.name)}” (${bundle.imageSize} × ${bundle.imageSize}, ${bundle.steps} steps) on ${escape(device)}, ${threads} threads, LibTorch ${escape(libtorch.version)}:
${seconds.toFixed(1)} s for scores and reconstructions. The reconstruction is the picture as the model thinks it would look if it were normal; the heat map shows where the two differ.</p>
<table><thead><tr><th>picture<th>input<th>reconstruction<th>heat map<th>score</tr></thead><tbody>${body.join('\n')}</tbody></table></html>`;
}

async function main() {
  setUp();
  const { Diad } = await import('../dist/index.js');
  const folder = path.join(root, 'examples');
  const names = readdirSync(folder).filter((name) => PICTURES.has(path.extname(name)));
  const diad = await Diad.load();
  const started = performance.now();
  const rows = [];
  for (const name of names.sort()) {
    const input = readFileSync(path.join(folder, name));
    const [scored, rebuilt] = await Promise.all([diad.score(input), diad.reconstruct(input)]);
    const heatmap = await scored.map.toHeatmap();
    const type = path.extname(name).slice(1).replace('jpg', 'jpeg');
    rows.push({ name, input, type, heatmap, reconstruction: rebuilt.image, score: scored.score, anomalous: scored.anomalous });
  }
  const seconds = (performance.now() - started) / 1000;
  const width = Math.max(...rows.map((row) => row.name.length));
  for (const { name, score, anomalous } of rows) {
    const verdict = anomalous === undefined ? '' : anomalous ? '  anomalous' : '  normal';
    console.log(`${name.padEnd(width)}  ${score.toFixed(4)}${verdict}`);
  }
  const out = path.join(root, 'out', 'demo');
  mkdirSync(out, { recursive: true });
  writeFileSync(path.join(out, 'index.html'), page(rows, diad, seconds));
  console.log(
    `\n${path.relative(process.cwd(), path.join(out, 'index.html'))} shows input, reconstruction, heat map and score side by side.`,
  );
  await diad.close();
}

try {
  await main();
} catch (error) {
  process.stderr.write(`demo: ${error.message}\n`);
  process.exitCode = 1;
}
