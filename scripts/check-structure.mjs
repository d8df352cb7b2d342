// Checks what no other linter knows: the words of this project (CONTRIBUTING.md), the layers of the engine and
// import cycles in lib, those of types included.
//
//   node scripts/check-structure.mjs [FILE...]     default: all files of the repository
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');

/** Words that are not used, with the ones that are. Names of other projects that contain them are excepted. */
const WORDS = [
  [/pictures?/i, 'image'],
  [/colou?rspace|colour/i, 'color', /toColorspace|colorspace:/],
  [/\bgrey(?!16\b|scale\b)/i, 'gray'],
  [/normalis/i, 'normaliz…'],
  [/neighbour/i, 'neighbor'],
  [/\bcentre/i, 'center'],
  [/quantis/i, 'quantiz…'],
];
const TEXT = /\.(ts|tsx|mjs|cjs|js|cc|h|cu|py|md|yml|yaml)$|^CMakeLists\.txt$/;
const NOT_OURS =
  /^(cpp\/third_party|models|bench\/results|docs\/api)\/|^package-lock\.json$|^scripts\/check-structure\.mjs$/;

/** Folders of cpp/engine from the bottom up: a file includes files of its own folder and of lower ones only. */
const LAYERS = [
  'support',
  'graph',
  'bundle',
  'cpu',
  'cuda',
  'networks',
  'evidence',
  'pipeline',
  'runtime',
  'api',
  'cli',
];

function wordProblems(file, text) {
  return text
    .split('\n')
    .flatMap((line, i) =>
      WORDS.flatMap(([word, instead, except]) =>
        word.test(line) && !except?.test(line)
          ? [`${file}:${i + 1}: say ${instead}, not "${word.exec(line)[0]}"`]
          : [],
      ),
    );
}

function layerProblems(file, text) {
  const layer = LAYERS.indexOf(/^cpp\/engine\/(\w+)\//.exec(file)?.[1]);
  if (layer < 0) return [];
  return [...text.matchAll(/^#include "(\w+)\/[^"]*"/gm)].flatMap(([include, folder]) =>
    LAYERS.indexOf(folder) > layer ? [`${file}: ${include} reaches up from ${LAYERS[layer]}`] : [],
  );
}

/** Returns the modules of lib that a module imports. */
function importsOf(file, text) {
  return [...text.matchAll(/^(?:import|export)\b[^;]*?\bfrom '(\.[^']+)\.js';/gm)].map(([, target]) =>
    path.join(path.dirname(file), `${target}.ts`),
  );
}

/** Finds one cycle per module that closes it, by depth-first search. */
function cycleProblems(imports) {
  const problems = [];
  const finished = new Set();
  const visit = (file, trail) => {
    if (trail.includes(file))
      problems.push(`import cycle: ${[...trail.slice(trail.indexOf(file)), file].join(' > ')}`);
    if (finished.has(file) || trail.includes(file)) return;
    for (const target of imports.get(file) ?? []) visit(target, [...trail, file]);
    finished.add(file);
  };
  for (const file of imports.keys()) visit(file, []);
  return problems;
}

const listed = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: root,
  encoding: 'utf8',
});
const files = process.argv.length > 2 ? process.argv.slice(2) : listed.trim().split('\n');
const problems = files
  .filter((file) => TEXT.test(file) && !NOT_OURS.test(file) && existsSync(path.join(root, file)))
  .flatMap((file) => {
    const text = readFileSync(path.join(root, file), 'utf8');
    return [...wordProblems(file, text), ...layerProblems(file, text)];
  });
const modules = files.filter(
  (file) => /^lib\/(?!server\/page\/).*\.ts$/.test(file) && existsSync(path.join(root, file)),
);
const imports = new Map(
  modules.map((file) => [file, importsOf(file, readFileSync(path.join(root, file), 'utf8'))]),
);
problems.push(...cycleProblems(imports));
for (const problem of problems) console.error(problem);
process.exitCode = problems.length > 0 ? 1 : 0;
