// diad libtorch: installs, lists and removes LibTorch versions in the cache.
import process from 'node:process';
import { SingleBar } from 'cli-progress';
import { Command, Option } from 'commander';
import { DiadError } from '../errors.js';
import { damagedFiles, listInstalled, listPartial, removeFolder } from '../native/libtorch/cache.js';
import { installLibTorch } from '../native/libtorch/install.js';
import { libtorchCache } from '../native/libtorch/platform.js';
import { preferredVersion } from '../native/libtorch/supported.js';

interface InstallCommand {
  readonly variant: 'cpu' | 'cuda';
  readonly version?: string;
  readonly python?: string;
  readonly indexUrl?: string;
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

async function install({
  variant,
  version = preferredVersion(),
  python,
  indexUrl,
}: InstallCommand): Promise<void> {
  const interrupted = new AbortController();
  const stop = (): void => {
    interrupted.abort(
      new DiadError('ERR_DIAD_LIBTORCH_NOT_FOUND', 'Interrupted; run the same command again to resume'),
    );
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);
  const bar = new SingleBar({
    format: 'unpacking {bar} {percentage} %',
    stream: process.stderr,
    clearOnComplete: true,
    noTTYOutput: false,
  });
  let total = 0;
  try {
    const { installed, already } = await installLibTorch({
      version,
      variant,
      python,
      indexUrl,
      signal: interrupted.signal,
      onMessage: (message) => process.stderr.write(message),
      onProgress: (bytes, all) => {
        if (!process.stderr.isTTY) return;
        if (total === 0) bar.start(all, 0);
        total = all;
        bar.update(bytes);
      },
    });
    const { manifest, folder, sizeBytes } = installed;
    const note = already ? ', already installed' : '';
    process.stdout.write(`LibTorch ${manifest.version}, ${mebibytes(sizeBytes)}${note}: ${folder}\n`);
  } finally {
    if (total > 0) bar.stop();
    process.removeListener('SIGINT', stop).removeListener('SIGTERM', stop);
  }
}

async function list({
  json = false,
  verify = false,
}: {
  readonly json?: boolean;
  readonly verify?: boolean;
}): Promise<void> {
  const rows = [];
  for (const installed of await listInstalled()) {
    const { folder, manifest, sizeBytes } = installed;
    const damaged = verify ? await damagedFiles(installed) : undefined;
    rows.push({
      version: manifest.version,
      variant: manifest.variant,
      path: folder,
      sizeBytes,
      ...(damaged === undefined ? {} : { damaged }),
    });
  }
  const partial = await listPartial();
  if (rows.some(({ damaged = [] }) => damaged.length > 0)) process.exitCode = 1;
  if (json) {
    process.stdout.write(
      `${JSON.stringify({ cache: libtorchCache(), installed: rows, partial }, null, 2)}\n`,
    );
    return;
  }
  for (const { version, sizeBytes, path, damaged } of rows) {
    const state =
      damaged === undefined ? '' : damaged.length === 0 ? '  intact' : `  damaged: ${damaged.join(', ')}`;
    process.stdout.write(`${version.padEnd(14)} ${mebibytes(sizeBytes).padStart(9)}  ${path}${state}\n`);
  }
  for (const folder of partial) process.stdout.write(`unfinished                ${folder}\n`);
  if (rows.length + partial.length === 0) process.stdout.write(`${libtorchCache()} is empty\n`);
}

async function remove(
  version: string | undefined,
  { all = false }: { readonly all?: boolean },
): Promise<void> {
  if ((version === undefined) !== all)
    throw new DiadError('ERR_DIAD_INVALID_ARGUMENT', 'Expected either a version or --all');
  const installed = await listInstalled();
  const chosen = installed.filter(
    ({ manifest }) => all || manifest.version === version || manifest.version.split('+')[0] === version,
  );
  const folders = [...chosen.map(({ folder }) => folder), ...(all ? await listPartial() : [])];
  if (folders.length === 0 && !all) {
    const there = installed.map(({ manifest }) => manifest.version).join(', ') || 'none';
    throw new DiadError(
      'ERR_DIAD_INVALID_ARGUMENT',
      `Expected an installed version but received ${version ?? ''}; installed: ${there}`,
    );
  }
  for (const folder of folders) {
    await removeFolder(folder);
    process.stdout.write(`removed ${folder}\n`);
  }
}

/** Creates the `diad libtorch` command with its subcommands. */
export function libtorchCommand(): Command {
  const command = new Command('libtorch').description("LibTorch in diad's cache");
  command
    .command('install')
    .description('fetch the PyTorch wheel with pip and unpack its libraries; resumes an interrupted download')
    .addOption(new Option('--variant <variant>', 'cpu or cuda build').choices(['cpu', 'cuda']).default('cpu'))
    .option('--version <version>', 'LibTorch version (default: the newest supported)')
    .option('--python <file>', 'Python whose pip downloads (default: DIAD_PYTHON, ./.venv, python3)')
    .option('--index-url <url>', "passed to pip (default: pip's configuration)")
    .action(install);
  command
    .command('list')
    .description('list the cache')
    .option('--verify', 'check every hash')
    .option('--json', 'print JSON')
    .action(list);
  command
    .command('remove')
    .description('remove one version, or everything including unfinished installs')
    .argument('[version]', 'as listed, with or without the "+" suffix')
    .option('--all', 'remove everything')
    .action(remove);
  return command;
}
