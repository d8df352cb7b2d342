// The event that receivers get.

/** Result for an image; `id` is the same for every delivery attempt. */
export interface WatchEvent {
  /** SHA-256 of path, size and modification time. A replaced file is a new image. */
  readonly id: string;
  /** Path within the watched folder. */
  readonly file: string;
  /** Time of the score, ISO 8601. */
  readonly time: string;
  /** Anomaly score; 0 means identical to the reconstruction. */
  readonly score?: number;
  /** Threshold of the image's class, else the global one. Only with a calibrated bundle. */
  readonly threshold?: number;
  /** Whether score > threshold. Only with a calibrated bundle. */
  readonly anomalous?: boolean;
  /** Score on a scale of 0 to 1 with 0.5 at the threshold. Only with a calibrated bundle. */
  readonly normalizedScore?: number;
  readonly error?: { readonly code: string; readonly message: string };
}
