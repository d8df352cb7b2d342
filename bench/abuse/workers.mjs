// worker_threads that load, score and are terminated at random moments; at the end an addon used in workers only.
import { Worker } from 'node:worker_threads';
import {
  library,
  libraryUrl,
  megabytes,
  nodeChild,
  readTestImage,
  randomNumbers,
  rss,
  sleep,
  within,
} from './harness.mjs';

export const abuse =
  'worker_threads: load, score, terminate at random moments, 4 at once; addon used only in a worker';
export const mustHold = "no crash, main thread's scores golden, RSS growth over the second half < 40 MB";
export const amounts = { short: 8, full: 500 };

const MOST_GROWTH_MB = 40;
const AT_ONCE = 4;
const SOURCE = `import { parentPort, workerData } from 'node:worker_threads';
  import { Diad } from ${JSON.stringify(libraryUrl)};
  parentPort.postMessage('up');
  const diad = await Diad.load(undefined, { warmup: false });
  for (let seed = 0; ; seed++) {
    await Promise.all([diad.score(workerData, { onStep: () => {} }), diad.score(workerData, { seed })]);
    parentPort.postMessage('scored');
  }`;

export async function run(count) {
  const { Diad } = await library();
  const random = randomNumbers(2);
  const failures = [];
  const image = readTestImage();
  const diad = await Diad.load();
  const golden = (await diad.score(image)).score;
  let half = rss();
  for (let done = 0; done < count; done += AT_ONCE) {
    if (done <= count / 2) half = rss();
    const workers = Array.from({ length: AT_ONCE }, () => {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(SOURCE)}`), {
        workerData: image,
      });
      worker.on('error', (error) => failures.push(`worker: ${error.message}`));
      return worker;
    });
    await Promise.all(
      workers.map(async (worker) => {
        await sleep(random() * 1200);
        await within(20_000, worker.terminate(), 'terminating a worker');
      }),
    );
    const { score } = await diad.score(image);
    if (score !== golden)
      failures.push(`after ${done + AT_ONCE} workers the score is ${score}, not ${golden}`);
  }
  const growth = megabytes(rss() - half);
  if (count >= 100 && growth > MOST_GROWTH_MB)
    failures.push(`RSS grew by ${growth.toFixed(1)} MB in the second half`);
  await diad.close();
  const alone = await nodeChild(
    `import { Worker } from 'node:worker_threads';
     for (let i = 0; i < 3; i++) {
       const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(SOURCE)})), { workerData: readFileSync(process.argv[1]) });
       await new Promise((resolve) => worker.on('message', (m) => m === 'scored' && resolve()));
       await worker.terminate();
     }
     console.log('fine');`.replace(
      'process.argv[1]',
      JSON.stringify((await import('./harness.mjs')).imageFile),
    ),
  );
  if (alone.code !== 0 || alone.stdout.trim() !== 'fine')
    failures.push(`only in workers: code ${alone.code}, ${alone.signal}: ${alone.stderr.slice(-300)}`);
  return {
    measured: `${count} workers terminated, ${failures.length} bad; RSS growth of the second half ${growth.toFixed(1)} MB`,
    failures,
  };
}
