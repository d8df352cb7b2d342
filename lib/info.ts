// What a loaded Diad says about itself.
import { isOfTiles, type Calibration } from './calibration.js';
import type { Native } from './native.js';

/** How a bundle judges an image by two kinds of evidence, reconstruction and memory (docs/evidence.md). */
export interface BundleEvidence {
  /** Numbers in a feature vector. */
  readonly dimensions: number;
  /** An image has grid x grid feature vectors. */
  readonly grid: number;
  /** Feature vectors of normal images that a class keeps at most. */
  readonly memoryVectors: number;
  /** Of the two normalized maps in the map. */
  readonly weights: { readonly reconstruction: number; readonly memory: number };
  /** Of classes with weights of their own. */
  readonly classWeights?: Readonly<
    Record<string, { readonly reconstruction: number; readonly memory: number }>
  >;
}

/** The bundle, the device and LibTorch behind a Diad. */
export interface DiadInfo {
  readonly bundle: {
    readonly path: string;
    readonly name: string;
    readonly description: string;
    /** What it was trained on. */
    readonly classes: readonly string[];
    /** Identifies the model: sha256 of its manifest. */
    readonly digest: string;
    /** Bytes of all files. */
    readonly sizeBytes: number;
    /** Side of the model's image and map, pixels. */
    readonly imageSize: number;
    /** Denoising steps. */
    readonly steps: number;
    /** At which the denoiser is evaluated, from the noisiest on. */
    readonly timesteps: readonly number[];
    /** Absent where the map is the published one. It takes effect once the bundle is calibrated. */
    readonly evidence?: BundleEvidence;
    /** Of the calibration, when there is one. */
    readonly threshold?: number;
    /** Of a calibration that looked at maps: map values above it belong to a defect. */
    readonly pixelThreshold?: number;
    /** Of a calibration on images that were cut into tiles, pixels: its thresholds hold for images that are cut like that alone. */
    readonly calibratedTile?: { readonly size: number; readonly overlap: number };
    /** Classes with thresholds of their own. */
    readonly calibratedClasses: readonly string[];
  };
  readonly device: string;
  readonly precision: string;
  readonly threads: number;
  /** Images in flight at most; further ones are refused with ERR_DIAD_QUEUE_FULL. */
  readonly queueLimit: number;
  readonly libtorch: { readonly version: string; readonly path: string; readonly source: string };
  /** Version of the engine library. */
  readonly engine: string;
  /** Milliseconds that loading took, warm-up included. */
  readonly loadMs: number;
}

interface EngineInfo {
  readonly manifest: {
    readonly name: string;
    readonly description?: string;
    readonly classes?: readonly string[];
    readonly image: { readonly size: number };
    readonly schedule: { readonly steps: readonly { readonly timestep: number }[] };
    readonly evidence?: BundleEvidence;
  };
  readonly manifestSha256: string;
  readonly device: string;
  readonly precision: string;
  readonly threads: number;
  readonly loadMs: number;
  readonly sizeBytes: number;
}

/** Puts the engine's own description (JSON) and the surroundings together. */
export function describeBundle(
  path: string,
  engineInfo: string,
  native: Native,
  { calibration, queueLimit }: { readonly calibration: Calibration | undefined; readonly queueLimit: number },
): DiadInfo {
  const { manifest, manifestSha256, device, precision, threads, loadMs, sizeBytes } = JSON.parse(
    engineInfo,
  ) as EngineInfo;
  return {
    bundle: {
      path,
      name: manifest.name,
      description: manifest.description ?? '',
      classes: manifest.classes ?? [],
      digest: manifestSha256,
      sizeBytes,
      imageSize: manifest.image.size,
      steps: manifest.schedule.steps.length,
      timesteps: manifest.schedule.steps.map(({ timestep }) => timestep),
      ...(manifest.evidence === undefined ? {} : { evidence: manifest.evidence }),
      ...(calibration === undefined ? {} : { threshold: calibration.threshold }),
      ...(calibration?.pixelThreshold === undefined ? {} : { pixelThreshold: calibration.pixelThreshold }),
      ...(calibration?.tile === undefined || isOfTiles(calibration, undefined)
        ? {}
        : { calibratedTile: calibration.tile }),
      calibratedClasses: Object.keys(calibration?.classes ?? {}),
    },
    device,
    precision,
    threads,
    queueLimit,
    libtorch: {
      version: native.libtorch.version,
      path: native.libtorch.libFolder,
      source: native.libtorch.source,
    },
    engine: native.version.engine,
    loadMs,
  };
}
