// Small files that ask for a lot: pixels, scans, pages, frames.
import { writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import zlib from 'node:zlib';
import { megabytes, nodeChild } from './harness.mjs';

export const abuse =
  'bombs: PNG 30,000 x 30,000, progressive JPEG with 5,000 scans, TIFF of 10,000 pages, GIF and WebP of 10,000 frames';
export const mustHold = 'refused before decoding, with the reason; peak RSS < +200 MB, < 10 s';
export const amounts = { short: 1, full: 10 }; // rounds over the five

const MOST_MB = 200;
const LONGEST_MS = 10_000;

function pngChunk(type, body) {
  const chunk = Buffer.alloc(12 + body.length);
  chunk.writeUInt32BE(body.length, 0);
  chunk.write(type, 4, 'latin1');
  body.copy(chunk, 8);
  chunk.writeUInt32BE(
    zlib.crc32 === undefined
      ? crc32(chunk.subarray(4, 8 + body.length))
      : zlib.crc32(chunk.subarray(4, 8 + body.length)),
    8 + body.length,
  );
  return chunk;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** A whole, valid PNG of side x side black pixels, 1 bit each: 112 MB of rows in about 110 KB. */
export function pngBomb(side = 30_000) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header[8] = 1; // bit depth; color type 0: gray
  const rows = zlib.deflateSync(Buffer.alloc(side * (1 + Math.ceil(side / 8))), { level: 9 });
  const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
  return Buffer.concat([
    signature,
    pngChunk('IHDR', header),
    pngChunk('IDAT', rows),
    pngChunk('IEND', Buffer.alloc(0)),
  ]);
}

/** A progressive JPEG whose last scan is there `scans` times. */
export async function jpegBomb(scans = 5000) {
  const { default: sharp } = await import('sharp');
  const plain = sharp({ create: { width: 4000, height: 4000, channels: 3, background: '#807060' } });
  const jpeg = await plain.jpeg({ progressive: true }).toBuffer();
  const end = jpeg.length - 2; // before EOI
  const start = jpeg.lastIndexOf(Buffer.from([0xff, 0xda]), end);
  const scan = jpeg.subarray(start, end);
  return Buffer.concat([
    jpeg.subarray(0, end),
    ...Array.from({ length: scans }, () => scan),
    jpeg.subarray(end),
  ]);
}

/** A TIFF of one-strip pages of 64 x 64 gray pixels that share their pixels. */
export function tiffBomb(pages = 10_000) {
  const [side, entries] = [64, 9];
  const pixels = 8;
  const first = pixels + side * side;
  const size = 2 + entries * 12 + 4;
  const file = Buffer.alloc(first + pages * size);
  file.write('II*\0', 0, 'latin1');
  file.writeUInt32LE(first, 4);
  for (let i = 0; i < side * side; i++) file[pixels + i] = i & 255;
  const tags = [
    [256, 4, side],
    [257, 4, side],
    [258, 3, 8], // bits per sample
    [259, 3, 1], // no compression
    [262, 3, 1], // black is zero
    [273, 4, pixels], // strip offset
    [277, 3, 1],
    [278, 4, side],
    [279, 4, side * side],
  ];
  for (let page = 0; page < pages; page++) {
    let at = first + page * size;
    at = file.writeUInt16LE(entries, at);
    for (const [tag, type, value] of tags) {
      at = file.writeUInt16LE(tag, at);
      at = file.writeUInt16LE(type, at);
      at = file.writeUInt32LE(1, at);
      at = file.writeUInt32LE(value, at);
    }
    file.writeUInt32LE(page + 1 < pages ? first + (page + 1) * size : 0, at);
  }
  return file;
}

/** A GIF of frames of one logical screen: the frame's bytes, repeated. */
export async function gifBomb(frames = 10_000) {
  const { default: sharp } = await import('sharp');
  const plain = sharp({ create: { width: 1000, height: 1000, channels: 3, background: '#807060' } });
  const gif = await plain.gif({ colors: 8 }).toBuffer();
  const tableBytes = gif[10] & 0x80 ? 3 * 2 ** ((gif[10] & 7) + 1) : 0;
  const start = 13 + tableBytes;
  const body = gif.subarray(start, gif.length - 1); // without the trailer
  return Buffer.concat([
    gif.subarray(0, start),
    ...Array.from({ length: frames }, () => body),
    Buffer.from([0x3b]),
  ]);
}

/** A WebP whose one frame is there `frames` times. */
export async function webpBomb(frames = 10_000) {
  const { default: sharp } = await import('sharp');
  const pixels = { width: 64, height: 128, channels: 3 };
  const colors = Buffer.from(
    Uint8Array.from({ length: 64 * 128 * 3 }, (_, i) => (i < 64 * 64 * 3 ? 80 : 160)),
  );
  const webp = await sharp(colors, { raw: { ...pixels, pageHeight: 64 } })
    .webp()
    .toBuffer();
  const start = webp.lastIndexOf('ANMF');
  const frame = webp.subarray(start);
  const bomb = Buffer.concat([webp, ...Array.from({ length: frames - 2 }, () => frame)]);
  bomb.writeUInt32LE(bomb.length - 8, 4);
  return bomb;
}

/** What each must be refused with. */
const REFUSALS = {
  png: /^ERR_DIAD_IMAGE_TOO_LARGE: .* 30000 x 30000/,
  jpeg: /^ERR_DIAD_IMAGE_DECODE: .*more than 100 scans/,
  tiff: /^ERR_DIAD_IMAGE_TOO_LARGE: .*at most 1 page or frame but the TIFF has more/,
  gif: /^ERR_DIAD_IMAGE_TOO_LARGE: .*at most 1 page or frame but the GIF has more/,
  webp: /^ERR_DIAD_IMAGE_TOO_LARGE: .*at most 1 page or frame but the WEBP has more/,
};

export async function run(count) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'diad-bombs-'));
  const failures = [];
  const seen = [];
  try {
    const bombs = {
      png: pngBomb(),
      jpeg: await jpegBomb(),
      tiff: tiffBomb(),
      gif: await gifBomb(),
      webp: await webpBomb(),
    };
    for (const [name, bytes] of Object.entries(bombs)) writeFileSync(path.join(folder, name), bytes);
    for (let round = 0; round < count; round++) {
      for (const [name, bytes] of Object.entries(bombs)) {
        const source = `const diad = await Diad.load();
          await diad.score(image);
          const bomb = readFileSync(${JSON.stringify(path.join(folder, name))});
          const before = process.resourceUsage().maxRSS;
          const started = performance.now();
          const outcome = await diad.score(bomb).then(() => 'score', (error) => error instanceof DiadError ? error.code + ': ' + error.message : 'not a DiadError: ' + error);
          console.log(JSON.stringify({ outcome, ms: performance.now() - started, kib: process.resourceUsage().maxRSS - before }));
          await diad.close();`;
        const ended = await nodeChild(source, { timeout: 60_000 });
        if (ended.code !== 0) {
          failures.push(`${name}: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-200)}`);
          continue;
        }
        const { outcome, ms, kib } = JSON.parse(ended.stdout);
        const mb = megabytes(kib * 1024);
        if (round === 0)
          seen.push(
            `${name} of ${megabytes(bytes.length).toFixed(1)} MB: ${ms.toFixed(0)} ms, +${mb.toFixed(0)} MB`,
          );
        if (!REFUSALS[name].test(outcome)) failures.push(`${name}: ${outcome}`);
        if (mb > MOST_MB) failures.push(`${name}: RSS +${mb.toFixed(0)} MB`);
        if (ms > LONGEST_MS) failures.push(`${name}: ${ms.toFixed(0)} ms`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return { measured: seen.join('; '), failures };
}
