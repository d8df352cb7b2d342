// Experimental options of a call: what is changed of the published system.
import type { NativeExperimental } from './native.js';
import { integer, oneOf, optionsObject } from './validate.js';

/**
 * Changes of the published system that change the result; every default is the published one. docs/modes.md has what each of them costs and
 * brings on the demo model. A result computed with any of them carries no threshold: the bundle's are of the published system.
 */
export interface ExperimentalOptions {
  /** Evaluations of the denoiser, spread evenly over the model's timesteps from the start on. Default: all of them. */
  readonly steps?: number;
  /**
   * One of the model's timesteps (`diad.info.bundle.timesteps`): noise is put on there, and the denoiser is first evaluated there. The lower, the
   * more of the picture is kept. Default: noise of T = 999, first evaluation at the highest.
   */
  readonly startTimestep?: number;
  /** 'none': the start is the latent without noise, scaled by the square root of alpha_bar. Default 'gaussian'. */
  readonly startNoise?: 'gaussian' | 'none';
  /**
   * What the reconstruction's features are compared with: those of the picture (default), or those of the autoencoder's own reconstruction of it,
   * which takes the autoencoder's error out of the map.
   */
  readonly compareWith?: 'input' | 'autoencoder';
}

const KEYS = ['steps', 'startTimestep', 'startNoise', 'compareWith'] as const;

/** The published system. */
export const AS_PUBLISHED: NativeExperimental = {
  steps: 0,
  startTimestep: -1,
  startNoise: 'gaussian',
  compareWith: 'input',
};

/**
 * Checks options and fills in the defaults; whether the model has the timestep and that many steps, the engine checks.
 *
 * @throws DiadError ERR_DIAD_INVALID_ARGUMENT that names the option
 */
export function validateExperimental(options: ExperimentalOptions | undefined): NativeExperimental {
  const given: Partial<ExperimentalOptions> = optionsObject(options, 'experimental', KEYS);
  return {
    steps: integer(given.steps, 'experimental.steps', 1, 1000, AS_PUBLISHED.steps),
    startTimestep: integer(given.startTimestep, 'experimental.startTimestep', 0, 2 ** 20, AS_PUBLISHED.startTimestep),
    startNoise: oneOf(given.startNoise, 'experimental.startNoise', ['gaussian', 'none'], 'gaussian'),
    compareWith: oneOf(given.compareWith, 'experimental.compareWith', ['input', 'autoencoder'], 'input'),
  };
}

/** Only what differs from the published system, for records of a run; undefined when nothing does. */
export function changesOf(experimental: NativeExperimental): Partial<NativeExperimental> | undefined {
  const changed = Object.entries(experimental).filter(([name, value]) => value !== AS_PUBLISHED[name as keyof NativeExperimental]);
  return changed.length === 0 ? undefined : Object.fromEntries(changed);
}
