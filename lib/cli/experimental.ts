// Options of commands that score: experimental changes of the published system.
import { Option, type Command } from 'commander';
import type { ExperimentalOptions } from '../experimental.js';
import { wholeNumber } from './numbers.js';

const GROUP = 'Experimental, off by default (docs/modes.md):';

/** Adds the options to a command; what commander hands over is then an {@link ExperimentalOptions} among the rest. */
export function withExperimentalOptions(command: Command): Command {
  const options = [
    new Option('--steps <n>', "denoising steps (default: all of the model's timesteps)").argParser(wholeNumber),
    new Option('--start-timestep <t>', "one of the model's timesteps (default: noise of 999, then the highest)").argParser(wholeNumber),
    new Option('--start-noise <noise>', 'of the latent that denoising starts with (default: gaussian)').choices(['gaussian', 'none']),
    new Option('--compare-with <picture>', 'what the reconstruction is compared with (default: input)').choices(['input', 'autoencoder']),
  ];
  for (const option of options) command.addOption(option.helpGroup(GROUP));
  return command;
}

/** The experimental ones of a command's options. */
export function experimentalOf(options: ExperimentalOptions): ExperimentalOptions {
  const { steps, startTimestep, startNoise, compareWith } = options;
  return Object.fromEntries(Object.entries({ steps, startTimestep, startNoise, compareWith }).filter(([, value]) => value !== undefined));
}
