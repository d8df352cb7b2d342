// Contact sheet of a trained model: held-out normal images and, if available, defective ones, with results.
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Diad } from '../diad.js';
import type { CalibrationImage } from '../evaluation/calibration-types.js';
import { isGoodName, list } from '../evaluation/datasets/layout.js';
import { decodeImage, NO_LIMITS, takeImage } from '../image/decode.js';

/** Pixels. */
const [SIDE, GAP, CAPTION, HEADER] = [112, 4, 170, 34] as const;
const ITEM_WIDTH = 3 * (SIDE + GAP) + CAPTION;
const ROW_HEIGHT = SIDE + GAP;
const MOST_OF_KIND = 8;
/** Limit per kind over all classes: more would take minutes. */
const MOST_IN_ALL = 48;

/** An image on the sheet. */
export interface SheetImage {
  readonly file: string;
  readonly className: string;
  /** "good", or the name of the defect. */
  readonly kind: string;
}

function spaced<T>(items: readonly T[], count: number): T[] {
  if (items.length <= count) return [...items];
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)]!);
}

/**
 * Lists defective images of a class in MVTec-AD layout, alternating between kinds; empty for other layouts.
 */
async function defectiveImages(data: string, className: string, count: number): Promise<SheetImage[]> {
  const root = (await list(data)).folders.includes('test') ? data : path.join(data, className);
  const kinds = (await list(path.join(root, 'test'))).folders.filter((name) => !isGoodName(name));
  const listed = await Promise.all(
    kinds.map(async (kind) => {
      const folder = path.join(root, 'test', kind);
      const { images } = await list(folder);
      return spaced(images, count).map((name) => ({ file: path.join(folder, name), className, kind }));
    }),
  );
  const inTurn = Array.from({ length: count }, (_, i) =>
    listed.flatMap((images) => images.slice(i, i + 1)),
  ).flat();
  return inTurn.slice(0, count);
}

/**
 * Selects the images of a sheet: per class up to 8 held-out normal images and up to 8 defective ones from
 * CLASS/test/DEFECT.
 *
 * @param data - the training data set
 */
export async function sheetImages(
  data: string,
  split: readonly CalibrationImage[],
): Promise<readonly SheetImage[]> {
  const classes = [...new Set(split.map(({ className }) => className))];
  const count = Math.max(2, Math.min(MOST_OF_KIND, Math.floor(MOST_IN_ALL / classes.length)));
  const found: SheetImage[] = [];
  for (const className of classes) {
    const heldOut = split.filter((image) => image.className === className && image.role === 'held-out');
    found.push(...spaced(heldOut, count).map(({ file }) => ({ file, className, kind: 'good' })));
    found.push(...(await defectiveImages(data, className, count)));
  }
  return found;
}

interface Cell {
  readonly image: SheetImage;
  /** PNG: input, reconstruction, heat map. */
  readonly views: readonly Buffer[];
  readonly score: number;
  readonly anomalous: boolean | undefined;
}

async function cellOf(diad: Diad, image: SheetImage, signal: AbortSignal): Promise<Cell> {
  const { default: sharp } = await import('sharp');
  const bytes = await readFile(image.file);
  const call = { className: image.className, signal };
  const [scored, reconstructed, frame] = await Promise.all([
    diad.score(bytes, call),
    diad.reconstruct(bytes, call),
    decodeImage(takeImage(bytes), NO_LIMITS),
  ]);
  const { data, ...raw } = frame;
  const fitted = { width: SIDE, height: SIDE, fit: 'contain', background: '#fff' } as const;
  const views = await Promise.all([
    sharp(data, { raw }).removeAlpha().resize(fitted).png().toBuffer(),
    sharp(reconstructed.image)
      .resize({ ...fitted, fit: 'fill' })
      .png()
      .toBuffer(),
    sharp(await scored.map.toHeatmap())
      .resize(fitted)
      .png()
      .toBuffer(),
  ]);
  return { image, views, score: scored.score, anomalous: scored.anomalous };
}

const escaped = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const shortened = (text: string, length: number): string =>
  text.length <= length ? text : `…${text.slice(1 - length)}`;

/** Draws name, score and verdict; green when the verdict is correct, red otherwise. */
function caption({ image, score, anomalous }: Cell, x: number, y: number): string {
  const fits = anomalous === (image.kind !== 'good');
  const verdict = anomalous === undefined ? '' : anomalous ? 'anomalous' : 'normal';
  const lines = [
    shortened(image.kind, 24),
    shortened(path.basename(image.file), 24),
    score.toFixed(3),
    verdict,
  ];
  return lines
    .map((line, i) => {
      const style =
        i < 2
          ? 'fill="#555" font-size="12"'
          : `fill="${fits ? '#06702c' : '#b3001b'}" font-size="15" font-weight="bold"`;
      return `<text x="${x}" y="${y + 22 + 23 * i}" ${style}>${escaped(line)}</text>`;
    })
    .join('');
}

/**
 * Draws the sheet: normal images of each class on the left, defective ones on the right. Each image shows the
 * input, the reconstruction, the heat map, the score and the verdict.
 *
 * @returns PNG bytes
 * @throws as `Diad.score`; the reason of the signal
 */
export async function contactSheet(
  diad: Diad,
  images: readonly SheetImage[],
  signal: AbortSignal,
): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  const [overlays, text]: [{ input: Buffer; left: number; top: number }[], string[]] = [[], []];
  let top = GAP;
  for (const className of new Set(images.map((image) => image.className))) {
    const own = images.filter((image) => image.className === className);
    const sides = [
      own.filter(({ kind }) => kind === 'good'),
      own.filter(({ kind }) => kind !== 'good'),
    ] as const;
    text.push(
      `<text x="${GAP}" y="${top + 23}" font-size="18" font-weight="bold">${escaped(className)}</text>`,
    );
    for (const [side, list] of sides.entries()) {
      for (const [row, image] of list.entries()) {
        signal.throwIfAborted();
        const cell = await cellOf(diad, image, signal);
        const [x, y] = [GAP + side * ITEM_WIDTH, top + HEADER + row * ROW_HEIGHT];
        for (const [i, input] of cell.views.entries())
          overlays.push({ input, left: x + i * (SIDE + GAP), top: y });
        text.push(caption(cell, x + 3 * (SIDE + GAP) + 6, y));
      }
    }
    top += HEADER + Math.max(...sides.map(({ length }) => length)) * ROW_HEIGHT + 2 * GAP;
  }
  const [width, height] = [GAP + ITEM_WIDTH * (images.some(({ kind }) => kind !== 'good') ? 2 : 1), top];
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif">` +
    `<rect width="100%" height="100%" fill="#fff"/>${text.join('')}</svg>`;
  return sharp(Buffer.from(svg)).composite(overlays).png().toBuffer();
}
