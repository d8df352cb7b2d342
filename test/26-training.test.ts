// A user's path on a miniature generated set: train (broken off, taken up again), calibrate, eval, score.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseCalibration } from '../lib/calibration.js';
import { inFolder, python, root, runProgram, type Finished } from './support.js';

const cli = path.join(root, 'dist', 'cli', 'main.js');
const environment = { DIAD_PYTHON: python };
const diad = (...args: string[]): Promise<Finished> => runProgram(process.execPath, [cli, ...args], environment);

interface Event {
  readonly event: string;
  readonly stage?: string;
  readonly state?: string;
  readonly step?: number;
  readonly validation_loss?: number;
}

const eventsOf = (output: string): Event[] =>
  output
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Event);

/** Starts `diad train`, sends SIGINT once the denoiser has taken a step, and returns what it printed. */
async function interruptedTraining(args: readonly string[]): Promise<{ code: number | null; events: Event[]; stderr: string }> {
  const child = spawn(process.execPath, [cli, ...args], { env: { ...process.env, ...environment }, stdio: ['ignore', 'pipe', 'pipe'] });
  const closed = once(child, 'close');
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
  const events: Event[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const event = JSON.parse(line) as Event;
    events.push(event);
    if (event.event === 'step' && event.stage === 'denoiser' && event.step === 1) child.kill('SIGINT');
  }
  const [code] = (await closed) as [number | null];
  return { code, events, stderr };
}

describe('diad train @slow', () => {
  it('train, broken off and taken up again, then calibrate, eval and score', () =>
    inFolder(async (folder) => {
      const [data, run, bundle, out] = ['data', 'run', 'bundle', 'out'].map((name) => path.join(folder, name)) as [
        string,
        string,
        string,
        string,
      ];
      const pictures = ['--seed', '5', '--classes', 'screw,tile', '--train-per-class', '10', '--test-per-class', '4', '--jobs', '1'];
      const generated = await runProgram(python, ['-m', 'diad_reference', 'generate', '--out', data, ...pictures], {
        PYTHONPATH: path.join(root, 'python'),
      });
      assert.equal(generated.code, 0, generated.stderr);

      const training = ['train', 'all', '--data', data, '--run', run, '--out', bundle, '--config', 'tiny', '--json'];
      training.push('--steps', '12', '--batch', '2', '--log-every', '1', '--validate-every', '6', '--threads', '1');
      const cut = await interruptedTraining(training);
      assert.equal(cut.code, 130, cut.stderr);
      assert.match(cut.stderr, /denoiser stopped after step \d+ of 12; the same command goes on from there/);
      const saved = cut.events.findLast(({ event, stage }) => event === 'saved' && stage === 'denoiser')?.step;
      assert.ok(saved !== undefined && saved < 12, `saved at step ${saved}`);
      assert.ok(cut.events.some(({ event, stage }) => event === 'validation' && stage === 'autoencoder'));
      await assert.rejects(stat(bundle));

      const resumed = await diad(...training);
      assert.equal(resumed.code, 0, resumed.stderr);
      const events = eventsOf(resumed.stdout);
      const states = events.filter(({ event }) => event === 'stage').map(({ stage, state }) => `${stage} ${state}`);
      const expected = ['autoencoder skipped', 'denoiser started', 'denoiser finished', 'extractor started', 'extractor finished'];
      assert.deepEqual(states, expected);
      assert.equal(events.find(({ event, stage }) => event === 'step' && stage === 'denoiser')?.step, saved + 1);
      assert.ok(
        events.some(({ event, stage, validation_loss }) => event === 'validation' && stage === 'extractor' && validation_loss! > 0),
      );
      assert.equal(events.at(-1)?.event, 'written');

      const calibrated = await diad('calibrate', '--good', data, '--model', bundle, '--target-fpr', '0.2', '--per-class', '--test', data);
      assert.equal(calibrated.code, 0, calibrated.stderr);
      const calibration = parseCalibration(await readFile(path.join(bundle, 'calibration.json'), 'utf8'));
      assert.equal(calibration.images, 20);
      assert.deepEqual(Object.keys(calibration.classes ?? {}).sort(), ['screw', 'tile']);

      const evaluated = await diad('eval', '--data', data, '--model', bundle, '--out', out);
      assert.equal(evaluated.code, 0, evaluated.stderr);
      const report = JSON.parse(await readFile(path.join(out, 'results.json'), 'utf8')) as {
        classes: Record<string, { image_auroc: number | null }>;
        mean: { image_auroc: number | null };
      };
      const aurocs = ['screw', 'tile'].map((name) => report.classes[name]!.image_auroc!);
      assert.ok(aurocs.every((auroc) => auroc >= 0 && auroc <= 1));
      assert.equal(report.mean.image_auroc, (aurocs[0]! + aurocs[1]!) / 2);

      const good = path.join(data, 'screw', 'train', 'good');
      const scored = await diad('score', good, '--model', bundle, '--json');
      assert.equal(scored.code, 0, scored.stderr);
      const rows = eventsOf(scored.stdout) as unknown as { score: number; threshold: number; anomalous: boolean }[];
      assert.equal(rows.length, (await readdir(good)).length);
      assert.ok(rows.every(({ threshold }) => threshold === calibration.classes!['screw']!.threshold));
      // The threshold is one of the ten scores: with a target of 0.2 two may lie above it at most.
      assert.ok(rows.some(({ score, threshold }) => Math.abs(score - threshold) < 1e-4 * threshold));
      assert.ok(rows.filter(({ anomalous }) => anomalous).length <= 2);
    }));

  it('without --json the same in words; bad options end with 1 and say which', () =>
    inFolder(async (folder) => {
      const none = await diad('train', 'all', '--data', folder, '--run', path.join(folder, 'run'), '--out', path.join(folder, 'bundle'));
      assert.equal(none.code, 1);
      assert.match(none.stderr, /Expected class folders with train\/good pictures/);
      assert.doesNotMatch(none.stderr, /Traceback/);
      const noOut = await diad('train', 'all', '--data', folder, '--run', path.join(folder, 'run'));
      assert.match(noOut.stderr, /Expected --out/);
      const help = await diad('train', '--help');
      assert.equal(help.code, 0);
      assert.match(help.stdout, /--stable-diffusion/);
      const nowhere = await runProgram(process.execPath, [cli, 'train', 'all'], { DIAD_PYTHON: path.join(folder, 'python') });
      assert.equal(nowhere.code, 1);
      assert.match(nowhere.stderr, /diad train cannot start .*pip install .*python.*DIAD_PYTHON/s);
      const { code } = await runProgram('python3', ['-m', 'venv', '--without-pip', path.join(folder, 'bare')]);
      assert.equal(code, 0);
      const bare = await runProgram(process.execPath, [cli, 'train', 'all'], { DIAD_PYTHON: path.join(folder, 'bare', 'bin', 'python') });
      assert.equal(bare.code, 1);
      assert.match(bare.stderr, /^diad_reference train: No module named '\w+'; install PyTorch .*, then: pip install .*python\n$/);
    }));
});
