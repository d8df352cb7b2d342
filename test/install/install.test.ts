// The package as users get it: packed, installed from tarballs into an empty directory without a network, and
// used.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import process from 'node:process';
import { root } from '../support/support.js';

describe('installation @slow', () => {
  let output = '';
  before(() => {
    const script = path.join(root, 'scripts', 'test-install.mjs');
    const { stdout, stderr, error } = spawnSync(process.execPath, [script, '--short'], {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 1 << 28,
    });
    if (error !== undefined) throw error;
    output = `${stdout}${stderr}`;
  });

  for (const name of [
    'contents of the package',
    'npm offline from two tarballs',
    'error message without LibTorch',
    'import and require and workers',
  ]) {
    it(name, () => {
      assert.ok(output.includes(`ok      ${name}`), output);
    });
  }

  it('reports no other failure', () => {
    assert.match(output, /^4 passed, 0 failed$/m);
  });
});
