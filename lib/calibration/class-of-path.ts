// Derives the class of an image from the folders of its path.
import path from 'node:path';

/**
 * Returns the nearest parent folder that is the name of a calibrated class.
 *
 * @param file - absolute, or relative to the working directory
 * @param classes - class names: `calibratedClasses` of a loaded bundle
 * @returns undefined when no folder matches; the global thresholds then apply
 */
export function classOfPath(file: string, classes: readonly string[]): string | undefined {
  return path
    .resolve(file)
    .split(path.sep)
    .slice(0, -1)
    .reverse()
    .find((part) => classes.includes(part));
}
