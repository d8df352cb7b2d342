// Runs the examples of the README and of the guides.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Broker, freePort } from '../support/queue-support.js';
import { example, inFolder, root, runProgram } from '../support/support.js';
import { until } from '../support/watch-support.js';

/** Extracts the JavaScript examples of a document. */
async function examplesOf(file: string): Promise<string[]> {
  const text = await readFile(path.join(root, file), 'utf8');
  return [...text.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code!);
}

/** Creates a project with diad installed and an example as example.mjs. */
function inProject(code: string | undefined, use: (folder: string) => Promise<void>): Promise<void> {
  assert.ok(code !== undefined, 'no such example');
  return inFolder(async (folder) => {
    await mkdir(path.join(folder, 'node_modules'));
    await symlink(root, path.join(folder, 'node_modules', 'diad'));
    await writeFile(path.join(folder, 'example.mjs'), code);
    await use(folder);
  });
}

/** Runs an example until SIGTERM ends it, and expects a clean exit. */
async function running(folder: string, use: (said: () => string) => Promise<void>): Promise<void> {
  const child = spawn(process.execPath, ['example.mjs'], { cwd: folder });
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (chunk: string) => (said += chunk));
  const ended = once(child, 'exit');
  try {
    await use(() => said);
    child.kill('SIGTERM');
    assert.deepEqual(await ended, [0, null], said);
  } finally {
    child.kill('SIGKILL');
  }
}

describe('README', () => {
  it('runs the ten-line example, which scores an image', async () => {
    const code = (await examplesOf('README.md')).find((one) => one.includes('diad.score'));
    assert.ok(code === undefined || code.trim().split('\n').length <= 10);
    await inProject(code, async (folder) => {
      await cp(path.join(root, 'examples', 'gear-missing_part.png'), path.join(folder, 'gear.png'));
      const { code: exit, stdout, stderr } = await runProgram(process.execPath, ['example.mjs'], {}, folder);
      assert.equal(exit, 0, stderr);
      assert.match(stdout, /\d\.\d+/);
      assert.equal((await readFile(path.join(folder, 'heatmap.png'))).subarray(1, 4).toString(), 'PNG');
    });
  });
});

describe('docs/guide', () => {
  const exampleWith = async (text: string, guide = 'service'): Promise<string | undefined> =>
    (await examplesOf(`docs/guide/${guide}.md`)).find((one) => one.includes(text));

  it('runs the service examples', async () => {
    const code = await exampleWith('createServer');
    await inProject(code?.replace('port: 8080', 'port: 0'), (folder) =>
      running(folder, async (said) => {
        await until(() => said().includes('scoring at'), 'ready');
        const url = /scoring at (\S+)/.exec(said())![1]!;
        const body = Uint8Array.from(await example('gear-good.png'));
        assert.equal((await fetch(`${url}/v1/score`, { method: 'POST', body })).status, 200);
      }),
    );
  });

  it('runs the watch example', async () =>
    inProject(await exampleWith('diad/watch'), async (folder) => {
      await mkdir(path.join(folder, 'incoming'));
      await writeFile(path.join(folder, 'incoming', 'a.png'), await example('gear-good.png'));
      await running(folder, (said) => until(() => /a\.png \d\.\d+/.test(said()), 'result'));
    }));

  it('runs the queue examples @slow', async () => {
    const port = await freePort();
    const code = await exampleWith('diad/queue', 'queue');
    await inProject(code?.replace('localhost:6379', `127.0.0.1:${port}`), async (folder) => {
      const broker = new Broker(port, folder);
      await broker.start();
      await mkdir(path.join(folder, 'parts'));
      await writeFile(path.join(folder, 'parts', 'gear.png'), await example('gear-good.png'));
      const { code: exit, stdout, stderr } = await runProgram(process.execPath, ['example.mjs'], {}, folder);
      await broker.kill();
      assert.equal(exit, 0, stderr);
      assert.match(stdout, /^gear\.png \d\.\d+/);
    });
  });
});
