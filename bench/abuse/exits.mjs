// Processes that end while the native thread computes.
import { nodeChild, randomNumbers } from './harness.mjs';

export const abuse = 'process.exit(), uncaught throw, SIGTERM and SIGINT while scoring';
export const mustHold = 'the exit code Node would give, no crash; full form: gone within 300 ms';
export const amounts = { short: 2, full: 200 }; // of each kind

const LONGEST_MS = 300;
const KINDS = [
  ['process.exit()', 'process.exit(7)', 7, null],
  ['uncaught throw', "throw new Error('unlucky')", 1, null],
  ['SIGTERM', "process.kill(process.pid, 'SIGTERM')", null, 'SIGTERM'],
  ['SIGINT', "process.kill(process.pid, 'SIGINT')", null, 'SIGINT'],
];

export async function run(count, full) {
  const random = randomNumbers(1);
  const failures = [];
  const delays = [];
  for (const [name, ending, code, signal] of KINDS) {
    for (let i = 0; i < count; i++) {
      const wait = Math.round(random() * 250);
      const source = `const diad = await Diad.load(undefined, { warmup: false, maxBatch: ${1 + (i % 4)} });
        for (let seed = 0; seed < 30; seed++) diad.score(image, { seed, onStep: seed % 2 ? () => {} : undefined }).catch(() => {});
        setTimeout(() => { process._rawDebug('at ' + Date.now()); ${ending}; }, ${wait});`;
      const ended = await nodeChild(source);
      const asked = Number(/at (\d+)/.exec(ended.stderr)?.[1] ?? NaN);
      const delay = ended.closed - asked;
      delays.push(delay);
      if (ended.code !== code || ended.signal !== signal) {
        failures.push(`${name} after ${wait} ms: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-300)}`);
      } else if (/terminate called|Segmentation|core dumped|FATAL/.test(ended.stderr)) {
        failures.push(`${name} after ${wait} ms: ${ended.stderr.slice(-300)}`);
      } else if (full && !(delay <= LONGEST_MS)) {
        failures.push(`${name} after ${wait} ms: ended ${delay} ms later`);
      }
    }
  }
  delays.sort((a, b) => a - b);
  return {
    measured: `${delays.length} exits, ${failures.length} bad; longest delay ${delays.at(-1)} ms, median ${delays[delays.length >> 1]} ms`,
    failures,
  };
}
