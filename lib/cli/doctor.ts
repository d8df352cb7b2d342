// diad doctor: reports the environment, problems, and how to fix them.
import process from 'node:process';
import { examine, type Report } from '../doctor/report.js';

interface DoctorOptions {
  readonly model?: string;
  readonly device: string;
  readonly json?: boolean;
  /** Seconds. */
  readonly timeout: number;
}

function asText(report: Report): string {
  const lines: [string, string][] = [
    ['diad', `${report.diad} on Node ${report.node}, ${report.platform}, ${report.libc}`],
    ['machine', `${report.cpu}, ${report.cores} cores, ${report.memoryGiB} GiB`],
  ];
  if (report.memoryLimitGiB !== undefined)
    lines.push(['limit', `${report.memoryLimitGiB} GiB for this container`]);
  lines.push(
    ['CPU has', report.cpuFeatures.join(' ') || 'not known'],
    ['driver', report.nvidiaDriver ?? 'no NVIDIA driver'],
  );
  for (const [name, value] of Object.entries(report.environment)) lines.push(['set', `${name}=${value}`]);
  lines.push(['addon', report.addon ?? 'not found']);
  lines.push(['engines', report.engines?.map((minor) => `LibTorch ${minor}`).join(', ') ?? 'none']);
  for (const { source, reason } of report.tried) lines.push(['tried', `${source}: ${reason}`]);
  if (report.libtorch !== undefined) {
    const { version, variant, path, source } = report.libtorch;
    lines.push(['LibTorch', `${version} (variant ${variant}), ${path}`], ['found as', source]);
  }
  if (report.devices !== undefined) {
    lines.push(['devices', report.devices.join(', ')]);
    lines.push(['computes', `${report.cpuCapability ?? '?'}, ${report.threads ?? '?'} threads`]);
  }
  if (report.bundle !== undefined) {
    const { name, path, digest, imageSize, steps } = report.bundle;
    lines.push(
      ['bundle', `${name}, ${imageSize} x ${imageSize}, ${steps} steps, intact (${path})`],
      ['digest', digest],
    );
  }
  if (report.score !== undefined) {
    lines.push([
      'score',
      `${report.score.value.toFixed(6)} of the built-in image, in ${report.score.milliseconds.toFixed(0)} ms`,
    ]);
  }
  if (report.golden !== undefined) {
    const { against, relativeDifference, tolerance } = report.golden;
    const other =
      against === 'bundle' ? "the reference's golden results in the bundle" : 'another process on the CPU';
    lines.push(['golden', `${relativeDifference.toExponential(1)} from ${other} (at most ${tolerance})`]);
  }
  if (report.problem === undefined) lines.push(['verdict', 'images can be scored']);
  else {
    lines.push(
      ['problem', `${report.problem.code}: ${report.problem.message}`],
      ['cause', report.problem.cause],
    );
    for (const step of report.problem.help) lines.push(['try', step]);
  }
  return lines.map(([name, value]) => `${name.padEnd(9)} ${value}`).join('\n');
}

/** Prints the report. Sets exit code 1 when images cannot be scored. */
export async function doctor({ model, device, json, timeout }: DoctorOptions): Promise<void> {
  const report = await examine({ bundle: model, device, timeoutMs: timeout * 1000 });
  process.stdout.write(`${json === true ? JSON.stringify(report, null, 2) : asText(report)}\n`);
  if (!report.ok) process.exitCode = 1;
}
