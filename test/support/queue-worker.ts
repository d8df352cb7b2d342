// A worker process with a stub engine: node --import tsx test/support/queue-worker.ts REDIS ROOT OPTIONS; prints a
// line when it is running.
import process from 'node:process';
import { startWorker } from '../../lib/queue/index.js';
import { stubScorer } from './queue-support.js';

const [redis = '', root = '', text = '{}'] = process.argv.slice(2);
const { delayMs, lockMs, maxStalls } = JSON.parse(text) as {
  delayMs: number;
  lockMs: number;
  maxStalls: number;
};
const worker = await startWorker({
  redis,
  root,
  scorer: stubScorer(delayMs),
  lockMs,
  maxStalls,
  silentMs: 2000,
});
process.stdout.write('working\n');
process.once('SIGTERM', () => void worker.close().then(() => process.exit(0)));
