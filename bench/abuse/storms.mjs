// Aborts and timeouts at every step and between them.
import { library, readTestImage, randomNumbers, sleep, untilIdle, within } from './harness.mjs';

export const abuse = 'abort and timeout storms: before, while queued, at every step, after';
export const mustHold = 'the right reason, next score golden, queue empty';
export const amounts = { short: 150, full: 10_000 };

const AT_ONCE = 25;

export async function run(count) {
  const { Diad } = await library();
  const random = randomNumbers(4);
  const failures = [];
  const image = readTestImage();
  const diad = await Diad.load(undefined, { maxBatch: 4 });
  const golden = (await diad.score(image)).score;
  const tally = { aborted: 0, timeout: 0, finished: 0 };

  async function one(i) {
    const kind = i % 4;
    const reason = new Error(`abort ${i}`);
    const controller = new AbortController();
    const options = { signal: controller.signal };
    if (kind === 0) options.onStep = (step) => step === 1 + (i % 10) && controller.abort(reason);
    if (kind === 1) setTimeout(() => controller.abort(reason), random() * 800);
    if (kind === 2) options.timeoutMs = 1 + Math.floor(random() * 600);
    if (kind === 3) controller.abort(reason);
    try {
      const { score } = await within(60_000, diad.score(image, options), `call ${i}`);
      tally.finished++;
      if (kind === 3) failures.push(`call ${i}: an aborted signal was ignored`);
      if (Math.abs(score / golden - 1) > 1e-5) failures.push(`call ${i}: score ${score}, not ${golden}`);
    } catch (error) {
      if (kind === 2 && error.code === 'ERR_DIAD_TIMEOUT') tally.timeout++;
      else if (kind !== 2 && error === reason) tally.aborted++;
      else failures.push(`call ${i}: ${error.code ?? ''} ${error.message}`);
    }
  }

  for (let done = 0; done < count; done += AT_ONCE) {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, count - done) }, (_, i) => one(done + i)));
    await untilIdle(diad);
    const { score } = await diad.score(image);
    if (score !== golden) failures.push(`after ${done + AT_ONCE} calls the score is ${score}, not ${golden}`);
  }
  await sleep(0);
  const { queued, running } = diad.stats();
  if (queued + running !== 0) failures.push(`${queued} queued and ${running} running at the end`);
  await diad.close();
  return {
    measured: `${tally.aborted} aborted, ${tally.timeout} timed out, ${tally.finished} finished; ${failures.length} bad`,
    failures,
  };
}
