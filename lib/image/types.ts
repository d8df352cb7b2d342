// Types of images on their way from the caller to the engine.

/** An 8-bit image without row padding: gray (1), RGB (3) or RGBA (4, alpha is dropped). */
export interface RawFrame {
  readonly data: Uint8Array | Uint8ClampedArray;
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  readonly channels: 1 | 3 | 4;
}

/**
 * Encoded bytes of a PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP (one frame unless `maxFrames` allows more), or a
 * frame.
 */
export type ImageInput = Uint8Array | ArrayBuffer | RawFrame;

/** A private copy of the input, unaffected by later changes of the caller's memory. */
export type TakenImage =
  | { readonly kind: 'encoded'; readonly bytes: Uint8Array }
  | { readonly kind: 'frame'; readonly frame: RawFrame };

/** Supported formats. */
export type ImageFormat = 'png' | 'jpeg' | 'webp' | 'tiff' | 'avif' | 'gif' | 'bmp';

/** Limits that are checked before a pixel is decoded. */
export interface ImageLimits {
  /** Most pixels, width x height. */
  readonly maxPixels: number;
  /** Most pages or frames; only the first is read. */
  readonly maxFrames: number;
}
