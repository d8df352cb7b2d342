// NumPy's .npy format, version 1.0, float32, for stage dumps.
import { writeFile } from 'node:fs/promises';

/** Bytes of an .npy file of a row-major float32 array. */
export function encodeNpy(shape: readonly number[], data: Float32Array): Buffer {
  const sides = shape.map((side) => `${side},`).join('');
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': (${sides}), }`;
  const padding = 63 - ((10 + dictionary.length) % 64); // magic, version and length take 10 bytes; the whole is a multiple of 64
  const header = Buffer.from(`${dictionary}${' '.repeat(padding)}\n`, 'latin1');
  const lead = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 0xff, header.length >> 8]);
  return Buffer.concat([lead, header, Buffer.from(data.buffer, data.byteOffset, data.byteLength)]);
}

/** Writes an array. */
export function writeNpy(file: string, shape: readonly number[], data: Float32Array): Promise<void> {
  return writeFile(file, encodeNpy(shape, data));
}
