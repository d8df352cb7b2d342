// diad against the reference at one model size, interleaved A B A B in one run.
import { diadContender, referenceContender } from './contenders.mjs';
import { median, spread } from './statistics.mjs';

const STAGES = ['resizeMs', 'encodeMs', 'denoiseMs', 'decodeMs', 'extractMs', 'mapMs'];

/** Rounds of one image, then of each batch size; ratios are taken round by round. */
async function interleave(contenders, n, rounds, warmUp) {
  const times = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]));
  const timings = [];
  for (let round = -warmUp; round < rounds; round++) {
    for (const [name, contender] of Object.entries(contenders)) {
      const measured = await contender.time(n);
      if (round < 0) continue;
      times[name].push(measured.ms / n);
      if (measured.timings) timings.push({ ...measured.timings, wallMs: measured.ms });
    }
  }
  return { times, timings };
}

/** diad in another precision beside the reference as published, which scores one image at a time; the other contenders make room. */
async function inPrecision(precision, contenders, bundle, { rounds, warmUp, device, batches }) {
  for (const name of Object.keys(contenders).filter((name) => name !== 'as-published'))
    contenders[name].stop();
  const { 'as-published': published } = contenders;
  contenders.diad = await diadContender(bundle, { device, precision, maxBatch: Math.max(1, ...batches) });
  const { times } = await interleave({ diad: contenders.diad, published }, 1, rounds, warmUp);
  const together = [];
  for (const n of batches.filter((size) => size > 1)) {
    const { diad } = (await interleave({ diad: contenders.diad }, n, Math.max(2, rounds >> 1), 1)).times;
    together.push({ n, imageMs: spread(diad) });
  }
  const bestMs = Math.min(median(times.diad), ...together.map(({ imageMs }) => imageMs.median));
  return {
    imageMs: spread(times.diad),
    publishedMs: spread(times.published),
    speedup: median(times.published.map((ms, i) => ms / times.diad[i])),
    ...(together.length === 0
      ? {}
      : { batches: together, saturatedSpeedup: median(times.published) / bestMs, bestMs }),
    peakMiB: await contenders.diad.peakMiB(),
  };
}

/**
 * @param config - name of the reference's preset, for example 'small'
 * @param bundle - folder of a bundle of the same sizes
 * @param modes - of the reference: 'as-published' always, 'lossless' and 'compiled' where they are to run
 * @param precisions - others than float32 that are compared with the reference as published (in float32), once the others are gone
 * @returns times an image in milliseconds, ratios, stages, FLOP/s and memory
 */
export async function compare(
  config,
  bundle,
  { modes, batches, rounds, warmUp, device = 'cpu', precisions = [] },
) {
  const contenders = { diad: await diadContender(bundle, { device, maxBatch: Math.max(...batches) }) };
  for (const mode of modes) contenders[mode] = await referenceContender(config, mode, device);
  try {
    const { ready } = contenders.diad;
    const gemm = [];
    const one = await interleave(contenders, 1, rounds, warmUp);
    gemm.push(await contenders['as-published'].gemm());
    const sizes = [];
    for (const n of batches.filter((size) => size > 1)) {
      // The published program scores one image at a time, so that is what its batch costs.
      const { diad, lossless } = contenders;
      const { times } = await interleave(
        { diad, ...(lossless && { lossless }) },
        n,
        Math.max(2, rounds >> 1),
        1,
      );
      sizes.push({
        n,
        imageMs: Object.fromEntries(Object.entries(times).map(([name, values]) => [name, spread(values)])),
      });
    }
    gemm.push(await contenders['as-published'].gemm());
    const peakMiB = {};
    for (const [name, contender] of Object.entries(contenders)) peakMiB[name] = await contender.peakMiB();

    const faster = {};
    // Together they are timed where they are meant to be fastest.
    const options = { rounds, warmUp, device, batches: device === 'cpu' ? [] : batches };
    for (const precision of precisions)
      faster[precision] = await inPrecision(precision, contenders, bundle, options);

    const { diad, ...references } = one.times;
    const gflop = {
      published: contenders['as-published'].ready.gflop,
      needed: contenders.lossless ? contenders.lossless.ready.gflop : undefined,
    };
    const best = Math.min(median(diad), ...sizes.map((size) => size.imageMs.diad.median));
    return {
      config,
      device,
      threads: ready.threads,
      imageMs: Object.fromEntries(Object.entries(one.times).map(([name, values]) => [name, spread(values)])),
      speedup: Object.fromEntries(
        Object.entries(references).map(([name, values]) => [
          name,
          median(values.map((ms, i) => ms / diad[i])),
        ]),
      ),
      saturatedSpeedup: median(references['as-published']) / best,
      stagesMs: Object.fromEntries(
        STAGES.map((stage) => [stage, median(one.timings.map((timing) => timing[stage]))]),
      ),
      bindingShare: median(one.timings.map(({ wallMs, computeMs }) => (wallMs - computeMs) / wallMs)),
      batches: sizes,
      gflop,
      gflopPerSecond: gflop.needed && (gflop.needed / median(diad)) * 1000,
      gemmGflopPerSecond: Math.max(...gemm),
      weightsMiB: ready.sizeBytes / 2 ** 20,
      loadMs: ready.loadMs,
      peakMiB,
      ...faster,
    };
  } finally {
    for (const contender of Object.values(contenders)) contender.stop();
  }
}
