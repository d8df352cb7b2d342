// NumPy's .npy format: reads versions 1 to 3 into typed arrays, writes float32.
import { readFile, writeFile } from 'node:fs/promises';
import { DiadError } from '../errors.js';

/** A row-major float32 array. */
export interface Float32NpyArray {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** An array of numbers, row-major. */
export interface NumberArray {
  readonly kind: 'number';
  readonly shape: readonly number[];
  readonly data: Float32Array | Float64Array | Uint8Array;
}

/** An array of strings, row-major. */
export interface TextArray {
  readonly kind: 'text';
  readonly shape: readonly number[];
  readonly data: readonly string[];
}

/** Content of an .npy file. */
export type NpyArray = NumberArray | TextArray;

interface Header {
  readonly descr: string;
  readonly fortran: boolean;
  readonly shape: readonly number[];
  /** Bytes before the first element. */
  readonly length: number;
}

const MAGIC = '\x93NUMPY';
const HEADER = /^\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), *\}\s*$/;

const bad = (name: string, message: string): DiadError =>
  new DiadError('ERR_DIAD_INVALID_ARGUMENT', `${name}: ${message}`);

function parseHeader(bytes: Buffer, name: string): Header {
  if (bytes.toString('latin1', 0, 6) !== MAGIC)
    throw bad(name, 'Expected an .npy array but the magic string is missing');
  const version = bytes[6] ?? 0;
  if (version < 1 || version > 3)
    throw bad(name, `Expected .npy version 1, 2 or 3 but received version ${version}`);
  const start = version === 1 ? 10 : 12;
  const size =
    bytes.length < start ? Infinity : version === 1 ? bytes.readUInt16LE(8) : bytes.readUInt32LE(8);
  if (start + size > bytes.length) throw bad(name, 'The .npy header ends before its stated length');
  const text = bytes.toString(version === 3 ? 'utf8' : 'latin1', start, start + size);
  const match = HEADER.exec(text);
  if (match === null) {
    const reason = text.includes("'descr': [")
      ? 'structured arrays are not supported'
      : `the header is ${JSON.stringify(text.slice(0, 120))}`;
    throw bad(name, `Expected a plain array: ${reason}`);
  }
  const [, descr, order, sides] = match;
  const shape = sides!
    .split(',')
    .map((side) => side.trim())
    .filter((side) => side !== '')
    .map(Number);
  return { descr: descr!, fortran: order === 'True', shape, length: start + size };
}

/** Converts half precision to a number. */
function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Returns the bytes at an offset that is aligned for typed arrays. */
function aligned(bytes: Buffer, size: number): { buffer: ArrayBufferLike; offset: number } {
  if (bytes.byteOffset % size === 0) return { buffer: bytes.buffer, offset: bytes.byteOffset };
  const copy = Uint8Array.from(bytes);
  return { buffer: copy.buffer, offset: 0 };
}

function numbers(bytes: Buffer, type: string, count: number, name: string): NumberArray['data'] {
  const size = Number(type.slice(1));
  const { buffer, offset } = aligned(bytes, size);
  switch (type) {
    case 'b1':
    case 'u1':
      return new Uint8Array(buffer, offset, count);
    case 'i1':
      return Float32Array.from(new Int8Array(buffer, offset, count));
    case 'u2':
      return Float32Array.from(new Uint16Array(buffer, offset, count));
    case 'i2':
      return Float32Array.from(new Int16Array(buffer, offset, count));
    case 'u4':
      return Float64Array.from(new Uint32Array(buffer, offset, count));
    case 'i4':
      return Float64Array.from(new Int32Array(buffer, offset, count));
    case 'u8':
      return Float64Array.from(new BigUint64Array(buffer, offset, count), Number);
    case 'i8':
      return Float64Array.from(new BigInt64Array(buffer, offset, count), Number);
    case 'f2':
      return Float32Array.from(new Uint16Array(buffer, offset, count), halfToFloat);
    case 'f4':
      return new Float32Array(buffer, offset, count);
    case 'f8':
      return new Float64Array(buffer, offset, count);
    default:
      throw bad(name, `Expected bool, integers or floats of at most 64 bits but the dtype is ${type}`);
  }
}

function swapped(bytes: Buffer, size: number): Buffer {
  const copy = Buffer.from(bytes);
  if (size === 2) return copy.swap16();
  return size === 4 ? copy.swap32() : size === 8 ? copy.swap64() : copy;
}

function texts(bytes: Buffer, kind: string, length: number, count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    if (kind === 'S') return bytes.toString('utf8', i * length, (i + 1) * length).replace(/\0+$/, '');
    let text = '';
    for (let c = 0; c < length; c++) {
      const point = bytes.readUInt32LE(4 * (i * length + c));
      if (point !== 0) text += String.fromCodePoint(point);
    }
    return text;
  });
}

/** Reorders column-major data to row-major. */
function rowMajor<T extends NumberArray['data'] | string[]>(data: T, shape: readonly number[]): T {
  const result = data.slice() as T;
  const index = shape.map(() => 0);
  for (let to = 0; to < data.length; to++) {
    let from = 0;
    for (let d = shape.length - 1; d >= 0; d--) from = from * shape[d]! + index[d]!;
    result[to] = data[from]!;
    for (let d = shape.length - 1; d >= 0 && ++index[d]! === shape[d]; d--) index[d] = 0;
  }
  return result;
}

/**
 * Parses an .npy file: bool, integers and floats (16-bit floats widened to 32), unicode and byte strings;
 * either byte order and memory order.
 *
 * @param bytes - the whole file; the result can share its memory
 * @param name - name of the array, for error messages
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT that contains the name
 */
export function parseNpy(bytes: Buffer, name: string): NpyArray {
  const header = parseHeader(bytes, name);
  const { shape, fortran } = header;
  const match = /^([<>|=])([a-zA-Z])(\d*)$/.exec(header.descr);
  const [, order, kind, digits] = match ?? [];
  if (kind === 'O')
    throw bad(name, 'Object arrays (pickled Python) are not supported; save numbers or strings (dtype str)');
  if (match === null)
    throw bad(name, `Expected bool, integers, floats or strings but the dtype is ${header.descr}`);
  const size = Number(digits) * (kind === 'U' ? 4 : 1);
  const count = shape.reduce((product, side) => product * side, 1);
  const expected = count * size;
  const body = bytes.subarray(header.length);
  if (body.length < expected)
    throw bad(name, `Expected ${expected} bytes of elements but the file ends after ${body.length}`);
  const native =
    order === '>' ? swapped(body.subarray(0, expected), kind === 'U' ? 4 : size) : body.subarray(0, expected);
  if (kind === 'U' || kind === 'S') {
    const found = texts(native, kind, Number(digits), count);
    return { kind: 'text', shape, data: fortran ? rowMajor(found, shape) : found };
  }
  const data = numbers(native, `${kind ?? ''}${digits ?? ''}`, count, name);
  return { kind: 'number', shape, data: fortran && shape.length > 1 ? rowMajor(data, shape) : data };
}

/** Encodes an array as an .npy file. */
export function encodeNpy(shape: readonly number[], data: Float32Array): Buffer {
  const sides = shape.map((side) => `${side},`).join('');
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': (${sides}), }`;
  // Magic, version and length take 10 bytes; the total must be a multiple of 64.
  const padding = 63 - ((10 + dictionary.length) % 64);
  const header = Buffer.from(`${dictionary}${' '.repeat(padding)}\n`, 'latin1');
  const lead = Buffer.from([
    0x93,
    0x4e,
    0x55,
    0x4d,
    0x50,
    0x59,
    1,
    0,
    header.length & 0xff,
    header.length >> 8,
  ]);
  return Buffer.concat([lead, header, Buffer.from(data.buffer, data.byteOffset, data.byteLength)]);
}

/** Writes an array to an .npy file. */
export function writeNpy(file: string, shape: readonly number[], data: Float32Array): Promise<void> {
  return writeFile(file, encodeNpy(shape, data));
}

/**
 * Reads a float32 array. Widens 16-bit numbers.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT when the file contains anything else; the system error when it
 *   cannot be read
 */
export async function readNpy(file: string): Promise<Float32NpyArray> {
  const array = parseNpy(await readFile(file), file);
  if (array.kind !== 'number' || !(array.data instanceof Float32Array)) {
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', `Expected an array of float32 in ${file}`);
  }
  return { shape: array.shape, data: array.data };
}
