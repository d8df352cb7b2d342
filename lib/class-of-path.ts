// Which kind of part an image shows, by the folders it lies in.
import path from 'node:path';

/**
 * The folder nearest to a file that is a class with thresholds of its own.
 *
 * @param file - absolute, or relative to the working directory
 * @param classes - names of such classes: `calibratedClasses` of a loaded bundle
 * @returns undefined when no folder of the path is one: the global thresholds hold
 */
export function classOfPath(file: string, classes: readonly string[]): string | undefined {
  return path
    .resolve(file)
    .split(path.sep)
    .slice(0, -1)
    .reverse()
    .find((part) => classes.includes(part));
}
