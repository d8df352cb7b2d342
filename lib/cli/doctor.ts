// diad doctor: what is there, what is missing, what to do.
import os from 'node:os';
import process from 'node:process';
import { codeOf } from '../errors.js';
import type { Miss } from '../libtorch/search.js';
import { addonPath, engines, openNative } from '../native.js';

interface Report {
  readonly node: string;
  readonly platform: string;
  readonly libc: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly addon?: string;
  readonly engines?: readonly string[];
  readonly libtorch?: { readonly version: string; readonly path: string; readonly source: string };
  readonly tried: readonly Miss[];
  readonly cpuCapability?: string;
  readonly threads?: number;
  readonly devices?: readonly string[];
  readonly problem?: { readonly code: string; readonly message: string };
}

function libc(): string {
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime === undefined ? 'not glibc' : `glibc ${header.glibcVersionRuntime}`;
}

async function examine(): Promise<Report> {
  const machine = {
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    libc: libc(),
    cores: os.availableParallelism(),
    memoryGiB: Math.round((os.totalmem() / 2 ** 30) * 10) / 10,
  };
  const tried: Miss[] = [];
  let found: Partial<Report> = {};
  try {
    const addon = addonPath();
    found = { addon, engines: [...engines(addon).keys()] };
    const { libtorch, version } = await openNative(undefined, tried);
    return {
      ...machine,
      ...found,
      libtorch: { version: libtorch.version, path: libtorch.libFolder, source: libtorch.source },
      tried,
      cpuCapability: version.cpuCapability,
      threads: version.threads,
      devices: ['cpu', ...version.cudaDevices],
    };
  } catch (error) {
    const problem = { code: codeOf(error) ?? 'ERR_DIAD_INTERNAL', message: error instanceof Error ? error.message : String(error) };
    return { ...machine, ...found, tried, problem };
  }
}

function asText(report: Report): string {
  const lines: [string, string][] = [
    ['Node', `${report.node} on ${report.platform}, ${report.libc}`],
    ['machine', `${report.cores} cores, ${report.memoryGiB} GiB`],
    ['addon', report.addon ?? 'not found'],
    ['engines', report.engines === undefined ? 'none' : report.engines.map((minor) => `LibTorch ${minor}`).join(', ') || 'none'],
  ];
  if (report.libtorch !== undefined) {
    lines.push(['LibTorch', `${report.libtorch.version} (${report.libtorch.path})`], ['found as', report.libtorch.source]);
  }
  for (const { source, reason } of report.tried) lines.push(['tried', `${source}: ${reason}`]);
  if (report.devices !== undefined) {
    lines.push(
      ['devices', report.devices.join(', ')],
      ['CPU', `${report.cpuCapability ?? '?'}, ${report.threads ?? '?'} threads by default`],
    );
  }
  if (report.problem !== undefined) lines.push(['problem', `${report.problem.code}: ${report.problem.message}`]);
  return lines.map(([name, value]) => `${name.padEnd(9)} ${value}`).join('\n');
}

/** Prints the report; exit code 1 when pictures cannot be scored. */
export async function doctor(options: { readonly json?: boolean }): Promise<void> {
  const report = await examine();
  process.stdout.write(`${options.json === true ? JSON.stringify(report, null, 2) : asText(report)}\n`);
  if (report.problem !== undefined) process.exitCode = 1;
}
