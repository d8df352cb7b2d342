// Images in an S3-compatible store, read by a worker with the official client: download, hash check, score,
// rejections.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';
import {
  runResults,
  startWorker,
  submitRun,
  type RunResult,
  type Submission,
} from '../../lib/queue/index.js';
import { sha256 } from '../../lib/queue/reference.js';
import { Broker, freePort, STUB_MODEL, stubScore, stubScorer } from '../support/queue-support.js';
import { example, HANG_GUARD_MS, inFolder, python } from '../support/support.js';

const BUCKET = 'line-7';
/** Environment of the S3 client, as on a user's machine. */
const STORE_ACCESS = {
  AWS_ACCESS_KEY_ID: 'key-of-the-test',
  AWS_SECRET_ACCESS_KEY: 'secret-of-the-test',
  AWS_REGION: 'us-east-1',
  AWS_EC2_METADATA_DISABLED: 'true',
};

describe('images in an S3-compatible store @slow', () => {
  let store: ChildProcess;
  let endpoint: string;
  const surroundings = new Map<string, string | undefined>();

  before(async () => {
    for (const [name, value] of Object.entries(STORE_ACCESS)) {
      surroundings.set(name, process.env[name]);
      process.env[name] = value;
    }
    const port = await freePort();
    endpoint = `http://127.0.0.1:${port}`;
    store = spawn(python, ['-m', 'moto.server', '-H', '127.0.0.1', '-p', String(port)], { stdio: 'ignore' });
    for (let tries = 0; ; tries++) {
      if (store.exitCode !== null)
        throw new Error('moto.server ended: .venv lacks moto[s3], flask or flask-cors');
      const answered = await fetch(endpoint).then(
        () => true,
        () => false,
      );
      if (answered) break;
      assert.ok(tries < 300, 'moto.server does not answer');
      await sleep(100);
    }
  });
  after(async () => {
    for (const [name, value] of surroundings) {
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
    }
    if (store.exitCode !== null) return;
    store.kill('SIGKILL');
    await once(store, 'exit');
  });

  it('downloads, verifies and scores an object; rejects missing, forbidden and large ones immediately', () =>
    inFolder(async (folder) => {
      const bytes = await example('gear-good.png');
      const digest = sha256(bytes);
      const client = new S3Client({ endpoint, forcePathStyle: true });
      for (const name of [BUCKET, 'other']) await client.send(new CreateBucketCommand({ Bucket: name }));
      for (const key of ['parts/one.png', 'ünder/two (1).png', 'three.png']) {
        await client.send(new PutObjectCommand({ Bucket: BUCKET, Key: key, Body: bytes }));
      }
      const large = Buffer.alloc(bytes.length + 1, 1);
      await client.send(new PutObjectCommand({ Bucket: BUCKET, Key: 'large.png', Body: large }));
      await client.send(new PutObjectCommand({ Bucket: 'other', Key: 'one.png', Body: bytes }));
      client.destroy();

      const at = (key: string, bucket = BUCKET, hash = digest): Submission => ({
        file: `s3://${bucket}/${key}`,
        sha256: hash,
        reference: { kind: 's3', bucket, key },
      });
      const refusals: [Submission, RegExp][] = [
        [at('three.png', BUCKET, sha256('another')), /differs from the submitted one/],
        [at('gone.png', BUCKET, sha256('gone')), /s3:\/\/line-7\/gone\.png: NoSuchKey/],
        [at('one.png', 'nowhere', sha256('nowhere')), /s3:\/\/nowhere\/one\.png: NoSuchBucket/],
        [at('one.png', 'other', sha256('not allowed')), /bucket other is not allowed/],
        [at('large.png', BUCKET, sha256(large)), /more than \d+/],
      ];
      const broker = new Broker(await freePort(), folder);
      await broker.start();
      const scored: number[] = [];
      const scorer = stubScorer(0, () => scored.push(1));
      const policy = { buckets: [BUCKET, 'nowhere'], s3Endpoint: endpoint, maxBytes: bytes.length };
      const worker = await startWorker({ redis: broker.url, scorer, concurrency: 1, ...policy });
      try {
        const submissions = [
          at('parts/one.png'),
          ...refusals.map(([submission]) => submission),
          at('ünder/two (1).png'),
        ];
        const run = await submitRun(submissions, { redis: broker.url, model: STUB_MODEL, seed: 1 });
        const results: RunResult[] = [];
        const waiting = { redis: broker.url, wait: true, signal: AbortSignal.timeout(HANG_GUARD_MS) };
        for await (const result of runResults(run, waiting)) results.push(result);
        for (const result of [results[0], results.at(-1)]) {
          assert.ok(result?.status === 'done', JSON.stringify(result));
          assert.equal(result.score, stubScore(bytes));
        }
        for (const [i, [, reason]] of refusals.entries()) {
          const result = results[i + 1]!;
          assert.ok(result.status === 'failed', result.status);
          assert.match(result.error, reason);
        }
        assert.equal(scored.length, 1, 'the second has the same image: its result is there');
        // Reads a key with spaces and non-ASCII letters instead of reusing the first result.
        const again = await submitRun([at('ünder/two (1).png')], {
          redis: broker.url,
          model: STUB_MODEL,
          seed: 2,
        });
        for await (const result of runResults(again, waiting))
          assert.equal(result.status, 'done', JSON.stringify(result));
        assert.equal(scored.length, 2);
      } finally {
        await worker.close();
        await broker.kill();
      }
    }));
});
