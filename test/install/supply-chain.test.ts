// Contents and scripts of an installation.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { root, runProgram } from '../support/support.js';

describe('supply chain', () => {
  it('has no install script', async () => {
    const { scripts, gypfile } = JSON.parse(await readFile(path.join(root, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>;
      gypfile: boolean;
    };
    for (const name of [
      'preinstall',
      'install',
      'postinstall',
      'prepare',
      'prepublish',
      'preprepare',
      'postprepare',
    ]) {
      assert.equal(scripts[name], undefined, name);
    }
    assert.equal(gypfile, false); // otherwise npm would run node-gyp for a binding.gyp
  });

  it('installs only the packages and install scripts listed in docs/design/security.md', async () => {
    const { code, stdout, stderr } = await runProgram(process.execPath, [
      path.join(root, 'scripts', 'count-dependencies.mjs'),
    ]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^\d+ direct dependencies, \d+ packages on all systems/);
    const named = /packages with an install script: (.*)/.exec(stdout)?.[1] ?? '';
    assert.equal(named, 'msgpackr-extract');
    assert.match(
      await readFile(path.join(root, 'docs', 'design', 'security.md'), 'utf8'),
      /msgpackr-extract/,
    );
  });

  it('has an integrity hash and no address for every package in the lock file', async () => {
    const { packages } = JSON.parse(await readFile(path.join(root, 'package-lock.json'), 'utf8')) as {
      packages: Record<string, { integrity?: string; resolved?: string; link?: boolean; inBundle?: boolean }>;
    };
    for (const [name, entry] of Object.entries(packages)) {
      if (name === '') continue;
      assert.equal(entry.resolved, undefined, name);
      assert.ok(entry.integrity?.startsWith('sha') ?? entry.inBundle === true, `${name} has no integrity`);
    }
  });
});
