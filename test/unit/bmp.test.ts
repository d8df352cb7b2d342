// BMP: all variants that cv2.imread reads, and errors of invalid files.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { DiadError } from '../../lib/index.js';
import { decodeImage, inspectImage, takeImage } from '../../lib/image/decode.js';
import { bmp, type BmpParts } from '../support/bmp.js';
import { inFolder, python, rejects, root, runProgram } from '../support/support.js';

const decode = (bytes: Uint8Array, maxPixels = 1_000_000) =>
  decodeImage(takeImage(bytes), { maxPixels, maxFrames: 1 });

const [BLACK, WHITE, RED, BLUE] = [
  [0, 0, 0],
  [255, 255, 255],
  [200, 10, 20],
  [30, 40, 250],
] as const;
const PALETTE = [BLACK, WHITE, RED, BLUE].map(([r, g, b]) => [b, g, r] as const);
/** Encodes 16-bit words, little-endian. */
const bytesOf = (...words: number[]): number[] => [...new Uint8Array(Uint16Array.from(words).buffer)];

const CASES: readonly [what: string, parts: BmpParts, expected: readonly (readonly number[])[]][] = [
  [
    '24 bits, rows of odd length',
    { width: 1, height: 2, bits: 24, pixels: [20, 10, 200, 0, 250, 40, 30, 0] },
    [BLUE, RED],
  ],
  [
    '24 bits, top row first',
    { width: 1, height: -2, bits: 24, pixels: [20, 10, 200, 0, 250, 40, 30, 0] },
    [RED, BLUE],
  ],
  [
    '24 bits without padding of the last row',
    { width: 1, height: 1, bits: 24, pixels: [20, 10, 200] },
    [RED],
  ],
  ['32 bits', { width: 2, height: 1, bits: 32, pixels: [20, 10, 200, 0, 250, 40, 30, 9] }, [RED, BLUE]],
  [
    '32 bits with masks',
    {
      width: 2,
      height: 1,
      bits: 32,
      compression: 3,
      masks: [0xff, 0xff00, 0xff0000],
      pixels: [200, 10, 20, 0, 30, 40, 250, 9],
    },
    [RED, BLUE],
  ],
  [
    '32 bits with masks that include the highest bit',
    {
      width: 1,
      height: 1,
      bits: 32,
      compression: 3,
      masks: [0xff000000, 0xff0000, 0xff00],
      pixels: [9, 20, 10, 200],
    },
    [RED],
  ],
  [
    '32 bits with masks of ten bits, and alpha',
    {
      width: 1,
      height: 1,
      bits: 32,
      compression: 6,
      masks: [0x3ff00000, 0xffc00, 0x3ff, 0xc0000000],
      pixels: [...new Uint8Array(Uint32Array.of((1023 << 20) | (512 << 10) | 4).buffer)],
    },
    [[255, 127, 0]],
  ],
  [
    '16 bits, five per channel, shifted like in cv2',
    { width: 2, height: 1, bits: 16, pixels: bytesOf(0x7fff, (25 << 10) | (1 << 5) | 2) },
    [
      [248, 248, 248],
      [200, 8, 16],
    ],
  ],
  [
    '16 bits, six for green',
    {
      width: 2,
      height: 1,
      bits: 16,
      compression: 3,
      masks: [0xf800, 0x7e0, 0x1f],
      pixels: bytesOf(0xffff, (25 << 11) | (1 << 5) | 2),
    },
    [
      [248, 252, 248],
      [200, 4, 16],
    ],
  ],
  [
    '8 bits; an index without a color is black',
    { width: 5, height: 1, bits: 8, palette: PALETTE, pixels: [1, 2, 3, 0, 9, 0, 0, 0] },
    [WHITE, RED, BLUE, BLACK, BLACK],
  ],
  [
    '4 bits, rows of odd length',
    { width: 3, height: 2, bits: 4, palette: PALETTE, pixels: [0x12, 0x30, 0, 0, 0x32, 0x10, 0, 0] },
    [BLUE, RED, WHITE, WHITE, RED, BLUE],
  ],
  [
    '1 bit',
    { width: 9, height: 1, bits: 1, palette: PALETTE.slice(0, 2), pixels: [0b10100000, 0b10000000, 0, 0] },
    [WHITE, BLACK, WHITE, ...Array<typeof BLACK>(5).fill(BLACK), WHITE],
  ],
  [
    'OS/2 header',
    { width: 2, height: 1, bits: 1, header: 12, palette: PALETTE.slice(2), pixels: [0b01000000, 0, 0, 0] },
    [RED, BLUE],
  ],
  ['header of version 4', { width: 1, height: 1, bits: 24, header: 108, pixels: [20, 10, 200, 0] }, [RED]],
  [
    'header of version 5',
    { width: 1, height: 1, bits: 8, header: 124, palette: PALETTE, pixels: [3, 0, 0, 0] },
    [BLUE],
  ],
  [
    'bytes between palette and pixels',
    { width: 1, height: 1, bits: 8, palette: PALETTE, gap: 6, pixels: [2, 0, 0, 0] },
    [RED],
  ],
  [
    'RLE8: run, absolute run of odd length, delta, end of row; other pixels have the first color',
    {
      width: 4,
      height: 3,
      bits: 8,
      compression: 1,
      palette: PALETTE,
      pixels: [0, 3, 1, 2, 3, 0, 1, 1, 0, 0, 2, 2, 0, 2, 1, 1, 1, 3, 0, 1],
    },
    [
      [BLACK, BLACK, BLACK, BLUE],
      [RED, RED, BLACK, BLACK],
      [WHITE, RED, BLUE, WHITE],
    ].flat(),
  ],
  [
    'RLE4',
    {
      width: 5,
      height: 2,
      bits: 4,
      compression: 2,
      palette: PALETTE,
      pixels: [3, 0x12, 2, 0x30, 0, 0, 0, 5, 0x12, 0x30, 0x10, 0, 0, 1],
    },
    [
      [WHITE, RED, BLUE, BLACK, WHITE],
      [WHITE, RED, WHITE, BLUE, BLACK],
    ].flat(),
  ],
];

describe('BMP', () => {
  for (const [what, parts, expected] of CASES) {
    it(what, async () => {
      const bytes = bmp(parts);
      const [width, height] = [parts.width, Math.abs(parts.height)];
      assert.deepEqual(await inspectImage(bytes), { format: 'bmp', width, height });
      const frame = await decode(bytes);
      assert.deepEqual(
        [[...frame.data], frame.width, frame.height, frame.channels],
        [expected.flat(), width, height, 3],
      );
    });
  }

  for (const [what, parts, message] of [
    [
      'truncated pixels',
      { width: 2, height: 2, bits: 24, pixels: [1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 3] },
      /pixel data is truncated/,
    ],
    ['a truncated palette', { width: 1, height: 1, bits: 8, pixels: [1] }, /palette is truncated/],
    ['no pixels', { width: 0, height: 1, bits: 24, pixels: [] }, /size is 0 x 1 pixels/],
    ['a negative width', { width: -3, height: 1, bits: 24, pixels: [] }, /size is -3 x 1 pixels/],
    ['too wide', { width: 2 ** 21, height: 1, bits: 24, pixels: [] }, /size is 2097152 x 1 pixels/],
    [
      'an embedded JPEG',
      { width: 1, height: 1, bits: 24, compression: 4, pixels: [] },
      /24 bits per pixel with compression 4 are not supported/,
    ],
    [
      '2 bits',
      { width: 1, height: 1, bits: 2, pixels: [] },
      /2 bits per pixel with compression 0 are not supported/,
    ],
    [
      'a run past the end of its row',
      { width: 2, height: 1, bits: 8, compression: 1, palette: PALETTE, pixels: [3, 1, 0, 1] },
      /a run extends past the end of its row/,
    ],
    [
      'a delta out of the image',
      { width: 2, height: 1, bits: 8, compression: 1, palette: PALETTE, pixels: [0, 2, 0, 1, 1, 1, 0, 1] },
      /a run extends past the end of its row/,
    ],
    [
      'runs without an end marker',
      { width: 2, height: 1, bits: 8, compression: 1, palette: PALETTE, pixels: [2, 1] },
      /pixel data is truncated/,
    ],
    [
      'top-down runs',
      { width: 2, height: -1, bits: 8, compression: 1, palette: PALETTE, pixels: [2, 1, 0, 1] },
      /top-down rows cannot be compressed/,
    ],
  ] as const) {
    it(`rejects ${what}`, () => rejects(decode(bmp(parts)), 'ERR_DIAD_IMAGE_DECODE', message));
  }

  it('rejects too many pixels by the header', async () => {
    const bomb = bmp({
      width: 2000,
      height: 1000,
      bits: 8,
      compression: 1,
      palette: PALETTE,
      pixels: [0, 1],
    });
    await rejects(decode(bomb), 'ERR_DIAD_IMAGE_TOO_LARGE', /2000 x 1000/);
  });

  it('does not accept the two-letter signature alone', () =>
    rejects(
      inspectImage(Buffer.from('BM, and then a text of some length')),
      'ERR_DIAD_IMAGE_DECODE',
      /begin with 424d/,
    ));

  it('returns an image or a DiadError for every changed byte and every truncation', async () => {
    let [read, refused] = [0, 0];
    const attempt = async (bytes: Uint8Array): Promise<void> => {
      try {
        const { data, width, height } = await decode(bytes, 10_000);
        assert.equal(data.length, 3 * width * height);
        read++;
      } catch (error) {
        assert.ok(error instanceof DiadError, String(error));
        refused++;
      }
    };
    for (const [, parts] of CASES) {
      const bytes = bmp(parts);
      for (let length = 1; length < bytes.length; length++) await attempt(bytes.subarray(0, length));
      for (let i = 2; i < bytes.length; i++) {
        for (const value of [0, 1, 0x7f, 0x80, 0xff]) await attempt(Buffer.from(bytes).fill(value, i, i + 1));
      }
    }
    assert.ok(read > 1000 && refused > 1000, `${read} read, ${refused} refused`);
  });

  it('decodes files of Pillow like the reference', () =>
    inFolder(async (folder) => {
      const script = `
import sys
sys.path.insert(0, ${JSON.stringify(path.join(root, 'python'))})
from PIL import Image
from diad_reference.frame import read_rgb
for mode in ("1", "L", "P", "RGB", "RGBA"):
    file = f"{sys.argv[1]}/{mode}.bmp"
    Image.open(${JSON.stringify(path.join(root, 'examples', 'capsule-crack.jpg'))}).resize((131, 77)).convert(mode).save(file)
    open(f"{sys.argv[1]}/{mode}.rgb", "wb").write(read_rgb(file).tobytes())
`;
      const { code, stderr } = await runProgram(python, ['-c', script, folder]);
      assert.equal(code, 0, stderr);
      for (const mode of ['1', 'L', 'P', 'RGB', 'RGBA']) {
        const { data, width, height } = await decode(await readFile(path.join(folder, `${mode}.bmp`)));
        assert.deepEqual([width, height], [131, 77]);
        assert.ok(Buffer.from(data).equals(await readFile(path.join(folder, `${mode}.rgb`))), mode);
      }
    }));
});
