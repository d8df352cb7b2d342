// Image decoding, compared with cv2.imread in color.
import assert from 'node:assert/strict';
import sharp from 'sharp';
import { countFrames, countScans, isPlainYcbcr } from '../../lib/image/container-guards.js';
import { decodeImage, inspectImage, NO_LIMITS, sniffFormat, takeImage } from '../../lib/image/decode.js';
import { rejects } from '../support/support.js';

const LIMIT = 1_000_000;
const decode = (bytes: Uint8Array, maxPixels = LIMIT, maxFrames = 1) =>
  decodeImage(takeImage(bytes), { maxPixels, maxFrames });
const raw = (values: number[], width: number, height: number, channels: 1 | 2 | 3 | 4) =>
  sharp(Uint8Array.from(values), { raw: { width, height, channels } });

/** Two pixels, red and a shade of blue. */
const PAIR = [200, 10, 20, 30, 40, 250];

describe('decoding', () => {
  it('decodes PNG exactly', async () => {
    const { data, width, height, channels } = await decode(await raw(PAIR, 2, 1, 3).png().toBuffer());
    assert.deepEqual([[...data], width, height, channels], [PAIR, 2, 1, 3]);
  });

  for (const format of ['jpeg', 'webp', 'tiff', 'avif', 'gif'] as const) {
    it(`decodes a flat ${format} within 3 levels`, async () => {
      const flat = Array.from({ length: 16 * 16 }, () => [180, 90, 30]).flat();
      const { data, width, channels } = await decode(
        await raw(flat, 16, 16, 3).toFormat(format, { quality: 95 }).toBuffer(),
      );
      assert.equal(width, 16);
      assert.equal(channels, 3);
      for (const [c, level] of [180, 90, 30].entries())
        assert.ok(Math.abs(data[3 * 100 + c]! - level) <= 3, `channel ${c}: ${data[3 * 100 + c]}`);
    });
  }

  it('drops alpha without blending', async () => {
    const { data, channels } = await decode(
      await raw([200, 10, 20, 0, 30, 40, 250, 128], 2, 1, 4).png().toBuffer(),
    );
    assert.equal(channels, 3);
    assert.deepEqual([...data], PAIR);
  });

  it('repeats gray, with or without alpha', async () => {
    const gray = await decode(await raw([7, 200], 2, 1, 1).toColorspace('b-w').png().toBuffer());
    assert.deepEqual([[...gray.data], gray.channels], [[7, 7, 7, 200, 200, 200], 3]);
    const withAlpha = await decode(await raw([7, 0, 200, 9], 2, 1, 2).toColorspace('b-w').png().toBuffer());
    assert.deepEqual([[...withAlpha.data], withAlpha.channels], [[7, 7, 7, 200, 200, 200], 3]);
  });

  it('reduces 16 bits to the high byte', async () => {
    const values = Uint16Array.of(0x1234, 0xffee, 0x00ff, 0x80ff, 0x7fff, 0xfeff);
    const color = await sharp(values, { raw: { width: 2, height: 1, channels: 3 } })
      .toColorspace('rgb16')
      .png()
      .toBuffer();
    assert.deepEqual([...(await decode(color)).data], [0x12, 0xff, 0x00, 0x80, 0x7f, 0xfe]);
    const gray = await sharp(values, { raw: { width: 6, height: 1, channels: 1 } })
      .toColorspace('grey16')
      .png()
      .toBuffer();
    assert.deepEqual(
      [...(await decode(gray)).data],
      [0x12, 0xff, 0x00, 0x80, 0x7f, 0xfe].flatMap((level) => [level, level, level]),
    );
  });

  it('applies the EXIF orientation', async () => {
    const left = Array.from({ length: 8 * 16 }, (_, i) => (i % 16 < 8 ? [250, 250, 250] : [5, 5, 5])).flat();
    const turned = await raw(left, 16, 8, 3)
      .withMetadata({ orientation: 6 })
      .jpeg({ quality: 100 })
      .toBuffer();
    const { data, width, height } = await decode(turned);
    assert.deepEqual([width, height], [8, 16]);
    assert.ok(data[0]! > 240 && data[3 * (8 * 15)]! < 15, 'what was left is on top');
  });

  it('ignores embedded color profiles', async () => {
    const wide = await raw(PAIR, 2, 1, 3).withIccProfile('p3').png().toBuffer();
    const { icc } = await sharp(wide).metadata();
    assert.ok(icc !== undefined);
    const stored = await sharp(wide, { ignoreIcc: true }).raw().toBuffer();
    assert.deepEqual([...(await decode(wide)).data], [...stored]);
    const converted = await sharp(wide).raw().toBuffer();
    assert.notDeepEqual([...stored], [...converted]); // the profile has an effect when it is not ignored
  });

  it('expands palettes', async () => {
    const { data } = await decode(await raw(PAIR, 2, 1, 3).png({ palette: true, colors: 4 }).toBuffer());
    assert.deepEqual([...data], PAIR);
  });

  it('converts CMYK to RGB', async () => {
    const flat = Array.from({ length: 16 * 16 }, () => [250, 250, 250]).flat();
    const cmyk = await raw(flat, 16, 16, 3).toColorspace('cmyk').jpeg({ quality: 95 }).toBuffer();
    assert.equal((await sharp(cmyk).metadata()).space, 'cmyk');
    const { data, channels } = await decode(cmyk);
    assert.equal(channels, 3);
    assert.ok(data[0]! > 200 && data[1]! > 200 && data[2]! > 200, [...data.subarray(0, 3)].join());
  });

  it('rejects TIFFs with floating-point or 32-bit samples, which have no defined range', async () => {
    for (const [sampleFormat, name] of [
      [3, 'float'],
      [1, 'uint'],
    ] as const) {
      // Little-endian, 2 x 2 gray samples of 32 bits in one strip after the directory.
      const entries = [
        [256, 3, 1, 2],
        [257, 3, 1, 2],
        [258, 3, 1, 32],
        [259, 3, 1, 1],
        [262, 3, 1, 1],
        [273, 4, 1, 8 + 2 + 10 * 12 + 4],
        [277, 3, 1, 1],
        [278, 3, 1, 2],
        [279, 4, 1, 16],
        [339, 3, 1, sampleFormat],
      ];
      const file = Buffer.alloc(8 + 2 + entries.length * 12 + 4 + 16);
      file.write('II*\0', 0, 'latin1');
      file.writeUInt32LE(8, 4);
      file.writeUInt16LE(entries.length, 8);
      for (const [i, [tag, type, count, value]] of entries.entries()) {
        file.writeUInt16LE(tag!, 10 + i * 12);
        file.writeUInt16LE(type!, 12 + i * 12);
        file.writeUInt32LE(count!, 14 + i * 12);
        file.writeUInt32LE(value!, 18 + i * 12);
      }
      const reason = new RegExp(`samples of type ${name} are not supported, only 8 and 16 bits`);
      await rejects(inspectImage(file), 'ERR_DIAD_IMAGE_DECODE', reason);
    }
  });

  it('rejects a TIFF with YCbCr samples without JPEG compression, which libvips reads as RGB', async () => {
    for (const compression of ['none', 'lzw', 'deflate', 'jpeg'] as const) {
      const file = Buffer.from(
        await raw(Array<number>(16 * 16 * 3).fill(90), 16, 16, 3)
          .tiff({ compression })
          .toBuffer(),
      );
      await inspectImage(file);
      const directory = file.readUInt32LE(4);
      for (let i = 0; i < file.readUInt16LE(directory); i++) {
        const entry = directory + 2 + 12 * i;
        if (file.readUInt16LE(entry) === 262) file.writeUInt16LE(6, entry + 8);
      }
      if (compression === 'jpeg') await inspectImage(file);
      else
        await rejects(
          decode(file),
          'ERR_DIAD_IMAGE_DECODE',
          /YCbCr without JPEG compression is not supported; write RGB/,
        );
    }
    for (const little of [true, false]) {
      for (const big of [true, false]) {
        for (const [compression, photometric, expected] of [
          [1, 6, true],
          [5, 6, true],
          [6, 6, false],
          [7, 6, false],
          [1, 2, false],
        ] as const) {
          const at = new DataView(new ArrayBuffer(100));
          at.setUint16(0, little ? 0x4949 : 0x4d4d);
          at.setUint16(2, big ? 43 : 42, little);
          const [start, first, size, value] = big ? [16, 24, 20, 12] : [8, 10, 12, 8];
          if (big) {
            at.setBigUint64(8, BigInt(start), little);
            at.setBigUint64(start, 2n, little);
          } else {
            at.setUint32(4, start, little);
            at.setUint16(start, 2, little);
          }
          for (const [i, [tag, content]] of [
            [259, compression] as const,
            [262, photometric] as const,
          ].entries()) {
            at.setUint16(first + size * i, tag, little);
            at.setUint16(first + size * i + value, content, little);
          }
          const bytes = new Uint8Array(at.buffer);
          assert.equal(
            isPlainYcbcr(bytes),
            expected,
            `little ${little}, big ${big}, ${compression} ${photometric}`,
          );
          assert.equal(isPlainYcbcr(bytes.subarray(0, 20)), false, 'it breaks off');
        }
      }
    }
  });

  for (const format of ['gif', 'webp', 'tiff'] as const) {
    it(`rejects a multi-frame ${format} unless maxFrames allows reading the first frame`, async () => {
      const frames = Array.from({ length: 3 * 4 * 4 }, (_, i) =>
        i < 16 ? [255, 255, 255] : [0, i, 0],
      ).flat();
      const several = await sharp(Uint8Array.from(frames), {
        raw: { width: 4, height: 12, channels: 3, pageHeight: 4 },
      })
        .toFormat(format, { lossless: true, compression: 'none' })
        .toBuffer();
      assert.equal((await sharp(several).metadata()).pages, 3);
      assert.equal(countFrames(several, format, 10), 3);
      assert.equal(countFrames(several, format, 2), 2);
      await rejects(
        decode(several),
        'ERR_DIAD_IMAGE_TOO_LARGE',
        /at most 1 page or frame but the \w+ has more; .*maxFrames/,
      );
      await rejects(decode(several, LIMIT, 2), 'ERR_DIAD_IMAGE_TOO_LARGE', /at most 2 pages or frames/);
      const { data, height } = await decode(several, LIMIT, 3);
      assert.equal(height, 4);
      assert.ok([...data].every((level) => level === 255));
    });
  }

  it('rejects a TIFF whose pages form a cycle', async () => {
    const page = Buffer.from(await raw(PAIR, 2, 1, 3).tiff().toBuffer());
    const directory = page.readUInt32LE(4);
    page.writeUInt32LE(directory, directory + 2 + 12 * page.readUInt16LE(directory));
    await rejects(decode(page), 'ERR_DIAD_IMAGE_TOO_LARGE', /at most 1 page/);
    await rejects(
      decode(page, LIMIT, NO_LIMITS.maxFrames),
      'ERR_DIAD_IMAGE_TOO_LARGE',
      /at most 1000000 pages/,
    );
  });

  it('counts BigTIFF pages in both byte orders', () => {
    for (const little of [true, false]) {
      const file = new DataView(new ArrayBuffer(48));
      file.setUint16(0, little ? 0x4949 : 0x4d4d);
      file.setUint16(2, 43, little);
      file.setBigUint64(8, 16n, little); // directory without entries at 16, the next at 32
      file.setBigUint64(24, 32n, little);
      assert.equal(countFrames(new Uint8Array(file.buffer), 'tiff', 10), 2, `little ${little}`);
    }
  });

  it('rejects a JPEG with more scans than encoders write', async () => {
    const noise = Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) % 256);
    const jpeg = await raw(noise, 64, 64, 3).jpeg({ progressive: true }).toBuffer();
    const scans = countScans(jpeg, 1000);
    assert.ok(scans >= 6 && scans <= 12, `${scans} scans`);
    assert.equal((await decode(jpeg)).width, 64);
    assert.equal(countScans(await raw(noise, 64, 64, 3).jpeg().toBuffer(), 1000), 1);
    const end = jpeg.length - 2;
    const last = jpeg.subarray(jpeg.lastIndexOf(Buffer.from([0xff, 0xda]), end), end);
    const bomb = Buffer.concat([jpeg.subarray(0, end), ...Array<Buffer>(100).fill(last), jpeg.subarray(end)]);
    assert.equal(countScans(bomb, 1000), scans + 100);
    await rejects(decode(bomb), 'ERR_DIAD_IMAGE_DECODE', /more than 100 scans/);
  });

  it('leaves a truncated structure to the decoder', async () => {
    for (const format of ['gif', 'webp', 'tiff', 'jpeg'] as const) {
      const whole = await raw(PAIR, 2, 1, 3).toFormat(format).toBuffer();
      for (let size = 12; size < whole.length; size++) {
        const cut = whole.subarray(0, size);
        if (format === 'jpeg') assert.ok(countScans(cut, 10) <= 1);
        else assert.equal(countFrames(cut, format, 10), 1);
      }
    }
  });

  it('decodes a single pixel', async () => {
    assert.deepEqual([...(await decode(await raw([1, 2, 3], 1, 1, 3).png().toBuffer())).data], [1, 2, 3]);
  });

  it('checks the pixel limit on the header', async () => {
    const image = await raw(Array<number>(30 * 20 * 3).fill(0), 30, 20, 3)
      .png()
      .toBuffer();
    assert.equal((await decode(image, 600)).width, 30);
    await rejects(
      decode(image, 599),
      'ERR_DIAD_IMAGE_TOO_LARGE',
      /at most 599 pixels but the image has 30 x 20/,
    );
    const bomb = Buffer.from(await raw([0, 0, 0], 1, 1, 3).png().toBuffer());
    bomb.writeUInt32BE(30_000, 16); // width and height in IHDR; there is no such pixel data
    bomb.writeUInt32BE(30_000, 20);
    bomb.writeUInt32BE(crc32(bomb.subarray(12, 29)), 29);
    await rejects(decode(bomb), 'ERR_DIAD_IMAGE_TOO_LARGE', /30000 x 30000/);
    const frame = { data: new Uint8Array(12), width: 2, height: 2, channels: 3 as const };
    await rejects(decodeImage(takeImage(frame), { maxPixels: 3, maxFrames: 1 }), 'ERR_DIAD_IMAGE_TOO_LARGE');
  });

  it('validates the arguments of inspectImage', async () => {
    await rejects(inspectImage('x' as never), 'ERR_DIAD_INVALID_ARGUMENT', /bytes/);
    const png = await raw([0, 0, 0], 1, 1, 3).png().toBuffer();
    for (const frames of [NaN, 0, 1.5, '2'])
      await rejects(inspectImage(png, frames as number), 'ERR_DIAD_INVALID_ARGUMENT', /maxFrames/);
    assert.deepEqual(await inspectImage(png), { format: 'png', width: 1, height: 1 });
  });

  it('rejects truncated, empty and foreign bytes', async () => {
    const noise = Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) % 256);
    for (const format of ['png', 'jpeg', 'webp', 'tiff'] as const) {
      const whole = await raw(noise, 64, 64, 3).toFormat(format).toBuffer();
      await rejects(
        decode(whole.subarray(0, whole.length >> 1)),
        'ERR_DIAD_IMAGE_DECODE',
        /cannot be decoded/,
      );
    }
    await rejects(decode(new Uint8Array()), 'ERR_DIAD_IMAGE_DECODE', /0 bytes/);
    await rejects(
      decode(Buffer.from('%PDF-1.7 and so on')),
      'ERR_DIAD_IMAGE_DECODE',
      /begin with 255044462d/,
    );
    await rejects(
      decode(Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')),
      'ERR_DIAD_IMAGE_DECODE',
    );
    await rejects(
      decode(Buffer.from('\0\0\0\x18ftypheic\0\0\0\0heicmif1', 'latin1')),
      'ERR_DIAD_IMAGE_DECODE',
    );
  });

  it('detects formats by their first bytes', () => {
    assert.equal(sniffFormat(Buffer.from('RIFF\x10\0\0\0WEBPVP8 ', 'latin1')), 'webp');
    assert.equal(sniffFormat(Buffer.from('RIFF\x10\0\0\0WAVEfmt ', 'latin1')), undefined);
    assert.equal(sniffFormat(Buffer.from('MM\0*\0\0\0\x08', 'latin1')), 'tiff');
    assert.equal(sniffFormat(Buffer.from('\0\0\0\x20ftypavif', 'latin1')), 'avif');
    assert.equal(sniffFormat(Buffer.alloc(0)), undefined);
  });
});

/** Computes the CRC-32 of PNG chunks. */
function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
