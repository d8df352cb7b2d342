#!/usr/bin/env node
// Stub for Python in the tests of `diad train`: prints the events of a training and writes its output.
// STUB_TRAINING: 'ok' (default), 'wait' (until SIGINT), 'fail', 'nothing'. Records each call in
// RUN/calls.txt.
import { appendFileSync, cpSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

const args = process.argv.slice(2);
// diad also asks Python for its LibTorch.
if (args.slice(0, 3).join(' ') !== '-m diad_reference train') process.exit(1);
const option = (name) => args[args.indexOf(name) + 1];
const [data, out, base, run] = ['--data', '--out', '--base', '--run'].map(option);
const say = (event, text, values = {}) =>
  process.stdout.write(`${JSON.stringify({ event, ...values, text })}\n`);

mkdirSync(run, { recursive: true });
appendFileSync(path.join(run, 'calls.txt'), `${args.join(' ')}\n`);
const mode = process.env.STUB_TRAINING ?? 'ok';
if (mode === 'fail') {
  process.stderr.write(
    'diad_reference train: Expected at least 10 different normal images of gear but found 3\n',
  );
  process.exit(1);
}
if (mode === 'nothing') process.exit(0);

const classes = readdirSync(data);
const split = classes.flatMap((name) => {
  const folder = path.join(data, name, 'train', 'good');
  return readdirSync(folder).map((file, i) => ({
    file: path.join(folder, file),
    class_name: name,
    held_out: i % 3 === 0,
  }));
});
writeFileSync(path.join(run, 'split.json'), JSON.stringify(split));
say('data', `${classes.length} classes: ${split.length} images`, { classes });
process.stdout.write('a line of a library\n');
say('prepared', '10 perturbed images', { what: 'perturbing', done: 10, of: 10 });
say('plan', 'A step takes 0.10 s: about 20 steps', { steps: 20 });
say('step', 'denoiser 10/20', { stage: 'denoiser', step: 10, steps: 20, seconds_left: 65, loss: 0.5 });
if (mode === 'wait') {
  process.on('SIGINT', () => {
    say('saved', 'denoiser 11 steps, saved', { step: 11 });
    process.stderr.write(
      'diad_reference train: denoiser stopped after 11 steps; the same command resumes there\n',
    );
    process.exit(130);
  });
  setTimeout(() => process.exit(3), 60_000);
} else {
  say('validation', 'denoiser 20 steps, validation loss 0.4', { step: 20, validation_loss: 0.4 });
  cpSync(base, out, { recursive: true });
  say('written', out, { path: out, split: path.join(run, 'split.json') });
}
