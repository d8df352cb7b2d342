// Short form of the load and fault scripts behind docs/benchmarks.md.
import assert from 'node:assert/strict';
import process from 'node:process';
import { runProgram } from '../support/support.js';

const short = (script: string, ...args: string[]): ReturnType<typeof runProgram> =>
  runProgram(process.execPath, ['--import', 'tsx', script, ...args, '--short']);

describe('load and faults @slow', () => {
  for (const name of ['load', 'queue-faults', 'redis-restart', 'schemathesis', 'mutants', 'bad-clients']) {
    it(name, async () => {
      const { code, stdout, stderr } = await short('bench/reliability.mjs', name);
      assert.equal(code, 0, `${stdout}${stderr}`);
      assert.match(stdout, new RegExp(`^${name}: all met`, 'm'));
    });
  }

  it('measures the figures of scaling', async () => {
    const { code, stdout, stderr } = await short('bench/scaling.mjs');
    assert.equal(code, 0, `${stdout}${stderr}`);
    assert.match(stdout, /"jobs\/s, 4 processes|"4 processes": \d/);
  });

  it('rejects an unknown name', async () => {
    const { code, stderr } = await short('bench/reliability.mjs', 'everything');
    assert.equal(code, 1);
    assert.match(stderr, /Expected one of load, .* but received everything/);
  });
});
