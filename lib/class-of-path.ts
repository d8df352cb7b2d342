// Which class a picture belongs to, by where it lies.
import path from 'node:path';

/**
 * The folder nearest to a file that is a class with thresholds of its own.
 *
 * @param file - relative to the working directory, or absolute
 * @param classes - names of the classes, `diad.info.bundle.calibratedClasses`
 */
export function classOfPath(file: string, classes: readonly string[]): string | undefined {
  return path
    .resolve(file)
    .split(path.sep)
    .slice(0, -1)
    .reverse()
    .find((part) => classes.includes(part));
}
