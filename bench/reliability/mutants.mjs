// Damaged images: each is refused or scored, none hurts the next one.
import { setTimeout as sleep } from 'node:timers/promises';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { root } from './record.mjs';
import { golden, score, serving } from './serving.mjs';

const IMAGES = ['gear-good.png', 'capsule-crack.jpg', 'gravel-blob.webp'];

/** Bytes overwritten, cut off, doubled or swapped; a linear congruential generator, so that a seed is an image. */
function mutate(bytes, seed) {
  let state = seed >>> 0;
  const random = (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const mutant = Buffer.from(bytes);
  const early = random(2) === 0 ? Math.min(200, mutant.length) : mutant.length; // headers are where decoders differ
  for (let i = random(16); i >= 0; i--) mutant[random(early)] = random(256);
  switch (random(4)) {
    case 0:
      return mutant.subarray(0, 1 + random(mutant.length));
    case 1:
      return Buffer.concat([mutant, mutant.subarray(random(mutant.length))]);
    case 2:
      return Buffer.concat([
        mutant.subarray(0, random(mutant.length)),
        mutant.subarray(random(mutant.length)),
      ]);
    default:
      return mutant;
  }
}

export async function run({ short }) {
  const count = short ? 90 : 2000;
  const images = await Promise.all(IMAGES.map((name) => readFile(path.join(root, 'examples', name))));
  const reference = await golden();
  const { result, exit } = await serving(['--rate-limit', '1000000000'], async ({ url, ended }) => {
    const codes = {};
    for (let i = 0; i < count; i++) {
      const mutant = mutate(images[i % images.length], i);
      const answer = await score(url, mutant);
      const problem = await answer.json();
      const key = answer.ok ? '200' : `${answer.status} ${problem.code}`;
      codes[key] = (codes[key] ?? 0) + 1;
      if (ended()) throw new Error(`The server ended at mutant ${i}`);
    }
    await sleep(10);
    const clean = await (await score(url, reference.bytes, `?seed=${reference.seed}`)).json();
    return { codes, clean: clean.score };
  });
  const { codes, clean } = result;
  const difference = Math.abs(clean - reference.score) / reference.score;
  return {
    figures: { mutants: count, ...codes, 'golden score afterwards, relative difference': difference },
    expectations: [
      [
        'every answer is 200 or 4xx',
        Object.keys(codes).every((code) => code === '200' || code.startsWith('4')),
      ],
      [
        'some were refused as damaged and some scored',
        '422 ERR_DIAD_IMAGE_DECODE' in codes && '200' in codes,
      ],
      ['a clean image then has the golden score (1e-5 relative)', difference <= 1e-5],
      ['SIGTERM ends it with code 0', exit === 0],
    ],
  };
}
