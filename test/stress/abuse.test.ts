// Short forms of `npm run abuse`, each group in a separate process.
import assert from 'node:assert/strict';
import path from 'node:path';
import process from 'node:process';
import { root, runProgram } from '../support/support.js';

const GROUPS = [
  'exits',
  'workers',
  'closing',
  'storms',
  'cycles',
  'soak',
  'images',
  'bombs',
  'bundles',
  'torchscript',
  'memory',
  'disk',
  'buffers',
  'options',
];

describe('abuse @slow', () => {
  for (const group of GROUPS) {
    it(`${group} passes`, async () => {
      const args = [path.join(root, 'bench', 'abuse', 'main.mjs'), '--dry', '--only', group];
      const { code, stdout, stderr } = await runProgram(process.execPath, args);
      assert.equal(code, 0, stdout + stderr);
      assert.match(stdout, new RegExp(`^held {2}${group}: `, 'm'));
    });
  }

  it('rejects an unknown group', async () => {
    const args = [path.join(root, 'bench', 'abuse', 'main.mjs'), '--dry', '--only', 'nothing-of-that-name'];
    const { code, stderr } = await runProgram(process.execPath, args);
    assert.notEqual(code, 0);
    assert.match(stderr, /Expected names among exits, workers/);
  });
});
