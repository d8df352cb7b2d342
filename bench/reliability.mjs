// npm run reliability: load and faults against the service and the queue; each run writes bench/results/ and its table in docs/reliability.md.
//
//   npm run reliability -- [NAME ...] [--short] [--write]
//
// NAME: load, queue-faults, redis-restart, schemathesis, mutants, bad-clients; none: all. --short: the form of the tests, which writes nothing
// unless --write is given. Exit code 1 when an expectation is not met; then nothing is written either.
import process from 'node:process';
import { parseArgs } from 'node:util';
import { write } from './reliability/record.mjs';

const NAMES = ['load', 'queue-faults', 'redis-restart', 'schemathesis', 'mutants', 'bad-clients'];
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { short: { type: 'boolean', default: false }, write: { type: 'boolean', default: false } },
});
const names = positionals.length > 0 ? positionals : NAMES;
const unknown = names.find((name) => !NAMES.includes(name));
if (unknown !== undefined) throw new Error(`Expected one of ${NAMES.join(', ')} but received ${unknown}`);

for (const name of names) {
  const { run } = await import(`./reliability/${name}.mjs`);
  const started = performance.now();
  // figures: plain numbers; expectations: [sentence, kept]
  const { figures, expectations } = await run({ short: values.short });
  const broken = expectations.filter(([, kept]) => !kept);
  const seconds = (performance.now() - started) / 1000;
  console.log(
    `${name}: ${broken.length === 0 ? 'all kept' : 'BROKEN'} in ${seconds.toFixed(0)} s\n${JSON.stringify(figures, null, 2)}`,
  );
  for (const [sentence] of broken) console.error(`${name}: not kept: ${sentence}`);
  if (broken.length > 0) process.exitCode = 1;
  else if (!values.short || values.write)
    write('reliability', name, { short: values.short, seconds, figures, expectations });
}
