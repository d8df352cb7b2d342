// docs/performance.md from the results of a bench.

const ms = ({ median, min, max }) => `${round(median)} (${round(min)} to ${round(max)})`;
const round = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const gib = (mib) => `${(mib / 1024).toFixed(2)} GiB`;
const row = (cells) => `| ${cells.join(' | ')} |`;
const table = (head, rows) => [row(head), row(head.map(() => '---')), ...rows.map(row)].join('\n');

const times = (ratio) => `${ratio.toFixed(2)}x`;
const overPublished = (size) => size?.speedup['as-published'];

/** What the project set itself for a CPU: what is compared, the bound in words, the value of a machine's results, how it is written, whether it is enough. */
const TARGETS = [
  [
    'published size, one image, over the program as published',
    '>= 3.2x',
    ({ sizes }) => overPublished(sizes.published),
    times,
    (x) => x >= 3.2,
  ],
  [
    'base bundle, one image, likewise',
    '>= 4x',
    ({ sizes }) => overPublished(sizes.small),
    times,
    (x) => x >= 4,
  ],
  [
    'base bundle, saturated, likewise',
    '>= 4x',
    ({ sizes }) => sizes.small?.saturatedSpeedup,
    times,
    (x) => x >= 4,
  ],
  [
    'Node around the engine, published size',
    '<= 1 %',
    ({ sizes }) => sizes.published?.bindingShare,
    percent,
    (x) => x <= 0.01,
  ],
  [
    'Node around the engine, base bundle',
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
    'published size, peak memory over that of the program as published',
    '< 1',
    ({ sizes: { published } }) => published && published.peakMiB.diad / published.peakMiB['as-published'],
    (x) => x.toFixed(3),
    (x) => x < 1,
  ],
  [
    'published size, peak memory over the weights',
    '<= 1.25',
    ({ sizes: { published } }) => published && published.peakMiB.diad / published.weightsMiB,
    (x) => x.toFixed(3),
    (x) => x <= 1.25,
  ],
];

// What an H200 takes for the arithmetic of an image alone: 3,288 GFLOP at 790 TFLOP/s.
const H200_LIMIT_MS = 4.2;
const bestHalf = (sizes, key, best) => {
  const values = ['bfloat16', 'float16']
    .map((precision) => sizes.published?.[precision]?.[key])
    .filter((value) => value !== undefined);
  return values.length === 0 ? undefined : best(...values);
};

const CUDA_TARGETS = [
  [
    'published size in half precision, one image, over the program as published in float32',
    '>= 10x',
    ({ sizes }) => bestHalf(sizes, 'speedup', Math.max),
    times,
    (x) => x >= 10,
  ],
  [
    'the same, saturated',
    '>= 30x',
    ({ sizes }) => bestHalf(sizes, 'saturatedSpeedup', Math.max),
    times,
    (x) => x >= 30,
  ],
  [
    `${H200_LIMIT_MS} ms, the limit of an H200, over an image's time when saturated`,
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

/** Every target beside what each machine reached. */
function targets(machines) {
  const cpus = machines.filter(({ machine }) => machine.device === undefined);
  const devices = machines.filter(({ machine }) => machine.device !== undefined);
  return [
    '### Targets',
    'float32 on two cores; what is missed, and why: "What bounds it".',
    targetTable(TARGETS, cpus, ({ machine }) => machine.cpu),
    'On an H200 (`npm run bench -- --device cuda`):',
    devices.length === 0
      ? targetTable(CUDA_TARGETS, [{ sizes: {} }], () => 'no CUDA device was at hand')
      : targetTable(CUDA_TARGETS, devices, ({ machine }) => `${machine.cpu}, ${machine.device}`),
  ];
}

function speeds({ sizes }) {
  const reference = (size, mode) =>
    size.imageMs[mode] ? `${ms(size.imageMs[mode])}: ${size.speedup[mode].toFixed(2)}x` : 'not run';
  return table(
    [
      'size',
      'diad, ms an image',
      'as published',
      'lossless savings',
      'the same, torch.compile',
      'saturated, over as published',
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
  return table(['size', 'batch', 'diad, ms an image', 'lossless reference', 'ratio'], rows);
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
      'GFLOP an image, as published',
      'needed',
      'GFLOP/s of diad',
      'of a matrix product',
      'share',
      'peak memory, diad',
      'as published',
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

/** Rows of the sizes that were also run in precisions that change the result. */
function precisions({ sizes }) {
  const rows = Object.values(sizes).flatMap((size) =>
    ['bfloat16', 'float16', 'int8']
      .filter((precision) => size[precision])
      .map((precision) => ({ config: size.config, precision, ...size[precision] })),
  );
  if (rows.length === 0) return [];
  return [
    'In other precisions (another result: docs/accuracy.md, "What other precisions cost"), one image at a time:',
    table(
      ['size', 'precision', 'diad, ms an image', 'as published, float32', 'peak memory, diad'],
      rows.map(({ config, precision, imageMs, publishedMs, speedup, peakMiB }) => {
        return [config, precision, ms(imageMs), `${ms(publishedMs)}: ${speedup.toFixed(2)}x`, gib(peakMiB)];
      }),
    ),
  ];
}

const LISTED = 15; // operators by name

/** Operators of one size, most time first; the rest and what lies between them as sums. */
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
    `Operator by operator, ${config} (one image: ${round(computeMs)} ms, ${round(profiledMs)} ms with a clock on every operator; \`diad-engine profile\`):`,
    table(
      ['operator', 'calls', 'ms', 'of the time', 'GFLOP', 'GFLOP/s', 'of a matrix product'],
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
    `${level.offeredPerSecond.toFixed(2)} a second (${(100 * level.share).toFixed(0)} %)`,
    level.images,
    round(level.latencyP50Ms),
    round(level.latencyP99Ms),
    round(level.queueP50Ms),
    round(level.computeP50Ms),
    level.meanBatch.toFixed(2),
  ]);
  return [
    `Process start to first score: ${ms(coldStartMs)} ms. Saturated: ${saturated.imagesPerSecond.toFixed(1)} images/s over ${saturated.images} images; event-loop delay p99 ${saturated.eventLoopDelayP99Ms.toFixed(1)} ms; resident set ${saturated.rssEarlyMiB.toFixed(0)} MiB early, ${saturated.rssLateMiB.toFixed(0)} MiB at the end (commit ${loadCommit}).`,
    '',
    table(
      [
        'images arrive at random',
        'images',
        'latency p50, ms',
        'p99',
        'of it queue p50',
        'compute p50',
        'mean batch',
      ],
      rows,
    ),
  ].join('\n');
}

/** What the plan of a size leaves out, and why. */
function leftOut({ published }) {
  if (published === undefined) return {};
  return {
    ...(published.speedup.compiled
      ? {}
      : {
          'published size, torch.compile':
            'it would be a fourth process with the weights beside the other three',
        }),
    ...(published.batches.length > 0
      ? {}
      : { 'published size, several images together': 'it would take longer than all else together' }),
  };
}

function machineSection(results) {
  const { machine, date, commit } = results;
  const notRun = { ...results.notRun, ...leftOut(results.sizes) };
  return [
    `### ${machine.cpu}, ${machine.cores} cores${machine.device === undefined ? '' : `, ${machine.device}`}`,
    `Measured on ${date} with \`npm run bench\` (last with commit ${commit}; ${machine.memoryGiB} GiB; Node ${machine.node}). Milliseconds as median (least to most).`,
    'One image at a time:',
    speeds(results),
    'Together:',
    batches(results),
    'Where the time goes, ms:',
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

/** The page with its measured part replaced: a section for each machine's results. */
export function performancePage(page, machines) {
  const [start, end] = ['<!-- measured: npm run bench -->', '<!-- end of measured: npm run bench -->'];
  const from = page.indexOf(start) + start.length;
  return `${page.slice(0, from)}\n\n${[...targets(machines), ...machines.flatMap(machineSection)].join('\n\n')}\n\n${page.slice(page.indexOf(end))}`;
}
