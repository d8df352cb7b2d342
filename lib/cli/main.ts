#!/usr/bin/env node
// npx diad: the command line.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { Command, Option } from 'commander';
import { LAYOUT_NAMES } from '../evaluation/datasets/index.js';
import { METRICS_MODES } from '../evaluation/metrics.js';
import { packageRoot } from '../native.js';
import { PRECISIONS } from '../options.js';
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
  return new Option('--precision <precision>', 'what the networks compute in')
    .choices(PRECISIONS)
    .default('float32');
}

function withModelOptions(command: Command): Command {
  return command
    .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
    .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
    .addOption(precisionOption())
    .option('--threads <n>', 'threads of one operation on the CPU', wholeNumber)
    .option(
      '--max-pixels <n>',
      'largest image, width x height (default: 100,000,000; of serve 32,000,000)',
      wholeNumber,
    )
    .option(
      '--max-frames <n>',
      'pages or frames an image may have, of which the first is read (default: 1)',
      wholeNumber,
    );
}

const program = new Command('diad')
  .description('Visual anomaly detection with DiAD')
  .version(version)
  .showHelpAfterError()
  .enablePositionalOptions(); // else --version of `libtorch install` and of the reference's commands were this one

withModelOptions(program.command('score'))
  .description('score images')
  .argument('<inputs...>', 'files, folders or globs')
  .option('--out <dir>', 'write a heat map per image there')
  .option('--json', 'one JSON object per image on standard output')
  .option('--csv <file>', 'write a table')
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .option(
    '--class <name>',
    'kind of part, for its own thresholds (default: a folder of the path that has some)',
  )
  .option('--tile <pixels>', 'cut images into tiles of this size, which overlap by a quarter', wholeNumber)
  .addOption(new Option('--dump <dir>', 'write every stage as NNN.<stage>.npy, NNN the place in the list'))
  .action(score);

withModelOptions(program.command('reconstruct'))
  .description('rebuild images as if they were normal')
  .argument('<inputs...>', 'files, folders or globs')
  .requiredOption('--out <dir>', 'where the PNG files go')
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .action(reconstruct);

withModelOptions(program.command('info'))
  .description('describe a bundle and what it runs on')
  .option('--json', 'as JSON')
  .action(info);

program
  .command('doctor')
  .description('say what diad finds on this machine, and whether it can score')
  .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
  .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
  .option('--timeout <seconds>', 'of one probe', wholeNumber, 180)
  .option('--json', 'as JSON')
  .action(doctor);
program.addCommand(libtorchCommand());

program
  .command('metrics')
  .description('metrics of anomaly maps that any tool has saved')
  .argument(
    '<file>',
    '.npz with preds and masks [N,H,W], clsname [N] and, if wanted, image_scores and image_labels [N]',
  )
  .addOption(new Option('--mode <mode>', 'whose rules hold').choices(METRICS_MODES).default('exact'))
  .option('--fpr-limit <rate>', 'false positive rate up to which AU-PRO is integrated', rate, 0.3)
  .option('--json', 'as JSON')
  .action(metrics);

withModelOptions(program.command('eval'))
  .description('score a data set; tables and a report')
  .requiredOption('--data <dir>', 'data set, or one class of it')
  .addOption(
    new Option('--layout <layout>', 'how the data set is laid out (default: found out)').choices(
      LAYOUT_NAMES,
    ),
  )
  .option('--out <dir>', 'folder of scores, tables and report', 'diad-eval')
  .option('--resume', 'go on with a run that was broken off')
  .addOption(new Option('--metrics-mode <mode>', 'whose rules hold').choices(METRICS_MODES).default('exact'))
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .action(evaluate);

withModelOptions(program.command('calibrate'))
  .description('learn from normal images what is normal, find thresholds, and write both into the bundle')
  .requiredOption(
    '--good <dir>',
    'normal images: a folder, folders by class, or a data set with CLASS/train/good',
  )
  .option('--out <dir>', 'calibrate a copy of the bundle in this new folder (default: the bundle itself)')
  .option(
    '--target-fpr <rate>',
    'share of normal images that may be called anomalous (default: 0.01, or what few images allow where the bundle has evidence)',
    rate,
  )
  .option(
    '--per-class',
    'thresholds of each class beside the global ones (default where the bundle has evidence)',
  )
  .option('--no-per-class', 'one threshold for all images')
  .option(
    '--validation <dir>',
    'data set with defects: the image threshold is that of its largest F1; not where the bundle has evidence',
  )
  .option(
    '--test <dir>',
    'data set on which results will be reported: refused where it shares an image with the others',
  )
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .option('--tile <pixels>', 'cut images into tiles of this size, which overlap by a quarter', wholeNumber)
  .action(calibrateBundle);

program
  .command('verify')
  .description("compare this machine's results with the reference's that the bundle carries, stage by stage")
  .option('--bundle <dir>', 'bundle folder (default: the base model that ships with diad)')
  .addOption(new Option('--model <dir>', 'the same, as the other commands call it').conflicts('bundle'))
  .option('--device <device>', 'auto, cpu, cuda or cuda:N', 'auto')
  .addOption(precisionOption())
  .option('--threads <n>', 'threads of one operation on the CPU', wholeNumber)
  .option('--json', 'as JSON')
  .action(verify);

program
  .command('convert')
  .description(
    'make a bundle from a published-format checkpoint (needs Python with PyTorch; `diad convert --help` lists its options)',
  )
  .argument('[options...]')
  .allowUnknownOption()
  .helpOption(false)
  .action(async (args: string[]) => {
    await runReference('convert', args);
  });

program
  .command('train')
  .description(
    'train a model of your own within a time budget, from a folder of normal images (needs Python with PyTorch)',
  )
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
  .option('--name <name>', 'of the model (default: the name of the folder)')
  .option('--batch <n>', 'images per step (default: 16)', wholeNumber)
  .option('--learning-rate <rate>', 'largest rate of the schedule (default: 0.001)', positive)
  .option('--seed <n>', 'of every random choice', wholeNumber, 0)
  .option('--device <device>', 'cpu or cuda', 'cpu')
  .option('--threads <n>', 'threads of one operation on the CPU', wholeNumber)
  .option('--json', 'progress and result as one JSON object a line')
  .allowUnknownOption() // of earlier versions: the action says what became of them
  .allowExcessArguments()
  .action(train);

withModelOptions(program.command('serve'))
  .description('HTTP service with a page at /')
  .option('--host <address>', 'address to listen on; any but a loopback one needs a token', '127.0.0.1')
  .option('--port <n>', 'port to listen on, 0 for a free one', wholeNumber, 8080)
  .option('--token-file <file>', 'bearer tokens that are accepted, one a line, each 16 characters or longer')
  .option('--no-auth', 'ask for no token, whatever the address; not together with --token-file')
  .option('--workers <n>', 'server processes, each with an engine of its own, 1 to 1024', wholeNumber, 1)
  .option('--max-batch <n>', 'images computed together at most', wholeNumber)
  .option('--queue-limit <n>', 'images in flight at most, per process', wholeNumber, 64)
  .option('--body-limit <bytes>', 'largest request body (default: 32 MiB)', wholeNumber)
  .option('--timeout <ms>', 'from the arrival of an image to its score (default: 60000)', wholeNumber)
  .option('--drain <ms>', 'for running requests at the end (default: 30000)', wholeNumber)
  .option('--rate-limit <n>', 'requests a minute and token (default: 6000)', wholeNumber)
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
  new Option('--redis <url>', 'the broker, redis:// or rediss://').makeOptionMandatory();

withModelOptions(program.command('worker'))
  .description('work off images that were handed in with submit')
  .addOption(redisOption())
  .requiredOption('--root <dir>', 'the only folder files are read from')
  .option('--allow-host <name...>', 'hosts http(s) images may come from')
  .option('--allow-private-host <name...>', 'the same for hosts with private addresses')
  .option('--allow-bucket <name...>', 'buckets S3 objects may come from')
  .option('--s3-endpoint <url>', 'of an S3-compatible store')
  .option('--max-bytes <n>', 'largest image file (default: 32 MiB)', wholeNumber)
  .option('--concurrency <n>', 'jobs at once, of which the engine forms batches', wholeNumber, 16)
  .option('--rate <n>', 'jobs a second, over all workers', wholeNumber)
  .option('--keep <seconds>', 'how long results are kept, 0 for ever', wholeNumber, 0)
  .option('--max-stalls <n>', 'how often a job may stall before it is given up', wholeNumber, 1)
  .option(
    '--lock-ms <n>',
    'without a sign of life for this long a job counts as stalled',
    wholeNumber,
    30_000,
  )
  .option('--unsafe-broker', 'work although the broker may lose jobs')
  .action(worker);

program
  .command('submit')
  .description("hand images in for workers; prints the run's id")
  .argument(
    '<inputs...>',
    'files, folders, globs, or NAME.sha256: lines as sha256sum writes them, of paths, URLs or s3://bucket/key',
  )
  .addOption(redisOption())
  .option('--root <dir>', 'folder that paths are relative to, here and for the workers', '.')
  .option('--model <dir>', 'bundle folder (default: the base model that ships with diad)')
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .option(
    '--priority <n>',
    'from 1, the most urgent, to 2097151; 0 comes before all that have one',
    wholeNumber,
    0,
  )
  .action(submit);

program
  .command('results')
  .description('what became of a run')
  .argument('<run>', 'what submit printed')
  .addOption(redisOption())
  .option('--wait', 'until every image has a result')
  .option('--json', 'one JSON object per image')
  .action(results);

withModelOptions(program.command('watch'))
  .description('score images as they appear in a folder')
  .argument('<folder>', 'watched with its subfolders')
  .option('--done <dir>', 'move scored images there, under another name where theirs is taken')
  .option('--journal <file>', 'what has been scored and delivered (default: .diad-watch.jsonl in the folder)')
  .option('--jsonl <file>', 'append results there; without a receiver they go to standard output')
  .option('--webhook <url>', 'POST each result there, again until it is received')
  .option('--webhook-secret-file <file>', 'sign webhooks with HMAC-SHA256')
  .option('--mqtt <url>', 'publish each result with QoS 1')
  .option('--topic <topic>', 'of MQTT', 'diad/results')
  .option('--seed <n>', 'of the noise', wholeNumber, 0)
  .option(
    '--class <name>',
    'kind of part, for its own thresholds (default: a folder of the path that has some)',
  )
  .option(
    '--settle <ms>',
    'a file counts as written when its size has not changed for this long',
    wholeNumber,
    500,
  )
  .option(
    '--poll <ms>',
    'look into the folder this often, for shares that other hosts write to (NFS, SMB)',
    wholeNumber,
  )
  .action(watch);

/** What runs until it is told to end: to end without being told is a failure, after which a supervisor starts it again. */
const SERVICES: readonly string[] = ['serve', 'watch', 'worker'];
let isService = false;
let writesFiles = false;
program.hook('preAction', (_program, command) => {
  isService = SERVICES.includes(command.name());
  const { out, csv, dump } = command.opts<{ out?: string; csv?: string; dump?: string }>();
  writesFiles = [out, csv, dump].some((option) => option !== undefined);
});

// Who reads the output may have seen enough (`| head`).
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') {
    process.stderr.write(`diad: ${error.message} (standard output)\n`);
    process.exit(1);
  }
  if (writesFiles) return; // they are wanted all the same
  if (isService) process.exitCode = 1;
  process.exit();
});

try {
  await program.parseAsync();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  const code = error instanceof Error && 'code' in error ? `${String(error.code)}: ` : '';
  process.stderr.write(`diad: ${message.startsWith(code) ? '' : code}${message}\n`); // the system's errors begin with theirs
  process.exitCode = 1;
}
