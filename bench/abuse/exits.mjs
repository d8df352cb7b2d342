// Processes that end while the native thread computes, or while another bundle is loaded.
import { nodeChild, randomNumbers } from './harness.mjs';

export const abuse =
  'process.exit(), uncaught throw, SIGTERM and SIGINT while scoring; process.exit() while loading';
export const mustHold = 'the exit code Node would give, no crash; full form: gone within 300 ms';
export const amounts = { short: 2, full: 200 }; // of each kind

const LONGEST_MS = 300;

const scoring = (i) => `const diad = await Diad.load(undefined, { warmup: false, maxBatch: ${1 + (i % 4)} });
  for (let seed = 0; seed < 30; seed++) diad.score(image, { seed, onStep: seed % 2 ? () => {} : undefined }).catch(() => {});`;
// LibTorch is there already: what is cut off is reading, compiling, packing and warming up.
const loading = (i) => `await (await Diad.load(undefined, { warmup: false })).close();
  Diad.load(undefined, { maxBatch: ${2 + (i % 4)} }).catch(() => {});`;

const KINDS = [
  ['process.exit()', scoring, 'process.exit(7)', 7, null],
  ['uncaught throw', scoring, "throw new Error('unlucky')", 1, null],
  ['SIGTERM', scoring, "process.kill(process.pid, 'SIGTERM')", null, 'SIGTERM'],
  ['SIGINT', scoring, "process.kill(process.pid, 'SIGINT')", null, 'SIGINT'],
  ['process.exit() while loading', loading, 'process.exit(7)', 7, null],
];

const median = (sorted) => sorted[sorted.length >> 1];

export async function run(count, full) {
  const random = randomNumbers(1);
  const failures = [];
  const seen = [];
  for (const [name, work, ending, code, signal] of KINDS) {
    const delays = [];
    for (let i = 0; i < count; i++) {
      const wait = Math.round(random() * 250);
      const source = `${work(i)}
        setTimeout(() => { process._rawDebug('at ' + Date.now()); ${ending}; }, ${wait});`;
      const ended = await nodeChild(source);
      const asked = Number(/at (\d+)/.exec(ended.stderr)?.[1] ?? NaN);
      const delay = ended.closed - asked;
      delays.push(delay);
      if (ended.code !== code || ended.signal !== signal) {
        failures.push(
          `${name} after ${wait} ms: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-300)}`,
        );
      } else if (/terminate called|Segmentation|core dumped|FATAL/.test(ended.stderr)) {
        failures.push(`${name} after ${wait} ms: ${ended.stderr.slice(-300)}`);
      } else if (full && !(delay <= LONGEST_MS)) {
        failures.push(`${name} after ${wait} ms: ended ${delay} ms later`);
      }
    }
    delays.sort((a, b) => a - b);
    seen.push(`${name} median ${median(delays)} ms, longest ${delays.at(-1)} ms`);
  }
  return { measured: `${count * KINDS.length} exits, ${failures.length} bad; ${seen.join('; ')}`, failures };
}
