// The README's example runs as it stands there.
import assert from 'node:assert/strict';
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { inFolder, root, runProgram } from './support.js';

describe('README', () => {
  it('the ten-line example scores a picture', () =>
    inFolder(async (folder) => {
      const readme = await readFile(path.join(root, 'README.md'), 'utf8');
      const example = /```js\n([\s\S]*?diad\.score[\s\S]*?)```/.exec(readme)?.[1];
      assert.ok(example !== undefined, 'no example with diad.score');
      assert.ok(example.trim().split('\n').length <= 10);
      await mkdir(path.join(folder, 'node_modules'));
      await symlink(root, path.join(folder, 'node_modules', 'diad'));
      await writeFile(path.join(folder, 'example.mjs'), example);
      await cp(path.join(root, 'examples', 'gear-missing_part.png'), path.join(folder, 'gear.png'));
      const { code, stdout, stderr } = await runProgram(process.execPath, ['example.mjs'], {}, folder);
      assert.equal(code, 0, stderr);
      assert.match(stdout, /\d\.\d+/);
      assert.equal((await readFile(path.join(folder, 'heatmap.png'))).subarray(1, 4).toString(), 'PNG');
    }));
});
