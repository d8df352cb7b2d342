// Runs schemathesis on /openapi.json: generates requests from the schema and validates the responses.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { root } from './record.mjs';
import { golden, score, serving } from './serving.mjs';

const SCHEMATHESIS = 'schemathesis==4.32.5';
// Checks of valid and invalid bodies are omitted: images cannot be generated from a schema, so "valid" bodies
// are rejected with 415 and "invalid" ones can pass.
const CHECKS = [
  'not_a_server_error',
  'status_code_conformance',
  'content_type_conformance',
  'response_headers_conformance',
  'response_schema_conformance',
  'unsupported_method',
  'allow_header_conformance',
];

/** Returns the path of schemathesis, and installs it in its own virtual environment if necessary. */
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
      figures: { 'requests sent': generated, 'operations and phases': operations },
      expectations: [
        ['requests were sent', generated > 0],
        [`no undocumented 5xx and no response that violates its schema (${CHECKS.join(', ')})`, status === 0],
        ['a valid image is scored afterward', clean === 200],
        ['SIGTERM stops the server with exit code 0', exit === 0],
      ],
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
