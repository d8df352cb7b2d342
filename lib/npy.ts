// NumPy's .npy format, version 1.0, float32, row-major: what stage dumps and golden results are stored in.
import { readFile, writeFile } from 'node:fs/promises';
import { DiadError } from './errors.js';

/** A row-major float32 array. */
export interface NpyArray {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** Bytes of an .npy file of an array. */
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

/**
 * Reads a row-major float32 array.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the file holds anything else; the file system's error when it cannot be read
 */
export async function readNpy(file: string): Promise<NpyArray> {
  const bytes = await readFile(file);
  const start = bytes.length >= 10 && bytes.toString('latin1', 1, 6) === 'NUMPY' ? 10 + bytes.readUInt16LE(8) : bytes.length + 1;
  const header = bytes.toString('latin1', 10, start);
  const sides = /'descr': '<f4', 'fortran_order': False, 'shape': \(([\d, ]*)\)/.exec(header)?.[1];
  const shape = (sides ?? '').split(',').flatMap((side) => (side.trim() === '' ? [] : [Number(side)]));
  const count = shape.reduce((product, side) => product * side, 1);
  if (sides === undefined || bytes.length !== start + 4 * count) {
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected a row-major float32 array of NumPy's format in ${file}`);
  }
  return { shape, data: new Float32Array(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length)) };
}
