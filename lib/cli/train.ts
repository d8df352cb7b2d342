// diad train: the Python reference trains, this shows how far it is.
import process from 'node:process';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { SingleBar } from 'cli-progress';
import Type, { type Static } from 'typebox';
import { Check } from 'typebox/value';
import { runReference } from './reference.js';

/** One line of the reference's progress; `text` says it in words. */
const progressEvent = Type.Object({
  event: Type.String(),
  text: Type.String(),
  stage: Type.Optional(Type.String()),
  step: Type.Optional(Type.Number()),
  steps: Type.Optional(Type.Number()),
  loss: Type.Optional(Type.Number()),
  validation_loss: Type.Optional(Type.Number()),
  what: Type.Optional(Type.String()),
  done: Type.Optional(Type.Number()),
  of: Type.Optional(Type.Number()),
});

type ProgressEvent = Static<typeof progressEvent>;

/** The event of a line; undefined for a line that is none, such as a library's own output. */
function parseEvent(line: string): ProgressEvent | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    const event: unknown = JSON.parse(line);
    return Check(progressEvent, event) ? event : undefined;
  } catch {
    return undefined;
  }
}

/** Shows the running stage as a bar on standard error; what is finished stays as a line on standard output. */
class StageBar {
  #bar: SingleBar | undefined;
  #name = '';
  #validation = '';

  /** Takes in one event. */
  show(event: ProgressEvent): void {
    const { stage, what } = event;
    if (event.event === 'step' && stage !== undefined) {
      const loss = event.loss === undefined ? '' : `loss ${event.loss.toPrecision(4)}`;
      this.#update(stage, event.step ?? 0, event.steps ?? 0, `${loss}${this.#validation}`);
    } else if (event.event === 'prepared' && what !== undefined) {
      this.#update(what, event.done ?? 0, event.of ?? 0, '');
    } else if (event.event === 'validation') {
      this.#validation = `, validation ${event.validation_loss?.toPrecision(4) ?? '-'}`;
    } else if (event.event !== 'saved') {
      this.stop();
      process.stdout.write(`${event.text}\n`);
    }
  }

  #update(name: string, value: number, total: number, losses: string): void {
    if (this.#name !== name) {
      this.stop();
      this.#name = name;
      this.#bar = new SingleBar({ format: `${name} {bar} {value}/{total} | {eta_formatted} left | {losses}`, stream: process.stderr });
      this.#bar.start(total, value, { losses });
    }
    this.#bar?.update(value, { losses });
  }

  /** Leaves the bar as it stands. */
  stop(): void {
    this.#bar?.stop();
    [this.#bar, this.#name, this.#validation] = [undefined, '', ''];
  }
}

async function showProgress(output: Readable): Promise<void> {
  const bar = process.stderr.isTTY ? new StageBar() : undefined;
  for await (const line of createInterface({ input: output })) {
    const event = parseEvent(line);
    if (event !== undefined && bar !== undefined) bar.show(event);
    else process.stdout.write(`${event?.text ?? line}\n`);
  }
  bar?.stop();
}

/**
 * Runs `python -m diad_reference train ARGS`. Its progress becomes a bar on a terminal and lines otherwise; with --json its JSON lines are
 * the output. SIGINT and SIGTERM go on to it: it finishes its step, writes its checkpoint and ends with exit code 130.
 */
export async function train(args: readonly string[]): Promise<void> {
  const plain = args.length === 0 || args.includes('--json') || args.includes('--help') || args.includes('-h');
  if (plain) await runReference('train', args);
  else await runReference('train', [...args, '--json'], showProgress);
}
