// Formats the results of `npm run bench` for docs/benchmarks.md.

const ms = ({ median, min, max }) => `${round(median)} (${round(min)} to ${round(max)})`;
const round = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const gib = (mib) => `${(mib / 1024).toFixed(2)} GiB`;
const row = (cells) => `| ${cells.join(' | ')} |`;
const table = (head, rows) => [row(head), row(head.map(() => '---')), ...rows.map(row)].join('\n');

const times = (ratio) => `${ratio.toFixed(2)}x`;
const overPublished = (size) => size?.speedup['as-published'];

/** Targets for CPUs: description, bound as text, value from a machine's results, format, check. */
const TARGETS = [
  [
    'published size, one image, speedup over the published program',
    '>= 3.2x',
    ({ sizes }) => overPublished(sizes.published),
    times,
    (x) => x >= 3.2,
  ],
  [
    'base bundle, one image, speedup over the published program',
    '>= 4x',
    ({ sizes }) => overPublished(sizes.small),
    times,
    (x) => x >= 4,
  ],
  [
    'base bundle, saturated, speedup over the published program',
    '>= 4x',
    ({ sizes }) => sizes.small?.saturatedSpeedup,
    times,
    (x) => x >= 4,
  ],
  [
    'overhead of Node, published size',
    '<= 1 %',
    ({ sizes }) => sizes.published?.bindingShare,
    percent,
    (x) => x <= 0.01,
  ],
  [
    'overhead of Node, base bundle',
    '<= 3 %',
    ({ sizes }) => sizes.small?.bindingShare,
    percent,
    (x) => x <= 0.03,
  ],
  [
    'base bundle, process start to first score',
    '<= 1.5 s',
    ({ coldStartMs }) => coldStartMs?.median,
    (x) => `${(x / 1000).toFixed(2)} s`,
    (x) => x <= 1500,
  ],
  [
    'published size, peak memory relative to the published program',
    '< 1',
    ({ sizes: { published } }) => published && published.peakMiB.diad / published.peakMiB['as-published'],
    (x) => x.toFixed(3),
    (x) => x < 1,
  ],
  [
    'published size, peak memory relative to the weights',
    '<= 1.25',
    ({ sizes: { published } }) => published && published.peakMiB.diad / published.weightsMiB,
    (x) => x.toFixed(3),
    (x) => x <= 1.25,
  ],
];

// Lower bound for one image on an H200: 3,288 GFLOP at 790 TFLOP/s.
const H200_LIMIT_MS = 4.2;
const bestHalf = (sizes, key, best) => {
  const values = ['bfloat16', 'float16']
    .map((precision) => sizes.published?.[precision]?.[key])
    .filter((value) => value !== undefined);
  return values.length === 0 ? undefined : best(...values);
};

const CUDA_TARGETS = [
  [
    'published size in half precision, one image, speedup over the published program in float32',
    '>= 10x',
    ({ sizes }) => bestHalf(sizes, 'speedup', Math.max),
    times,
    (x) => x >= 10,
  ],
  [
    'published size in half precision, saturated, speedup over the published program in float32',
    '>= 30x',
    ({ sizes }) => bestHalf(sizes, 'saturatedSpeedup', Math.max),
    times,
    (x) => x >= 30,
  ],
  [
    `utilization when saturated: lower bound of an H200 (${H200_LIMIT_MS} ms) over the time per image`,
    '>= 50 %',
    ({ sizes }) => {
      const ms = bestHalf(sizes, 'bestMs', Math.min);
      return ms && H200_LIMIT_MS / ms;
    },
    percent,
    (x) => x >= 0.5,
  ],
];

function targetTable(rows, machines, nameOf) {
  const cell = (value, written, enough) =>
    value === undefined ? 'not measured' : `${written(value)}${enough(value) ? '' : ', missed'}`;
  return table(
    ['', 'target', ...machines.map(nameOf)],
    rows.map(([what, bound, valueOf, written, enough]) => [
      what,
      bound,
      ...machines.map((results) => cell(valueOf(results), written, enough)),
    ]),
  );
}

/** Formats the targets and the results of each machine. */
function targets(machines) {
  const cpus = machines.filter(({ machine }) => machine.device === undefined);
  const devices = machines.filter(({ machine }) => machine.device !== undefined);
  return [
    '### Targets',
    'float32 on two cores. "What bounds it" explains missed targets.',
    targetTable(TARGETS, cpus, ({ machine }) => machine.cpu),
    'On an H200 (`npm run bench -- --device cuda`):',
    devices.length === 0
      ? targetTable(CUDA_TARGETS, [{ sizes: {} }], () => 'no CUDA device available')
      : targetTable(CUDA_TARGETS, devices, ({ machine }) => `${machine.cpu}, ${machine.device}`),
  ];
}

function speeds({ sizes }) {
  const reference = (size, mode) =>
    size.imageMs[mode] ? `${ms(size.imageMs[mode])}: ${size.speedup[mode].toFixed(2)}x` : 'not run';
  return table(
    [
      'size',
      'diad, ms per image',
      'as published',
      'lossless reference',
      'lossless reference, torch.compile',
      'saturated, speedup over as published',
      'commit',
    ],
    Object.values(sizes).map((size) => [
      size.config,
      ms(size.imageMs.diad),
      reference(size, 'as-published'),
      reference(size, 'lossless'),
      reference(size, 'compiled'),
      `${size.saturatedSpeedup.toFixed(2)}x`,
      size.commit,
    ]),
  );
}

function batches({ sizes }) {
  const rows = Object.values(sizes).flatMap((size) =>
    size.batches.map(({ n, imageMs }) => [
      size.config,
      n,
      ms(imageMs.diad),
      imageMs.lossless ? ms(imageMs.lossless) : 'not run',
      imageMs.lossless ? `${(imageMs.lossless.median / imageMs.diad.median).toFixed(2)}x` : '',
    ]),
  );
  return table(['size', 'batch', 'diad, ms per image', 'lossless reference', 'ratio'], rows);
}

function stages({ sizes }) {
  const names = ['resize', 'encode', 'denoise', 'decode', 'extract', 'map'];
  return table(
    ['size', ...names.map((name) => (name === 'denoise' ? 'denoise (10 steps)' : name)), 'binding'],
    Object.values(sizes).map((size) => [
      size.config,
      ...names.map((name) => round(size.stagesMs[`${name}Ms`])),
      percent(size.bindingShare),
    ]),
  );
}

function arithmetic({ sizes }) {
  return table(
    [
      'size',
      'GFLOP per image, as published',
      'GFLOP per image, needed',
      'GFLOP/s of diad',
      'GFLOP/s of a matrix product',
      'ratio',
      'peak memory, diad',
      'peak memory, as published',
      'weights',
    ],
    Object.values(sizes).map((size) => {
      const { published, needed } = size.gflop;
      const speed = size.gflopPerSecond;
      const known = needed !== undefined;
      return [
        size.config,
        round(published),
        known ? round(needed) : 'not counted',
        known ? round(speed) : '',
        round(size.gemmGflopPerSecond),
        known ? percent(speed / size.gemmGflopPerSecond) : '',
        gib(size.peakMiB.diad),
        gib(size.peakMiB['as-published']),
        gib(size.weightsMiB),
      ];
    }),
  );
}

/** Formats the results in lossy precisions. */
function precisions({ sizes }) {
  const rows = Object.values(sizes).flatMap((size) =>
    ['bfloat16', 'float16', 'int8']
      .filter((precision) => size[precision])
      .map((precision) => ({ config: size.config, precision, ...size[precision] })),
  );
  if (rows.length === 0) return [];
  return [
    'Lossy precisions (see docs/reference/accuracy.md), one image at a time:',
    table(
      ['size', 'precision', 'diad, ms per image', 'as published, float32', 'peak memory, diad'],
      rows.map(({ config, precision, imageMs, publishedMs, speedup, peakMiB }) => {
        return [config, precision, ms(imageMs), `${ms(publishedMs)}: ${speedup.toFixed(2)}x`, gib(peakMiB)];
      }),
    ),
  ];
}

const LISTED = 15; // number of operators in the table

/**
 * Formats the operators of one size, sorted by time, with sums of the others and of the time between them.
 */
function operators({ config, profile, gemmGflopPerSecond }) {
  const { computeMs, profiledMs, operators } = profile;
  const cells = (name, { calls, ms, gflop }) => {
    const speed = gflop ? gflop / (ms / 1000) : null;
    const arithmetic = speed
      ? [round(gflop), round(speed), percent(speed / gemmGflopPerSecond)]
      : ['', '', ''];
    return [name, calls === null ? '' : round(calls), round(ms), percent(ms / profiledMs), ...arithmetic];
  };
  const named = operators.slice(0, LISTED);
  const others = operators.slice(LISTED);
  const total = (key) => others.reduce((all, operator) => all + (operator[key] ?? 0), 0);
  const inside = operators.reduce((all, { ms }) => all + ms, 0);
  return [
    `Operators, ${config} (one image: ${round(computeMs)} ms, ${round(profiledMs)} ms with profiling; ` +
      '`diad-engine profile`):',
    table(
      ['operator', 'calls', 'ms', 'share of time', 'GFLOP', 'GFLOP/s', 'relative to a matrix product'],
      [
        ...named.map((operator) => cells(operator.operator, operator)),
        cells(`${others.length} others`, { calls: total('calls'), ms: total('ms'), gflop: null }),
        cells('between operators', { calls: null, ms: profiledMs - inside, gflop: null }),
      ],
    ),
  ];
}

function underLoad({ load, loadCommit, coldStartMs }) {
  const { saturated } = load;
  const rows = load.poisson.map((level) => [
    `${level.offeredPerSecond.toFixed(2)} per second (${(100 * level.share).toFixed(0)}%)`,
    level.images,
    round(level.latencyP50Ms),
    round(level.latencyP99Ms),
    round(level.queueP50Ms),
    round(level.computeP50Ms),
    level.meanBatch.toFixed(2),
  ]);
  return [
    `Process start to first score: ${ms(coldStartMs)} ms. Saturated: ` +
      `${saturated.imagesPerSecond.toFixed(1)} images/s over ${saturated.images} images; event-loop delay ` +
      `p99 ${saturated.eventLoopDelayP99Ms.toFixed(1)} ms; resident set ` +
      `${saturated.rssEarlyMiB.toFixed(0)} MiB early, ${saturated.rssLateMiB.toFixed(0)} MiB at the end ` +
      `(commit ${loadCommit}).`,
    '',
    table(
      [
        'random arrivals',
        'images',
        'latency p50, ms',
        'latency p99, ms',
        'queue p50, ms',
        'compute p50, ms',
        'mean batch',
      ],
      rows,
    ),
  ].join('\n');
}

/** Lists the skipped measurements of the published size, with reasons. */
function leftOut({ published }) {
  if (published === undefined) return {};
  return {
    ...(published.speedup.compiled
      ? {}
      : {
          'published size, torch.compile': 'it would need a fourth process with a copy of the weights',
        }),
    ...(published.batches.length > 0
      ? {}
      : { 'published size, batches': 'they would take longer than all other measurements together' }),
  };
}

function machineSection(results) {
  const { machine, date, commit } = results;
  const notRun = { ...results.notRun, ...leftOut(results.sizes) };
  return [
    `### ${machine.cpu}, ${machine.cores} cores${machine.device === undefined ? '' : `, ${machine.device}`}`,
    `Measured on ${date} with \`npm run bench\` (last with commit ${commit}; ${machine.memoryGiB} GiB; ` +
      `Node ${machine.node}). Milliseconds are medians (minimum to maximum).`,
    'One image at a time:',
    speeds(results),
    'Batches:',
    batches(results),
    'Time per stage, ms:',
    stages(results),
    'Arithmetic and memory:',
    arithmetic(results),
    ...precisions(results),
    ...Object.values(results.sizes)
      .filter(({ profile }) => profile)
      .flatMap(operators),
    ...(results.load ? ['Demo model under load:', underLoad(results)] : []),
    'Not run:',
    Object.entries(notRun)
      .map(([what, why]) => `- ${what}: ${why}`)
      .join('\n'),
  ];
}

/** Replaces the measured part of the page with targets and one section per machine. */
export function performancePage(page, machines) {
  const [start, end] = ['<!-- measured: npm run bench -->', '<!-- end of measured: npm run bench -->'];
  const from = page.indexOf(start) + start.length;
  const sections = [...targets(machines), ...machines.flatMap(machineSection)];
  return `${page.slice(0, from)}\n\n${sections.join('\n\n')}\n\n${page.slice(page.indexOf(end))}`;
}
