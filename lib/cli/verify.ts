// diad verify: compares results with those of the reference.
import process from 'node:process';
import type { Precision } from '../scoring/options.js';
import { verifyBundle, type VerifyReport } from '../verify/verify.js';

interface Options {
  readonly bundle?: string;
  readonly model?: string;
  readonly device: string;
  readonly precision: Precision;
  readonly threads?: number;
  readonly json?: boolean;
}

function asText(report: VerifyReport): string {
  const rows = report.stages.map(({ stage, maxAbsolute, maxRelative, tolerance, passed }) => {
    const allowed = tolerance === undefined ? '-' : `${tolerance}${stage === 'score' ? ' relative' : ''}`;
    const verdict = tolerance === undefined ? '' : passed ? 'pass' : 'FAIL';
    return [stage, maxAbsolute.toExponential(2), maxRelative.toExponential(2), allowed, verdict];
  });
  const table = [['stage', 'max abs', 'max rel', 'allowed', ''], ...rows];
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  const lines = table.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
  const where = `${report.bundle} on ${report.device}, ${report.precision}, LibTorch ${report.libtorch}`;
  return [where, '', ...lines, '', `${report.images} golden images: ${report.passed ? 'pass' : 'FAIL'}`].join(
    '\n',
  );
}

/** Prints the differences from the reference results. Sets exit code 1 when one exceeds its tolerance. */
export async function verify(options: Options): Promise<void> {
  const { model, bundle = model, device, precision, threads, json } = options;
  const report = await verifyBundle(bundle, {
    device,
    precision,
    ...(threads === undefined || threads === 0 ? {} : { threads }),
  });
  process.stdout.write(`${json === true ? JSON.stringify(report, null, 2) : asText(report)}\n`);
  if (!report.passed) process.exitCode = 1;
}
