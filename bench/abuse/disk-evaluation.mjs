// kill -9 and full disks while an evaluation writes scores, tables and report, while a calibration is replaced, while a bundle is exported.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { child, baseBundle, python, root } from './harness.mjs';

const IMAGES = 6; // two of them defective
const SIDE = 32;

const moduleUrl = (...names) => JSON.stringify(pathToFileURL(path.join(root, 'dist', ...names)).href);

/** A small data set of MVTec-AD's layout. */
export async function writeDataSet(folder) {
  const { default: sharp } = await import('sharp');
  const image = (level) =>
    sharp({
      create: { width: SIDE, height: SIDE, channels: 3, background: { r: level, g: level, b: level } },
    });
  const save = async (file, pixels) => {
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, await pixels.png().toBuffer());
  };
  await save(path.join(folder, 'bolt', 'train', 'good', '000.png'), image(90));
  for (let i = 0; i < IMAGES; i++) {
    const defect = i < 2 ? 'crack' : 'good';
    await save(path.join(folder, 'bolt', 'test', defect, `00${i}.png`), image(100 + 10 * i));
    if (i < 2)
      await save(
        path.join(folder, 'bolt', 'ground_truth', defect, `00${i}_mask.png`),
        image(255).toColorspace('b-w'),
      );
  }
}

// The engine is a stub whose scores follow from the images: the files are what is tried here, and most of the time must go into them.
const evaluating = (data, out, once) => `
  import { evaluateDataSet, readDataSet, writeReport } from ${moduleUrl('evaluation', 'index.js')};
  const side = ${SIDE};
  const info = { bundle: { name: 'stub', digest: 'd'.repeat(64), imageSize: side, path: ${JSON.stringify(baseBundle)} }, device: 'cpu', precision: 'float32' };
  const stub = {
    info,
    score: async (bytes) => {
      const level = [...bytes].reduce((sum, byte) => sum + byte, 0) / bytes.length;
      const data = Float32Array.from({ length: side * side }, (_, i) => level + i / 1e4);
      return { score: level, imageSize: { width: side, height: side }, map: { data }, timings: { computeMs: 1 } };
    },
    reconstruct: async ({ data, width, height }) => {
      const { default: sharp } = await import('sharp');
      return { image: await sharp(data, { raw: { width, height, channels: 3 } }).png().toBuffer() };
    },
  };
  const data = await readDataSet(${JSON.stringify(data)});
  for (let round = 0; ; round++) {
    const evaluation = await evaluateDataSet(stub, data, { out: ${JSON.stringify(out)}, resume: true, mode: 'exact' });
    await writeReport(evaluation, stub, 0n);
    await evaluation.scores.close();
    process.stdout.write('round\\n');
    if (${once}) break;
  }`;

const node = (source, wrapper = []) => [...wrapper, process.execPath, '--input-type=module', '-e', source];

/** What of an evaluation's files is not whole. */
function broken(out) {
  const wrong = [];
  const text = (name) =>
    existsSync(path.join(out, name)) ? readFileSync(path.join(out, name), 'utf8') : undefined;
  const results = text('results.json');
  try {
    if (results !== undefined && JSON.parse(results).classes.bolt.images !== IMAGES)
      wrong.push('results.json counts other images');
  } catch (error) {
    wrong.push(`results.json: ${error.message}`);
  }
  const rows = (name) => text(name)?.trimEnd().split('\n').length;
  if (![undefined, 1 + 2].includes(rows('per_class.csv')))
    wrong.push(`per_class.csv has ${rows('per_class.csv')} lines`);
  if (![undefined, 1 + IMAGES].includes(rows('per_image.csv')))
    wrong.push(`per_image.csv has ${rows('per_image.csv')} lines`);
  const report = text('index.html');
  if (report !== undefined && !report.endsWith('</html>\n')) wrong.push('index.html breaks off');
  return wrong;
}

const undated = (out) =>
  readFileSync(path.join(out, 'results.json'), 'utf8').replace(/"created": "[^"]*"/, '');

/** An evaluation killed at a random moment leaves whole files, and goes on to the result of one that nobody disturbed. */
export async function killedWhileEvaluating(folder, random, failures) {
  const data = path.join(folder, 'data');
  await writeDataSet(data);
  const [out, calm] = [path.join(folder, 'out'), path.join(folder, 'calm')];
  await child(node(evaluating(data, calm, true)));
  const late = random() < 0.5; // in the first round, with scores half written, or in one that replaces tables and report
  const ended = await child(node(evaluating(data, out, false)), 60_000, (running) => {
    const kill = (most) => setTimeout(() => running.kill('SIGKILL'), random() * most);
    if (late) running.stdout.once('data', () => kill(200));
    else setTimeout(() => kill(400), 250);
  });
  if (ended.signal !== 'SIGKILL') failures.push(`evaluating: ended by itself: ${ended.stderr.slice(-300)}`);
  for (const wrong of broken(out)) failures.push(`evaluating, killed: ${wrong}`);
  const resumed = await child(node(evaluating(data, out, true)));
  if (resumed.code !== 0)
    failures.push(`evaluating, resumed: code ${resumed.code}: ${resumed.stderr.slice(-300)}`);
  else if (undated(out) !== undated(calm))
    failures.push('evaluating, resumed: other results than those of an undisturbed run');
}

/** An evaluation on a disk that is full from some size on: an error, and the older files as they were. */
export async function fullWhileEvaluating(folder, failures) {
  const data = path.join(folder, 'data');
  const out = path.join(folder, 'out');
  const before = readFileSync(path.join(out, 'index.html'), 'utf8');
  const ended = await child(node(evaluating(data, out, true), ['prlimit', '--fsize=3000', '--']));
  if (ended.signal !== null || !/EFBIG/.test(ended.stderr)) {
    failures.push(
      `evaluating, full disk: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-300)}`,
    );
  }
  for (const wrong of broken(out)) failures.push(`evaluating, full disk: ${wrong}`);
  if (readFileSync(path.join(out, 'index.html'), 'utf8') !== before)
    failures.push('evaluating, full disk: another report');
}

/** A bundle's calibration replaced over and over, killed: what is there is one of those that were written. */
export async function killedWhileCalibrating(folder, random, failures) {
  const bundle = path.join(folder, 'calibrated');
  mkdirSync(bundle);
  const source = `import { writeCalibration } from ${moduleUrl('evaluation', 'index.js')};
    for (let i = 0; ; i++) {
      const images = Array.from({ length: (i * 797) % 3000 }, (_, k) => 'p' + k);
      await writeCalibration(${JSON.stringify(bundle)}, { threshold: images.length + 0.5, method: 'quantile', targetFpr: 0.01, images });
      process.stdout.write('.');
    }`;
  const ended = await child(node(source), 60_000, (running) => {
    running.stdout.once('data', () => setTimeout(() => running.kill('SIGKILL'), random() * 200));
  });
  if (ended.signal !== 'SIGKILL') failures.push(`calibrating: ended by itself: ${ended.stderr.slice(-300)}`);
  try {
    const { threshold, images } = JSON.parse(readFileSync(path.join(bundle, 'calibration.json'), 'utf8'));
    if (threshold !== images.length + 0.5) failures.push('calibrating: a mixture of two calibrations');
  } catch (error) {
    failures.push(`calibrating: ${error.message}`);
  }
}

/** The exporter on a disk that is full: an OSError in words, the older bundle untouched, nothing left lying about. */
export async function fullWhileExporting(folder, failures) {
  const out = path.join(folder, 'exported', 'bundle');
  cpSync(baseBundle, out, { recursive: true });
  const before = readFileSync(path.join(out, 'manifest.sha256'), 'utf8');
  const script = `
import sys
sys.path.insert(0, ${JSON.stringify(path.join(root, 'python'))})
from diad_reference.config import preset
from diad_reference.export import write_bundle
from diad_reference.models.diad import random_model
try:
    write_bundle(random_model(preset("tiny"), 3), ${JSON.stringify(out)}, golden=False)
except OSError as error:
    print("OSError:", error)
    sys.exit(3)
`;
  const ended = await child(['prlimit', '--fsize=300000', '--', python, '-W', 'ignore', '-c', script]);
  if (ended.code !== 3)
    failures.push(
      `exporting, full disk: code ${ended.code}, signal ${ended.signal}: ${ended.stderr.slice(-300)}`,
    );
  if (readFileSync(path.join(out, 'manifest.sha256'), 'utf8') !== before)
    failures.push('exporting, full disk: another bundle');
  const left = readdirSync(path.dirname(out)).filter((name) => name !== 'bundle');
  if (left.length > 0) failures.push(`exporting, full disk: ${left.join(', ')} left behind`);
}
