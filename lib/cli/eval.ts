// diad eval: evaluates a model on a data set; writes tables and a report.
import path from 'node:path';
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { evaluateDataSet, type EvaluationProgress } from '../evaluation/evaluate.js';
import { readDataSet, type LayoutName } from '../evaluation/datasets/index.js';
import type { MetricsMode } from '../evaluation/metrics.js';
import { writeReport } from '../evaluation/report/index.js';
import { loadModel, type ModelOptions } from './inputs.js';
import { metricsTable } from './metrics.js';

interface Options extends ModelOptions {
  readonly data: string;
  readonly layout?: LayoutName;
  readonly out: string;
  readonly resume?: boolean;
  readonly metricsMode: MetricsMode;
  readonly seed: number;
}

/** Shows a progress bar on a terminal; elsewhere prints one line per tenth of the images. */
function progressShown(): {
  readonly show: (progress: EvaluationProgress) => void;
  readonly stop: () => void;
} {
  const bar = new SingleBar({
    format: '{bar} {value}/{total} | {eta_formatted} left',
    stream: process.stderr,
    clearOnComplete: true,
  });
  let started = false;
  let tenth = 0;
  const stop = (): void => {
    if (started) bar.stop();
    started = false;
  };
  const show = ({ stage, done, total, resumed }: EvaluationProgress): void => {
    if (stage !== 'scoring') {
      stop();
    } else if (process.stderr.isTTY) {
      if (!started) bar.start(total, done);
      else bar.update(done);
      started = true;
    } else if (done === resumed || Math.floor((10 * done) / total) > tenth) {
      tenth = Math.floor((10 * done) / total);
      process.stderr.write(
        `diad: ${done} of ${total} images${resumed > 0 ? `, ${resumed} of them resumed` : ''}\n`,
      );
    }
  };
  return { show, stop };
}

/**
 * Evaluates, prints the table and the path of the report. Sets exit code 1 when an image could not be scored.
 */
export async function evaluate(options: Options): Promise<void> {
  const data = await readDataSet(options.data, options.layout);
  const diad = await loadModel(options);
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort();
  };
  process.once('SIGINT', stop);
  const progress = progressShown();
  try {
    const evaluation = await evaluateDataSet(diad, data, {
      out: options.out,
      resume: options.resume ?? false,
      mode: options.metricsMode,
      seed: options.seed,
      signal: interrupted.signal,
      onProgress: progress.show,
    });
    try {
      const report = await writeReport(evaluation, diad);
      const rows = Object.entries(evaluation.classes).map(([name, { metrics }]) => [name, metrics] as const);
      process.stdout.write(
        `${metricsTable([...rows, ['mean', evaluation.mean]])}\n\n${path.relative(process.cwd(), report)}\n`,
      );
      for (const { file, message } of evaluation.failed) process.stderr.write(`diad: ${file}: ${message}\n`);
      if (evaluation.failed.length > 0) process.exitCode = 1;
    } finally {
      await evaluation.scores.close();
    }
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    process.stderr.write('diad: interrupted; resume with --resume\n');
    process.exitCode = 130;
  } finally {
    progress.stop();
    process.removeListener('SIGINT', stop);
    await diad.close();
  }
}
