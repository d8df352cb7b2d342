// kill -9 and full disks while files are replaced or appended to, while bundles are exported, and in complete
// runs (disk-evaluation.mjs).
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  fullWhileEvaluating,
  fullWhileExporting,
  killedWhileCalibrating,
  killedWhileEvaluating,
} from './disk-evaluation.mjs';
import { child, nodeChild, python, randomNumbers, root } from './harness.mjs';

export const abuse = 'kill -9 and a full disk while writing results, calibration, report, journal and bundle';
export const mustHold =
  'the old or the new file is complete; a killed evaluation resumes to the same result; ' +
  'a full disk is an error, not a crash';
export const amounts = { short: 2, full: 50 }; // of each kind

const durable = pathToFileURL(path.join(root, 'dist', 'io', 'atomic-file.js')).href;

/** Whether content is complete: its first line is the length of the rest. */
const whole = (text) => {
  const [length, body = ''] = text.split('\n', 2);
  return Number(length) === body.length && /^(.)\1*$/.test(body);
};

/** Kills a process at a random time while it replaces a file with lib/io/atomic-file.ts, which all writers use. */
async function killedWhileReplacing(folder, random, failures) {
  const file = path.join(folder, 'results.json');
  writeFileSync(file, '1\nz');
  const source = `import { writeAtomic } from ${JSON.stringify(durable)};
    process.stdout.write('up');
    for (let i = 0; ; i++) {
      const body = 'abcdefgh'[i % 8].repeat(1 + (i * 7919) % 3000000);
      await writeAtomic(${JSON.stringify(file)}, body.length + '\\n' + body);
    }`;
  const ended = await child([process.execPath, '--input-type=module', '-e', source], 60_000, (running) => {
    running.stdout.once('data', () => setTimeout(() => running.kill('SIGKILL'), random() * 200));
  });
  if (ended.signal !== 'SIGKILL') failures.push(`replacing: exited on its own: ${ended.stderr.slice(-200)}`);
  if (!whole(readFileSync(file, 'utf8')))
    failures.push('replacing: a half-written file under its final name');
}

/** Kills a process while it appends to a journal. The journal must have all reported lines, undamaged. */
async function killedWhileAppending(folder, random, failures) {
  const file = path.join(folder, 'journal.jsonl');
  const source = `import { JsonLines } from ${JSON.stringify(durable)};
    const { file } = await JsonLines.open(${JSON.stringify(file)});
    for (let i = 0; ; i++) {
      await file.append({ i, text: 'x'.repeat((i * 131) % 5000) });
      process.stdout.write(i + '\\n');
    }`;
  let killing = false;
  const ended = await child([process.execPath, '--input-type=module', '-e', source], 60_000, (running) => {
    running.stdout.on('data', () => {
      if (!killing) setTimeout(() => running.kill('SIGKILL'), random() * 200);
      killing = true;
    });
  });
  const reported = Number(ended.stdout.trim().split('\n').at(-1));
  const { JsonLines } = await import(durable);
  const { file: again, lines } = await JsonLines.open(file);
  await again.close();
  if (!(lines.length > reported))
    failures.push(`appending: ${reported + 1} lines were reported, ${lines.length} were found`);
  if (lines.some((line, i) => line.i !== i)) failures.push('appending: a line is missing or damaged');
}

/** Simulates a full disk with RLIMIT_FSIZE: a write fails halfway. */
async function fullDisk(folder, failures) {
  const file = path.join(folder, 'calibration.json');
  writeFileSync(file, '1\nz');
  const source = `import { writeAtomic, JsonLines } from ${JSON.stringify(durable)};
    const body = 'a'.repeat(500000);
    const text = body.length + '\\n' + body;
    const codeOf = (error) => error.code;
    const first = await writeAtomic(${JSON.stringify(file)}, text).then(() => 'written', codeOf);
    const { file: journal } = await JsonLines.open(${JSON.stringify(path.join(folder, 'full.jsonl'))});
    await journal.append({ i: 0 });
    const second = await journal.append({ text: body }).then(() => 'written', codeOf);
    console.log(first, second);`;
  const ended = await nodeChild(source, { wrapper: ['prlimit', '--fsize=100000', '--'], prelude: false });
  if (ended.code !== 0 || ended.stdout.trim() !== 'EFBIG EFBIG') {
    failures.push(
      `full disk: code ${ended.code}, signal ${ended.signal}: ${ended.stdout}${ended.stderr.slice(-300)}`,
    );
  }
  if (readFileSync(file, 'utf8') !== '1\nz') failures.push('full disk: the old file is lost');
  if (readdirSync(folder).some((name) => name.startsWith('.calibration')))
    failures.push('full disk: a temporary file remains');
  const { JsonLines } = await import(durable);
  const { file: journal, lines } = await JsonLines.open(path.join(folder, 'full.jsonl'));
  await journal.close();
  if (lines.length !== 1) failures.push(`full disk: ${lines.length} journal lines instead of 1`);
}

/** Redirects the output of a command to /dev/full. */
async function fullOutput(failures) {
  const cli = path.join(root, 'dist', 'cli', 'main.js');
  const ended = await child(['sh', '-c', `"${process.execPath}" "${cli}" info > /dev/full`]);
  if (ended.signal !== null || ended.code === 0)
    failures.push(`diad info > /dev/full: code ${ended.code}, signal ${ended.signal}`);
}

/** Kills the bundle exporter while it writes. The folder must be the complete old or new bundle. */
async function killedWhileExporting(folder, random, failures) {
  const out = path.join(folder, 'bundle');
  const script = `
import sys, torch
sys.path.insert(0, ${JSON.stringify(path.join(root, 'python'))})
from pathlib import Path
from diad_reference.export.bundle import _put_in_place, seal, file_digest
import json, tempfile
print("up", flush=True)
out = Path(${JSON.stringify(out)})
i = 0
while True:
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    (staging / "decoder.pt").write_bytes(bytes([i % 256]) * 2000000)
    seal(staging, {"decoder": file_digest(staging / "decoder.pt")})
    _put_in_place(staging, out)
    print('placed', flush=True)
    i += 1
`;
  const ended = await child([python, '-W', 'ignore', '-c', script], 120_000, (running) => {
    running.stdout.once('data', () => setTimeout(() => running.kill('SIGKILL'), 50 + random() * 400));
  });
  if (ended.signal !== 'SIGKILL') failures.push(`exporting: exited on its own: ${ended.stderr.slice(-300)}`);
  // renameat2 exchanges the folders atomically: after the first bundle, a complete bundle always exists.
  if (!existsSync(out)) {
    if (ended.stdout.includes('placed')) failures.push('exporting: the bundle is missing');
    return;
  }
  const { createHash } = await import('node:crypto');
  const digest = (file) => createHash('sha256').update(readFileSync(file)).digest('hex');
  const at = (name) => path.join(out, name);
  const manifest = JSON.parse(readFileSync(at('manifest.json'), 'utf8'));
  const isWhole =
    digest(at('decoder.pt')) === manifest.decoder &&
    `${digest(at('manifest.json'))}\n` === readFileSync(at('manifest.sha256'), 'utf8');
  if (!isWhole) failures.push('exporting: an incomplete bundle under its final name');
}

export async function run(count) {
  const random = randomNumbers(8);
  const failures = [];
  const scratch = mkdtempSync(path.join(os.tmpdir(), 'diad-disk-'));
  try {
    for (let i = 0; i < count; i++) {
      const folder = path.join(scratch, String(i));
      mkdirSync(folder);
      await killedWhileReplacing(folder, random, failures);
      await killedWhileAppending(folder, random, failures);
      await fullDisk(folder, failures);
      await killedWhileExporting(folder, random, failures);
      await killedWhileCalibrating(folder, random, failures);
      await killedWhileEvaluating(folder, random, failures);
      await fullWhileEvaluating(folder, failures);
      if (i === 0) await fullWhileExporting(folder, failures);
      rmSync(folder, { recursive: true, force: true });
    }
    await fullOutput(failures);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return { measured: `${5 * count} kills and ${2 * count + 1} full disks, ${failures.length} bad`, failures };
}
