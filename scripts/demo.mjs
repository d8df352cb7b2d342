// npm run demo: scores the images in examples/ with the base model and writes out/demo/index.html, doing all set-up first.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { root, setUp } from './setup.mjs';

const IMAGES = new Set(['.png', '.jpg', '.jpeg', '.webp']);
const STYLE = `
  :root { color-scheme: light dark; --line: #8884; --right: #12813c; --wrong: #c00024; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1060px; padding: 0 1rem; }
  h1 { font-size: 1.4rem; } p { max-width: 70ch; }
  table { border-collapse: collapse; width: 100%; }
  th { text-align: left; font-weight: 600; } th, td { padding: .5rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
  img { width: 190px; height: 190px; object-fit: contain; display: block; border-radius: 6px; }
  .score { font-variant-numeric: tabular-nums; font-size: 1.25rem; } .name { word-break: break-word; }
  .evidence { font-variant-numeric: tabular-nums; font-size: .85rem; opacity: .8; }
  .right { color: var(--right); font-weight: 600; } .wrong { color: var(--wrong); font-weight: 600; }`;

const escape = (text) =>
  text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);
const inline = (bytes, type) => `data:image/${type};base64,${Buffer.from(bytes).toString('base64')}`;
const words = (anomalous) => (anomalous === undefined ? 'no verdict' : anomalous ? 'anomalous' : 'normal');
/** undefined without a verdict. */
const isRight = ({ anomalous, defect }) =>
  anomalous === undefined ? undefined : anomalous === (defect !== 'good');

/** Class and defect of an example: "gear-missing_part.png". */
function labelOf(name) {
  const [className, defect = 'good'] = path.parse(name).name.split('-');
  return { className, defect };
}

function verdictCell(row) {
  const right = isRight(row);
  const mark = right === undefined ? '' : ` class="${right ? 'right' : 'wrong'}"`;
  const { threshold, evidence, score } = row;
  const parts =
    evidence === undefined
      ? ''
      : `<br>reconstruction ${evidence.reconstruction.toFixed(2)}, memory ${evidence.memory.toFixed(2)}`;
  const limit = threshold === undefined ? '' : `threshold ${threshold.toFixed(3)}`;
  return `<span class="score">${score.toFixed(3)}</span><br><span${mark}>${words(row.anomalous)}</span><div class="evidence">${limit}${parts}</div>`;
}

function page(rows, diad, seconds, summary) {
  const body = rows.map(
    (
      row,
    ) => `<tr><td class="name"><strong>${escape(row.className)}</strong><br>${escape(row.name)}<br>expected: ${words(row.defect !== 'good')}</td>
      <td><img alt="input" src="${inline(row.input, row.type)}"></td>
      <td><img alt="reconstruction" src="${inline(row.reconstruction, 'png')}"></td>
      <td><img alt="heat map" src="${inline(row.heatmap, 'png')}"></td>
      <td>${verdictCell(row)}</td></tr>`,
  );
  const { bundle, device, threads, libtorch } = diad.info;
  const steps = `${bundle.steps} ${bundle.steps === 1 ? 'step' : 'steps'}`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>diad demo</title><style>${STYLE}</style><h1>diad: ${rows.length} example images</h1>
<p>${escape(summary)}</p>
<p>Model “${escape(bundle.name)}” (${bundle.imageSize} × ${bundle.imageSize}, ${steps}) on ${escape(device)}, ${threads} threads, LibTorch ${escape(libtorch.version)}:
${seconds.toFixed(1)} s for scores and reconstructions. The reconstruction is what the model expects the image to look like without defects; the heat map shows where the evidence for a defect is.</p>
<table><thead><tr><th>image<th>input<th>reconstruction<th>heat map<th>score and verdict</tr></thead><tbody>${body.join('\n')}</tbody></table></html>`;
}

/** How many images are judged right. */
function summarize(rows) {
  const judged = rows.filter((row) => row.anomalous !== undefined);
  if (judged.length === 0) return 'The model is not calibrated: there are no verdicts.';
  return `${judged.filter(isRight).length} of ${judged.length} images are judged right.`;
}

async function main() {
  setUp();
  const { Diad } = await import('../dist/index.js');
  const folder = path.join(root, 'examples');
  const names = readdirSync(folder).filter((name) => IMAGES.has(path.extname(name)));
  const diad = await Diad.load();
  const started = performance.now();
  const rows = [];
  for (const name of names.sort()) {
    const input = readFileSync(path.join(folder, name));
    const label = labelOf(name);
    const call = { className: label.className }; // a class that the calibration does not know is judged by the thresholds of all images
    const [scored, reconstructed] = await Promise.all([
      diad.score(input, call),
      diad.reconstruct(input, call),
    ]);
    const heatmap = await scored.map.toHeatmap();
    const type = path.extname(name).slice(1).replace('jpg', 'jpeg');
    const { score, threshold, anomalous, evidence } = scored;
    rows.push({
      name,
      ...label,
      input,
      type,
      heatmap,
      reconstruction: reconstructed.image,
      score,
      threshold,
      anomalous,
      evidence,
    });
  }
  const seconds = (performance.now() - started) / 1000;
  const width = Math.max(...rows.map((row) => row.name.length));
  for (const row of rows) {
    const verdict =
      row.anomalous === undefined ? '' : `  ${words(row.anomalous)}${isRight(row) ? '' : '  (wrong)'}`;
    console.log(`${row.name.padEnd(width)}  ${row.score.toFixed(4)}${verdict}`);
  }
  const summary = summarize(rows);
  const out = path.join(root, 'out', 'demo');
  mkdirSync(out, { recursive: true });
  writeFileSync(path.join(out, 'index.html'), page(rows, diad, seconds, summary));
  console.log(`\n${summary}`);
  console.log(
    `${path.relative(process.cwd(), path.join(out, 'index.html'))} shows input, reconstruction, heat map and verdict side by side.`,
  );
  await diad.close();
}

try {
  await main();
} catch (error) {
  process.stderr.write(`demo: ${error.message}\n`);
  process.exitCode = 1;
}
