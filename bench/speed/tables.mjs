// docs/performance.md from the results of a bench.

const ms = ({ median, min, max }) => `${round(median)} (${round(min)} to ${round(max)})`;
const round = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const gib = (mib) => `${(mib / 1024).toFixed(2)} GiB`;
const row = (cells) => `| ${cells.join(' | ')} |`;
const table = (head, rows) => [row(head), row(head.map(() => '---')), ...rows.map(row)].join('\n');

function speeds({ sizes }) {
  const reference = (size, mode) => (size.pictureMs[mode] ? `${ms(size.pictureMs[mode])}: ${size.speedup[mode].toFixed(2)}x` : 'not run');
  return table(
    ['size', 'diad, ms a picture', 'as published', 'lossless savings', 'the same, torch.compile', 'saturated, over as published', 'commit'],
    Object.values(sizes).map((size) => [
      size.config,
      ms(size.pictureMs.diad),
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
    size.batches.map(({ n, pictureMs }) => [
      size.config,
      n,
      ms(pictureMs.diad),
      pictureMs.lossless ? ms(pictureMs.lossless) : 'not run',
      pictureMs.lossless ? `${(pictureMs.lossless.median / pictureMs.diad.median).toFixed(2)}x` : '',
    ]),
  );
  return table(['size', 'batch', 'diad, ms a picture', 'lossless reference', 'ratio'], rows);
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
      'GFLOP a picture, as published',
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
    ['bfloat16', 'int8']
      .filter((precision) => size[precision])
      .map((precision) => ({ config: size.config, precision, ...size[precision] })),
  );
  if (rows.length === 0) return [];
  return [
    'In other precisions (another result: docs/accuracy.md, "What other precisions cost"), one picture at a time:',
    table(
      ['size', 'precision', 'diad, ms a picture', 'as published, float32', 'peak memory, diad'],
      rows.map(({ config, precision, pictureMs, publishedMs, speedup, peakMiB }) => {
        return [config, precision, ms(pictureMs), `${ms(publishedMs)}: ${speedup.toFixed(2)}x`, gib(peakMiB)];
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
    const arithmetic = speed ? [round(gflop), round(speed), percent(speed / gemmGflopPerSecond)] : ['', '', ''];
    return [name, calls === null ? '' : round(calls), round(ms), percent(ms / profiledMs), ...arithmetic];
  };
  const named = operators.slice(0, LISTED);
  const others = operators.slice(LISTED);
  const total = (key) => others.reduce((all, operator) => all + (operator[key] ?? 0), 0);
  const inside = operators.reduce((all, { ms }) => all + ms, 0);
  return [
    `Operator by operator, ${config} (one picture: ${round(computeMs)} ms, ${round(profiledMs)} ms with a clock on every operator; \`diad-engine profile\`):`,
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
    level.pictures,
    round(level.latencyP50Ms),
    round(level.latencyP99Ms),
    round(level.queueP50Ms),
    round(level.computeP50Ms),
    level.meanBatch.toFixed(2),
  ]);
  return [
    `Process start to first score: ${ms(coldStartMs)} ms. Saturated: ${saturated.picturesPerSecond.toFixed(1)} pictures/s over ${saturated.pictures} pictures; event-loop delay p99 ${saturated.eventLoopDelayP99Ms.toFixed(1)} ms; resident set ${saturated.rssEarlyMiB.toFixed(0)} MiB early, ${saturated.rssLateMiB.toFixed(0)} MiB at the end (commit ${loadCommit}).`,
    '',
    table(['pictures arrive at random', 'pictures', 'latency p50, ms', 'p99', 'of it queue p50', 'compute p50', 'mean batch'], rows),
  ].join('\n');
}

function machineSection(results) {
  const { machine, date, commit, notRun } = results;
  return [
    `### ${machine.cpu}, ${machine.cores} cores`,
    `Measured on ${date} with \`npm run bench\` (last with commit ${commit}; ${machine.memoryGiB} GiB; Node ${machine.node}). Milliseconds as median (least to most).`,
    'One picture at a time:',
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
  return `${page.slice(0, from)}\n\n${machines.flatMap(machineSection).join('\n\n')}\n\n${page.slice(page.indexOf(end))}`;
}
