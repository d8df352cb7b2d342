// Scores concurrently in two worker threads and the main thread; results must agree to 1e-5, because batches
// round differently.
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { fileURLToPath } from 'node:url';
import { Diad } from 'diad';

async function scoreOnce(file) {
  const diad = await Diad.load();
  const { score } = await diad.score(readFileSync(file));
  const { source } = diad.info.libtorch;
  await diad.close();
  return { score, source };
}

function scoreInWorker(file) {
  return new Promise((resolve, reject) => {
    let answer;
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: file });
    worker.once('message', (message) => (answer = message));
    worker.once('error', reject);
    worker.once('exit', (code) =>
      code === 0 ? resolve(answer) : reject(new Error(`worker ended with ${code}`)),
    );
  });
}

if (isMainThread) {
  const file = process.argv[2];
  const [main, ...others] = await Promise.all([scoreOnce(file), scoreInWorker(file), scoreInWorker(file)]);
  if (others.some(({ score }) => !(Math.abs(score - main.score) <= 1e-5 * main.score)))
    throw new Error(`threads disagree: ${JSON.stringify([main, ...others])}`);
  process.stdout.write(`${JSON.stringify({ ...main, node: process.versions.node })}\n`);
} else {
  parentPort.postMessage(await scoreOnce(workerData));
}
