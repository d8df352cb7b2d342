// Progress of `python -m diad_reference train`: a bar on a terminal, lines elsewhere.
import process from 'node:process';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { SingleBar } from 'cli-progress';
import Type, { type Static } from 'typebox';
import { Check } from 'typebox/value';

/** A progress line of the reference; `text` is the readable form. */
const trainingEvent = Type.Object({
  event: Type.String(),
  text: Type.String(),
  stage: Type.Optional(Type.String()),
  step: Type.Optional(Type.Number()),
  steps: Type.Optional(Type.Number()),
  seconds_left: Type.Optional(Type.Number()),
  loss: Type.Optional(Type.Number()),
  validation_loss: Type.Optional(Type.Number()),
  path: Type.Optional(Type.String()),
  split: Type.Optional(Type.String()),
});

export type TrainingEvent = Static<typeof trainingEvent>;

/** Parses a line. Returns undefined for other lines, such as output of libraries. */
export function parseEvent(line: string): TrainingEvent | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    const event: unknown = JSON.parse(line);
    return Check(trainingEvent, event) ? event : undefined;
  } catch {
    return undefined;
  }
}

/** Formats seconds as "45 s", "3:20 min" or "1:05 h". */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${String(whole % 60).padStart(2, '0')} min`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')} h`;
}

/** Output of the progress. */
export interface ProgressOutput {
  /**
   * 'bar': steps as a bar on standard error, the rest as text; 'text': all as text; 'json': unchanged lines.
   */
  readonly form: 'bar' | 'text' | 'json';
  readonly write: (text: string) => void;
}

/** Shows steps as a bar with the remaining time, and other events as lines. */
class TrainingBar {
  #bar: SingleBar | undefined;
  #validation = '';

  show(event: TrainingEvent, write: (text: string) => void): void {
    if (event.event === 'step') {
      const loss = event.loss === undefined ? '' : `loss ${event.loss.toPrecision(4)}`;
      this.#update(event.step ?? 0, event.steps ?? 0, {
        left: duration(event.seconds_left ?? 0),
        losses: `${loss}${this.#validation}`,
      });
    } else if (event.event === 'validation') {
      this.#validation = `, held out ${event.validation_loss?.toPrecision(4) ?? '-'}`;
    } else if (event.event !== 'saved') {
      this.stop();
      write(`${event.text}\n`);
    }
  }

  #update(step: number, steps: number, payload: { readonly left: string; readonly losses: string }): void {
    if (this.#bar === undefined) {
      this.#bar = new SingleBar({
        format: 'training {bar} {value}/{total} | {left} left | {losses}',
        stream: process.stderr,
      });
      this.#bar.start(steps, step, payload);
    }
    this.#bar.setTotal(steps); // an estimate, because the budget is a time
    this.#bar.update(step, payload);
  }

  /** Stops the bar and leaves it on the screen. */
  stop(): void {
    this.#bar?.stop();
    [this.#bar, this.#validation] = [undefined, ''];
  }
}

/**
 * Reads and shows the output of a training to its end.
 *
 * @returns the event `written` with the paths of bundle and split; undefined when no bundle was written
 */
export async function showTraining(
  output: Readable,
  { form, write }: ProgressOutput,
): Promise<TrainingEvent | undefined> {
  const bar = form === 'bar' ? new TrainingBar() : undefined;
  let written: TrainingEvent | undefined;
  for await (const line of createInterface({ input: output })) {
    const event = parseEvent(line);
    if (event?.event === 'written') written = event;
    if (event !== undefined && bar !== undefined) bar.show(event, write);
    else write(`${form === 'json' ? line : (event?.text ?? line)}\n`);
  }
  bar?.stop();
  return written;
}
