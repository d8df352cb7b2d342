// A watch with a stub engine that runs until killed: node --import tsx test/support/watch-process.ts FOLDER JSONL.
import process from 'node:process';
import { jsonlSink, watch } from '../../lib/watch/index.js';
import { stubScorer } from './queue-support.js';

const [folder = '', jsonl = ''] = process.argv.slice(2);
await watch({ folder, scorer: stubScorer(20), sinks: [await jsonlSink(jsonl)], settleMs: 200 });
process.stdout.write('watching\n');
