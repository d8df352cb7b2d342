// schemathesis on /openapi.json: requests made from the description, answers held to it.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { root } from './record.mjs';
import { golden, score, serving } from './serving.mjs';

const SCHEMATHESIS = 'schemathesis==4.32.5';
// Not held to: an image cannot be made from a schema, so that "valid" bodies are refused with 415 and "invalid" ones may pass.
const CHECKS = [
  'not_a_server_error',
  'status_code_conformance',
  'content_type_conformance',
  'response_headers_conformance',
  'response_schema_conformance',
  'unsupported_method',
  'allow_header_conformance',
];

/** Path of schemathesis in a virtual environment of its own, made when it is not there. */
function install() {
  const venv = path.join(root, 'out', 'schemathesis');
  const program = path.join(venv, 'bin', 'schemathesis');
  if (existsSync(program)) return program;
  const python = path.join(root, '.venv', 'bin', 'python');
  for (const [command, args] of [
    [python, ['-m', 'venv', venv]],
    [
      path.join(venv, 'bin', 'python'),
      ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', SCHEMATHESIS],
    ],
  ]) {
    const { status } = spawnSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed`);
  }
  return program;
}

export async function run({ short }) {
  const program = install();
  const folder = mkdtempSync(path.join(os.tmpdir(), 'diad-schemathesis-'));
  try {
    const { result, exit } = await serving(
      ['--rate-limit', '1000000000', '--timeout', '20000'],
      async ({ url }) => {
        const report = path.join(folder, 'junit.xml');
        const args = [
          'run',
          `${url}/openapi.json`,
          '--checks',
          CHECKS.join(','),
          '--max-examples',
          short ? '8' : '200',
        ];
        const phases = ['--phases', short ? 'coverage,fuzzing' : 'examples,coverage,fuzzing,stateful'];
        const fixed = [
          '--continue-on-failure',
          '--seed',
          '1',
          '--no-color',
          '--warnings',
          'off',
          '--report-junit-path',
          report,
        ];
        const { status, stdout, stderr } = spawnSync(program, [...args, ...phases, ...fixed], {
          encoding: 'utf8',
          cwd: folder,
          maxBuffer: 1 << 28,
        });
        const clean = await golden();
        return {
          status,
          output: `${stdout}${stderr}`,
          report: existsSync(report) ? readFileSync(report, 'utf8') : '',
          clean: (await score(url, clean.bytes)).status,
        };
      },
    );
    const { status, output, report, clean } = result;
    if (status !== 0) process.stderr.write(output);
    const generated = Number(/(\d[\d,]*) generated/.exec(output)?.[1].replaceAll(',', '') ?? Number.NaN);
    const operations = (report.match(/<testcase /g) ?? []).length;
    return {
      figures: { 'requests made': generated, 'operations and phases': operations },
      expectations: [
        ['requests were made', generated > 0],
        [
          `no 5xx but those described, no answer that its schema does not allow (${CHECKS.join(', ')})`,
          status === 0,
        ],
        ['a good image is scored afterwards', clean === 200],
        ['SIGTERM ends it with code 0', exit === 0],
      ],
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
