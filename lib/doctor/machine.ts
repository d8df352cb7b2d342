// Properties of the machine that affect whether and how fast diad runs.
import { readFileSync } from 'node:fs';
import os from 'node:os';
import process from 'node:process';

/** Machine section of the doctor's report. */
export interface Machine {
  /** Version of Node. */
  readonly node: string;
  /** Newest Node-API version of this Node; the addon needs 9. */
  readonly nodeApi: number;
  /** For example "linux-x64". */
  readonly platform: string;
  /** "glibc 2.36", or "not glibc". */
  readonly libc: string;
  readonly cpu: string;
  /** Instruction sets of the CPU that LibTorch can use. */
  readonly cpuFeatures: readonly string[];
  /** Cores available to this process. */
  readonly cores: number;
  readonly memoryGiB: number;
  /** Memory limit of the control group (container), if any. */
  readonly memoryLimitGiB?: number;
  /** Version of the NVIDIA driver; null if none was found. */
  readonly nvidiaDriver: string | null;
}

const FEATURES = [
  'sse4_2',
  'avx',
  'avx2',
  'fma',
  'f16c',
  'avx512f',
  'avx512_vnni',
  'avx512_bf16',
  'avx512_fp16',
  'amx_tile',
  'asimd',
  'sve',
];

const gibibytes = (bytes: number): number => Math.round((bytes / 2 ** 30) * 10) / 10;

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return ''; // not Linux, or not readable: unknown
  }
}

function libc(): string {
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime === undefined ? 'not glibc' : `glibc ${header.glibcVersionRuntime}`;
}

function cpuFeatures(): readonly string[] {
  const flags = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(read('/proc/cpuinfo'))?.[1]?.split(' ') ?? [];
  return FEATURES.filter((feature) => flags.includes(feature));
}

function memoryLimit(): number | undefined {
  const limit = Number(
    read('/sys/fs/cgroup/memory.max').trim() || read('/sys/fs/cgroup/memory/memory.limit_in_bytes').trim(),
  );
  return Number.isFinite(limit) && limit > 0 && limit < os.totalmem() ? gibibytes(limit) : undefined;
}

/** Describes the machine. Never throws. */
export function describeMachine(): Machine {
  const limit = memoryLimit();
  return {
    node: process.versions.node,
    nodeApi: Number(process.versions['napi'] ?? 0),
    platform: `${process.platform}-${process.arch}`,
    libc: process.platform === 'linux' ? libc() : 'not glibc',
    cpu: os.cpus()[0]?.model ?? 'unknown',
    cpuFeatures: cpuFeatures(),
    cores: os.availableParallelism(),
    memoryGiB: gibibytes(os.totalmem()),
    ...(limit === undefined ? {} : { memoryLimitGiB: limit }),
    nvidiaDriver:
      /Kernel Module(?:\s+for\s+\S+)?\s+([\d.]+)/.exec(read('/proc/driver/nvidia/version'))?.[1] ?? null,
  };
}
