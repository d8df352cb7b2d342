// Describes a loaded bundle, its device and its LibTorch.
import { isOfTiles, type Calibration } from '../calibration/calibration.js';
import type { Native } from '../native/addon.js';

/**
 * Parameters of a bundle that combines two kinds of evidence, reconstruction and memory
 * (docs/design/evidence.md).
 */
export interface BundleEvidence {
  /** Length of a feature vector. */
  readonly dimensions: number;
  /** Feature vectors per image: grid x grid. */
  readonly grid: number;
  /** Most feature vectors of normal images kept per class. */
  readonly memoryVectors: number;
  /** Weights of the two normalized maps. */
  readonly weights: { readonly reconstruction: number; readonly memory: number };
  /** Of classes with weights of their own. */
  readonly classWeights?: Readonly<
    Record<string, { readonly reconstruction: number; readonly memory: number }>
  >;
}

/** Bundle, device and LibTorch of a Diad. */
export interface DiadInfo {
  readonly bundle: {
    readonly path: string;
    readonly name: string;
    readonly description: string;
    /** Classes of the training data. */
    readonly classes: readonly string[];
    /** Identifies the model: SHA-256 of its manifest. */
    readonly digest: string;
    /** Total size of all files, bytes. */
    readonly sizeBytes: number;
    /** Side of the model's input image and map, pixels. */
    readonly imageSize: number;
    /** Number of denoising steps. */
    readonly steps: number;
    /** Timesteps of the denoiser, noisiest first. */
    readonly timesteps: readonly number[];
    /** Absent if the bundle computes the published map. Takes effect once the bundle is calibrated. */
    readonly evidence?: BundleEvidence;
    /** Image threshold of the calibration, if any. */
    readonly threshold?: number;
    /** Pixel threshold of the calibration, if any: map values above it belong to a defect. */
    readonly pixelThreshold?: number;
    /** Tiling of the calibration images, pixels. The thresholds apply only to this tiling. */
    readonly calibratedTile?: { readonly size: number; readonly overlap: number };
    /** Classes with their own thresholds. */
    readonly calibratedClasses: readonly string[];
  };
  readonly device: string;
  readonly precision: string;
  readonly threads: number;
  /** Most images in flight; further ones are rejected with ERR_DIAD_QUEUE_FULL. */
  readonly queueLimit: number;
  readonly libtorch: { readonly version: string; readonly path: string; readonly source: string };
  /** Version of the engine library. */
  readonly engine: string;
  /** Load time including warm-up, milliseconds. */
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

/** Combines the engine's description (JSON) with calibration and LibTorch. */
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
