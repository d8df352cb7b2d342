// What receivers are told.

/** What is told of an image; `id` is the same however often it is sent. */
export interface WatchEvent {
  /** SHA-256 of path, size and time of change: a file that is replaced is a new image. */
  readonly id: string;
  /** Within the watched folder. */
  readonly file: string;
  /** Of the score, ISO 8601. */
  readonly time: string;
  /** 0 (as reconstructed) and up. */
  readonly score?: number;
  /** Of the image's class, else the global one; only of a calibrated bundle. */
  readonly threshold?: number;
  /** score > threshold; only of a calibrated bundle. */
  readonly anomalous?: boolean;
  /** The score on a scale of 0 to 1 with 0.5 at the threshold; only of a calibrated bundle. */
  readonly normalizedScore?: number;
  readonly error?: { readonly code: string; readonly message: string };
}
