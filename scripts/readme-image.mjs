// npm run docs:image: docs/image.png for the README - input, reconstruction and heat map of example images, side by side, as the base
// bundle makes them.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import sharp from 'sharp';
import { root, setUp } from './setup.mjs';

const EXAMPLES = ['fabric-hole.png', 'tile-crack.png'];
const SIDE = 256; // pixels
const GAP = 8;

async function row(diad, name) {
  const input = readFileSync(path.join(root, 'examples', name));
  const className = name.split('-')[0];
  const [{ map, score }, { image }] = await Promise.all([
    diad.score(input, { className }),
    diad.reconstruct(input),
  ]);
  process.stdout.write(`${name}: ${score.toFixed(4)}\n`);
  const cells = [input, image, await map.toHeatmap()];
  return Promise.all(cells.map((cell) => sharp(cell).resize(SIDE, SIDE, { fit: 'fill' }).png().toBuffer()));
}

async function main() {
  setUp();
  const { Diad } = await import('../dist/index.js');
  const diad = await Diad.load();
  const rows = [];
  for (const name of EXAMPLES) rows.push(await row(diad, name));
  await diad.close();
  const place = (index) => GAP + index * (SIDE + GAP);
  const layers = rows.flatMap((cells, y) =>
    cells.map((input, x) => ({ input, left: place(x), top: place(y) })),
  );
  const background = { r: 255, g: 255, b: 255 };
  const canvas = sharp({ create: { width: place(3), height: place(rows.length), channels: 3, background } });
  const file = path.join(root, 'docs', 'image.png');
  writeFileSync(file, await canvas.composite(layers).png({ palette: true, quality: 90 }).toBuffer());
  process.stdout.write(`${path.relative(process.cwd(), file)}\n`);
}

try {
  await main();
} catch (error) {
  process.stderr.write(`image: ${error.message}\n`);
  process.exitCode = 1;
}
