// Real images in all formats with flipped bits, truncation and headers of other images.
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  isDiadError,
  library,
  megabytes,
  readTestImage,
  randomNumbers,
  root,
  rss,
  within,
} from './harness.mjs';

export const abuse =
  'mutated PNG, JPEG, WebP, TIFF, GIF, AVIF and BMP: bit flips, truncations, spliced headers';
export const mustHold = 'a result or a DiadError; no crash, < 10 s, < 1 GiB';
export const amounts = { short: 400, full: 20_000 };

const LONGEST_MS = 10_000;
const MOST_MB = 1024;
const SCORED_EVERY = 20; // score every 20th decodable image only, because decoding is under test

/** Creates a BMP from rows of a multiple of four bytes, bottom row first. */
function bmp(pixels, { width, height, bits, compression = 0, palette = Buffer.alloc(0) }) {
  const head = Buffer.alloc(54);
  head.write('BM', 'latin1');
  head.writeUInt32LE(54 + palette.length, 10);
  head.writeUInt32LE(40, 14);
  head.writeInt32LE(width, 18);
  head.writeInt32LE(height, 22);
  head.writeUInt16LE(1, 26);
  head.writeUInt16LE(bits, 28);
  head.writeUInt32LE(compression, 30);
  return Buffer.concat([head, palette, pixels]);
}

/** Creates an uncompressed and a run-length encoded BMP of a gray image. */
function grayBmps(gray, size) {
  const palette = Buffer.from(Array.from({ length: 256 }, (_, i) => [i, i, i, 0]).flat());
  const runs = [];
  for (let row = 0; row < size.height; row++) {
    for (let x = 0, length = 1; x < size.width; x += length, length = 1) {
      const at = row * size.width + x;
      while (x + length < size.width && length < 255 && gray[at + length] === gray[at]) length++;
      runs.push(length, gray[at]);
    }
    runs.push(0, 0);
  }
  runs.push(0, 1);
  return [
    bmp(gray, { ...size, bits: 8, palette }),
    bmp(Buffer.from(runs), { ...size, bits: 8, compression: 1, palette }),
  ];
}

/** Creates the seeds: one image in all formats and their main variants. */
async function seeds(sharp) {
  const base = () => sharp(readTestImage()).resize(96, 80, { fit: 'fill' });
  const exif = () => base().withMetadata({ orientation: 6 });
  const size = { width: 96, height: 80 };
  const gray = await base().grayscale().raw().toBuffer();
  return Promise.all([
    bmp(await base().removeAlpha().raw().toBuffer(), { ...size, bits: 24 }),
    ...grayBmps(gray, size),
    base().png().toBuffer(),
    base().png({ palette: true, progressive: true }).toBuffer(),
    base().toColorspace('rgb16').png().toBuffer(),
    exif().jpeg().toBuffer(),
    base().jpeg({ progressive: true }).toBuffer(),
    base().toColorspace('cmyk').jpeg().toBuffer(),
    exif().webp().toBuffer(),
    base().webp({ lossless: true }).toBuffer(),
    base().tiff({ compression: 'lzw' }).toBuffer(),
    base().tiff({ compression: 'jpeg' }).toBuffer(),
    base().tiff({ tile: true, tileWidth: 32, tileHeight: 32, compression: 'deflate' }).toBuffer(),
    base().gif().toBuffer(),
    base().avif({ effort: 0 }).toBuffer(),
  ]);
}

function mutated(seed, other, random) {
  const below = (limit) => Math.floor(random() * limit);
  const bytes = Buffer.from(seed);
  const kind = below(5);
  if (kind <= 1) {
    // Half of the flips are in the first 200 bytes, which contain most of the headers.
    const reach = kind === 0 ? Math.min(200, bytes.length) : bytes.length;
    for (let flips = 1 + below(8); flips > 0; flips--) bytes[below(reach)] ^= 1 << below(8);
    return bytes;
  }
  if (kind === 2) return bytes.subarray(0, below(bytes.length));
  if (kind === 3) {
    const cut = 4 + below(120);
    return Buffer.concat([bytes.subarray(0, cut), other.subarray(Math.min(cut, other.length))]);
  }
  const [from, length] = [below(bytes.length), 1 + below(64)];
  return bytes.fill(below(2) * 255, from, Math.min(bytes.length, from + length));
}

export async function run(count) {
  const { Diad } = await library();
  const { decodeImage, takeImage } = await import(
    pathToFileURL(path.join(root, 'dist', 'image', 'decode.js')).href
  );
  const { default: sharp } = await import('sharp');
  const random = randomNumbers(6);
  const failures = [];
  const diad = await Diad.load();
  const golden = (await diad.score(readTestImage())).score;
  const originals = await seeds(sharp);
  const tally = { decoded: 0, refused: 0, scored: 0 };
  let [slowest, highest] = [0, rss()];
  const before = rss();
  for (let i = 0; i < count; i++) {
    const bytes = mutated(
      originals[i % originals.length],
      originals[Math.floor(random() * originals.length)],
      random,
    );
    const started = performance.now();
    try {
      // Limits as in a service: larger images are rejected before decoding.
      await within(
        LONGEST_MS,
        decodeImage(takeImage(bytes), { maxPixels: 16_000_000, maxFrames: 1 }),
        `image ${i}`,
      );
      if (++tally.decoded % SCORED_EVERY === 0) {
        const { score } = await within(LONGEST_MS, diad.score(bytes), `score ${i}`);
        tally.scored++;
        if (!Number.isFinite(score)) failures.push(`image ${i}: score ${score}`);
      }
    } catch (error) {
      tally.refused++;
      if (!isDiadError(error))
        failures.push(`image ${i}: ${error.name} ${error.code ?? ''} ${error.message}`);
    }
    slowest = Math.max(slowest, performance.now() - started);
    highest = Math.max(highest, rss());
  }
  const growth = megabytes(highest - before);
  if (growth > MOST_MB) failures.push(`RSS grew by ${growth.toFixed(0)} MB`);
  const { score } = await diad.score(readTestImage());
  if (score !== golden) failures.push(`the score afterward is ${score}, not ${golden}`);
  await diad.close();
  const counts = `${tally.decoded} decoded (${tally.scored} scored), ${tally.refused} rejected`;
  return {
    measured:
      `${counts}; slowest ${slowest.toFixed(0)} ms, RSS at most +${growth.toFixed(0)} MB; ` +
      `${failures.length} bad`,
    failures,
  };
}
