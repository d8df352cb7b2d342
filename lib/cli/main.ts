#!/usr/bin/env node
// The `diad` command line.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { Command, Option } from 'commander';
import { LAYOUT_NAMES } from '../evaluation/datasets/index.js';
import { METRICS_MODES } from '../evaluation/metrics.js';
import { packageRoot } from '../native/addon.js';
import { PRECISIONS } from '../scoring/options.js';
import { calibrateBundle } from './calibrate.js';
import { doctor } from './doctor.js';
import { evaluate } from './eval.js';
import { info } from './info.js';
import { libtorchCommand } from './libtorch.js';
import { metrics } from './metrics.js';
import { positive, rate, wholeNumber } from './numbers.js';
import { results, submit, worker } from './queue.js';
import { reconstruct } from './reconstruct.js';
import { runReference } from './reference.js';
import { score } from './score.js';
import { verify } from './verify.js';
import { serve } from './serve.js';
import { train } from './train.js';
import { watch } from './watch.js';

const { version } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
  version: string;
};

function precisionOption(): Option {
  return new Option('--precision <precision>', 'precision of the networks')
    .choices(PRECISIONS)
    .default('float32');
}

function withModelOptions(command: Command): Command {
  return command
    .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
    .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
    .addOption(precisionOption())
    .option('--threads <n>', 'CPU threads per operation', wholeNumber)
    .option(
      '--max-pixels <n>',
      'largest image, width x height (default: 100,000,000; for serve: 32,000,000)',
      wholeNumber,
    )
    .option(
      '--max-frames <n>',
      'most pages or frames an image can have; only the first is read (default: 1)',
      wholeNumber,
    );
}

const program = new Command('diad')
  .description('Visual anomaly detection with DiAD')
  .version(version)
  .showHelpAfterError()
  .enablePositionalOptions(); // otherwise --version of subcommands would be parsed as this one

withModelOptions(program.command('score'))
  .description('score images')
  .argument('<inputs...>', 'files, folders or globs')
  .option('--out <dir>', 'write a heat map per image to this folder')
  .option('--json', 'print one JSON object per image')
  .option('--csv <file>', 'write the results as CSV')
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .option('--class <name>', 'class whose thresholds to use (default: a calibrated folder name in the path)')
  .option('--tile <pixels>', 'cut images into tiles of this size that overlap by a quarter', wholeNumber)
  .addOption(
    new Option('--dump <dir>', 'write every stage as NNN.<stage>.npy; NNN is the index of the input'),
  )
  .action(score);

withModelOptions(program.command('reconstruct'))
  .description('reconstruct images without defects')
  .argument('<inputs...>', 'files, folders or globs')
  .requiredOption('--out <dir>', 'folder of the PNG files')
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .action(reconstruct);

withModelOptions(program.command('info'))
  .description('describe a bundle and its runtime')
  .option('--json', 'print JSON')
  .action(info);

program
  .command('doctor')
  .description('check this machine and whether it can score images')
  .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
  .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
  .option('--timeout <seconds>', 'time limit of one probe', wholeNumber, 180)
  .option('--json', 'print JSON')
  .action(doctor);
program.addCommand(libtorchCommand());

program
  .command('metrics')
  .description('compute metrics of saved anomaly maps from any tool')
  .argument(
    '<file>',
    '.npz with preds and masks [N,H,W], clsname [N] and, optionally, image_scores and image_labels [N]',
  )
  .addOption(new Option('--mode <mode>', 'metric definitions').choices(METRICS_MODES).default('exact'))
  .option('--fpr-limit <rate>', 'false positive rate up to which AU-PRO is integrated', rate, 0.3)
  .option('--json', 'print JSON')
  .action(metrics);

withModelOptions(program.command('eval'))
  .description('evaluate on a data set; write tables and a report')
  .requiredOption('--data <dir>', 'data set, or one class of it')
  .addOption(
    new Option('--layout <layout>', 'layout of the data set (default: detected)').choices(LAYOUT_NAMES),
  )
  .option('--out <dir>', 'folder for scores, tables and report', 'diad-eval')
  .option('--resume', 'resume an interrupted run')
  .addOption(
    new Option('--metrics-mode <mode>', 'metric definitions').choices(METRICS_MODES).default('exact'),
  )
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .action(evaluate);

withModelOptions(program.command('calibrate'))
  .description('compute statistics and thresholds from normal images and write them into the bundle')
  .requiredOption(
    '--good <dir>',
    'normal images: a folder, folders by class, or a data set with CLASS/train/good',
  )
  .option('--out <dir>', 'calibrate a copy of the bundle in this new folder (default: the bundle itself)')
  .option(
    '--target-fpr <rate>',
    'target false positive rate (default: 0.01; with evidence, the lowest rate the images support)',
    rate,
  )
  .option('--per-class', 'thresholds for each class in addition to the global ones (default with evidence)')
  .option('--no-per-class', 'one threshold for all images')
  .option(
    '--validation <dir>',
    'data set with defects: set the image threshold at the maximum F1; not with evidence',
  )
  .option(
    '--test <dir>',
    'test data set for later evaluation: fail if it shares an image with the calibration data',
  )
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .option('--tile <pixels>', 'cut images into tiles of this size that overlap by a quarter', wholeNumber)
  .action(calibrateBundle);

program
  .command('verify')
  .description('compare each stage with the reference results in the bundle')
  .option('--bundle <dir>', 'bundle folder (default: the base model that ships with diad)')
  .addOption(new Option('--model <dir>', 'alias of --bundle').conflicts('bundle'))
  .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
  .addOption(precisionOption())
  .option('--threads <n>', 'CPU threads per operation', wholeNumber)
  .option('--json', 'print JSON')
  .action(verify);

program
  .command('convert')
  .description(
    'convert a checkpoint in the published format to a bundle (needs Python with PyTorch; see ' +
      '`diad convert --help`)',
  )
  .argument('[options...]')
  .allowUnknownOption()
  .helpOption(false)
  .action(async (args: string[]) => {
    await runReference('convert', args);
  });

program
  .command('train')
  .description('train a model on a folder of normal images within a time budget (needs Python with PyTorch)')
  .argument('[others...]')
  .usage('--data <dir> --out <dir> [options]')
  .option(
    '--data <dir>',
    'normal images: a folder, a folder for each class, or a data set with CLASS/train/good',
  )
  .option('--out <dir>', 'folder of the bundle to write')
  .option('--base <dir>', 'bundle to start from (default: the base model that ships with diad)')
  .option('--minutes <n>', 'time budget, calibration included', positive, 20)
  .option('--run <dir>', 'folder of checkpoints and the contact sheet (default: OUT.training)')
  .option('--name <name>', 'name of the model (default: the name of the folder)')
  .option('--batch <n>', 'images per step (default: 16)', wholeNumber)
  .option('--learning-rate <rate>', 'peak learning rate of the schedule (default: 0.001)', positive)
  .option('--seed <n>', 'seed of all random choices', wholeNumber, 0)
  .option('--device <device>', 'cpu or cuda', 'cpu')
  .option('--threads <n>', 'CPU threads per operation', wholeNumber)
  .option('--json', 'print progress and result as JSON lines')
  .allowUnknownOption() // options of earlier versions: the action explains their replacement
  .allowExcessArguments()
  .action(train);

withModelOptions(program.command('serve'))
  .description('run the HTTP server, with a web page at /')
  .option('--host <address>', 'address to listen on; a non-loopback address requires tokens', '127.0.0.1')
  .option('--port <n>', 'port to listen on, 0 for a free one', wholeNumber, 8080)
  .option('--token-file <file>', 'accepted bearer tokens, one per line, at least 16 characters each')
  .option('--no-auth', 'require no token on any address; conflicts with --token-file')
  .option('--workers <n>', 'server processes, each with its own engine, 1 to 1024', wholeNumber, 1)
  .option('--max-batch <n>', 'largest batch', wholeNumber)
  .option('--queue-limit <n>', 'most images in flight per process', wholeNumber, 64)
  .option('--body-limit <bytes>', 'largest request body (default: 32 MiB)', wholeNumber)
  .option(
    '--timeout <ms>',
    'time limit from the arrival of an image to its score (default: 60000)',
    wholeNumber,
  )
  .option('--drain <ms>', 'time limit for open requests at shutdown (default: 30000)', wholeNumber)
  .option('--rate-limit <n>', 'requests per minute and token (default: 6000)', wholeNumber)
  .option('--cors-origin <origin...>', 'origins whose pages may call the server')
  .option('--tls-cert <file>', 'certificate chain, PEM')
  .option('--tls-key <file>', 'private key, PEM')
  .addOption(
    new Option('--log-level <level>')
      .choices(['trace', 'debug', 'info', 'warn', 'error', 'silent'])
      .default('info'),
  )
  .action(serve);

const redisOption = (): Option =>
  new Option('--redis <url>', 'URL of the broker, redis:// or rediss://').makeOptionMandatory();

withModelOptions(program.command('worker'))
  .description('process images from submit')
  .addOption(redisOption())
  .requiredOption('--root <dir>', 'only folder from which files are read')
  .option('--allow-host <name...>', 'allowed hosts of http(s) images')
  .option('--allow-private-host <name...>', 'allowed hosts with private addresses')
  .option('--allow-bucket <name...>', 'allowed S3 buckets')
  .option('--s3-endpoint <url>', 'endpoint of an S3-compatible store')
  .option('--max-bytes <n>', 'largest image file (default: 32 MiB)', wholeNumber)
  .option('--concurrency <n>', 'concurrent jobs, which the engine batches', wholeNumber, 16)
  .option('--rate <n>', 'jobs per second over all workers', wholeNumber)
  .option('--keep <seconds>', 'how long to keep results, 0 for ever', wholeNumber, 0)
  .option('--max-stalls <n>', 'how often a job can stall before it fails', wholeNumber, 1)
  .option('--lock-ms <n>', 'a job without a heartbeat for this long counts as stalled', wholeNumber, 30_000)
  .option('--unsafe-broker', 'run even if the broker can lose jobs')
  .action(worker);

program
  .command('submit')
  .description('queue images for workers; prints the run id')
  .argument(
    '<inputs...>',
    'files, folders, globs, or NAME.sha256: sha256sum lines of paths, URLs or s3://bucket/key',
  )
  .addOption(redisOption())
  .option('--root <dir>', 'folder that paths are relative to, here and for the workers', '.')
  .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .option('--priority <n>', '1 (most urgent) to 2097151; 0 runs before all others', wholeNumber, 0)
  .action(submit);

program
  .command('results')
  .description('show the results of a run')
  .argument('<run>', 'run id printed by submit')
  .addOption(redisOption())
  .option('--wait', 'wait until every image has a result')
  .option('--json', 'print one JSON object per image')
  .action(results);

withModelOptions(program.command('watch'))
  .description('score images as they appear in a folder')
  .argument('<folder>', 'folder to watch, with its subfolders')
  .option('--done <dir>', 'move scored images there, renamed if the name exists')
  .option(
    '--journal <file>',
    'record of scored and delivered images (default: .diad-watch.jsonl in the folder)',
  )
  .option(
    '--jsonl <file>',
    'append results to this file; without any receiver, results go to standard output',
  )
  .option('--webhook <url>', 'POST each result to this URL, with retries until it is accepted')
  .option('--webhook-secret-file <file>', 'sign webhooks with HMAC-SHA256')
  .option('--mqtt <url>', 'publish each result with QoS 1')
  .option('--topic <topic>', 'MQTT topic', 'diad/results')
  .option('--seed <n>', 'seed of the noise', wholeNumber, 0)
  .option('--class <name>', 'class whose thresholds to use (default: a calibrated folder name in the path)')
  .option('--settle <ms>', 'a file is complete when its size has not changed for this long', wholeNumber, 500)
  .option(
    '--poll <ms>',
    'scan the folder at this interval, for shares written by other hosts (NFS, SMB)',
    wholeNumber,
  )
  .action(watch);

/** Commands that run until stopped. Exiting unasked is a failure, so that a supervisor restarts them. */
const SERVICES: readonly string[] = ['serve', 'watch', 'worker'];
let isService = false;
let writesFiles = false;
program.hook('preAction', (_program, command) => {
  isService = SERVICES.includes(command.name());
  const { out, csv, dump } = command.opts<{ out?: string; csv?: string; dump?: string }>();
  writesFiles = [out, csv, dump].some((option) => option !== undefined);
});

// The reader of the output can close it early (`| head`).
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') {
    process.stderr.write(`diad: ${error.message} (standard output)\n`);
    process.exit(1);
  }
  if (writesFiles) return; // keep writing the files
  if (isService) process.exitCode = 1;
  process.exit();
});

try {
  await program.parseAsync();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  const code = error instanceof Error && 'code' in error ? `${String(error.code)}: ` : '';
  // System errors already begin with their code.
  process.stderr.write(`diad: ${message.startsWith(code) ? '' : code}${message}\n`);
  process.exitCode = 1;
}
