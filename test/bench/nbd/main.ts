/**
 * `npm run bench:nbd`: exports of this product and of its peers in one run, on the same files, with
 * the same clients: one of our own that does little but keep the server busy (load.ts), and libnbd
 * by way of fio's engine. A table for each client.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Cleanup } from '../../support/cleanup.ts';
import { run, which } from '../../support/run.ts';
import { Sandbox } from '../../support/sandbox.ts';
import { type FioJob, fio } from '../fio.ts';
import { busyMicros, cpuMicros, machineFacts } from '../machine.ts';
import { render } from '../report.ts';
import type { IoSample, Report } from '../results.ts';
import { choose, WORKLOADS, type Workload } from '../workloads.ts';
import type { LoadOrder, LoadResult } from './load.ts';
import { clientPrefix, PLACES, type Place, placeServers } from './place.ts';
import {
  type NbdContext as Context,
  NBD_TARGETS,
  type NbdTarget,
  type Serving,
} from './targets.ts';

const MIB = 2 ** 20;
const LOAD = fileURLToPath(new URL('./load.js', import.meta.url));

interface Measured {
  requests: number;
  iops: number;
  /** Bytes per second. */
  rate: number;
}

type Client = (serving: Serving, job: FioJob, seed: number, place: Place) => Promise<Measured>;

const CLIENTS: Readonly<Record<string, Client>> = {
  own: async ({ socket: path, name }, job, seed, place) => {
    const order: LoadOrder = { path, name, job, seed };
    const [command, ...args] = [...clientPrefix(place), process.execPath, LOAD];
    const text = await run(command!, [...args, JSON.stringify(order)]);
    const { requests, seconds } = JSON.parse(text) as LoadResult;
    return { requests, iops: requests / seconds, rate: (requests * job.blockBytes) / seconds };
  },
  libnbd: async ({ socket, name }, job, seed, place) =>
    fio(`nbd+unix:///${name}?socket=${socket}`, job, 'nbd', seed, clientPrefix(place)),
};

const USAGE = `usage: npm run bench:nbd -- [options]

  --quick            short runs: to see that it works, not to quote
  --runtime MS       of each timed workload (default 2500, quick 500)
  --rounds N         interleaved rounds of every target (default 5, quick 1)
  --only A,B         workloads (${WORKLOADS.map(one => one.id).join(', ')})
  --targets A,B      of ${NBD_TARGETS.map(one => one.id).join(', ')}
  --clients A,B      of ${Object.keys(CLIENTS).join(', ')}
  --place P          of server and client: ${PLACES.join(', ')} (default free)
  --dir DIR          where images and overlays go (default: a temporary directory)
  --json FILE        the results as JSON, too
`;

function list(text: string | undefined, all: readonly string[]): string[] {
  const words = (text ?? '').split(',').filter(word => word !== '');
  const wrong = words.find(word => !all.includes(word));
  if (wrong !== undefined) throw new Error(`${wrong}: none of ${all.join(', ')}\n\n${USAGE}`);
  return words.length === 0 ? [...all] : words;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      rounds: { type: 'string' },
      runtime: { type: 'string' },
      only: { type: 'string' },
      targets: { type: 'string' },
      clients: { type: 'string' },
      place: { type: 'string' },
      dir: { type: 'string' },
      json: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const { quick } = values;
  const rounds = Number(values.rounds ?? (quick ? 1 : 5));
  const ids = list(
    values.targets,
    NBD_TARGETS.map(one => one.id),
  );
  const workloads = choose(
    list(
      values.only,
      WORKLOADS.map(one => one.id),
    ),
  );
  const clients = list(values.clients, Object.keys(CLIENTS));
  const [place] = list(values.place ?? 'free', PLACES) as Place[];
  const span = (quick ? 32 : 128) * MIB;
  const shape = { span, runtimeMs: Number(values.runtime ?? (quick ? 500 : 2500)) };

  const cleanup = new Cleanup();
  try {
    const dir = mkdtempSync(join(values.dir ?? tmpdir(), 'ubd-bench-'));
    cleanup.add(`remove ${dir}`, () => rmSync(dir, { recursive: true, force: true }));
    const root = join(dir, 'root.img');
    await run('dd', ['if=/dev/urandom', `of=${root}`, 'bs=1M', `count=${(4 * span) / MIB}`]);
    const overlays = join(dir, 'overlays');
    mkdirSync(overlays);
    const sandbox = await Sandbox.start(cleanup, dir);
    const context: Context = { dir: overlays, root, cleanup, sandbox, span };
    const skipped: Record<string, string> = {};
    const targets = await available(ids, skipped);
    const reports: Record<string, Report> = {};
    for (const client of clients) {
      const samples: IoSample[] = [];
      for (let round = 0; round < rounds; round++)
        samples.push(
          ...(await oneRound(client, targets, {
            ...{ context, round, place: place!, workloads },
            job: workload => workload.job(shape),
          })),
        );
      const machine = await machineFacts();
      reports[client] = { machine, rounds, quick, samples, figures: [], skipped };
      process.stdout.write(
        `\nclient: ${client}; server and client: ${place}\n\n${render(reports[client]!, workloads)}`,
      );
    }
    if (values.json !== undefined) writeFileSync(values.json, JSON.stringify(reports, null, 1));
  } finally {
    await cleanup.run();
  }
}

interface Round {
  context: Context;
  round: number;
  place: Place;
  job: (workload: Workload) => FioJob;
  workloads: readonly Workload[];
}

/**
 * A server that has just started is slower, each for its own reasons: none is measured cold. What
 * is read of the root was read once, so it lies where the server keeps it: in its own cache or in
 * the kernel's. All else is done in the device's last part, which no workload uses (workloads.ts).
 */
function warmUps(span: number): FioJob[] {
  const [offset, size] = [3 * span, span / 4];
  const once = { offset: 0, size: span, runtimeMs: undefined };
  const jobs: FioJob[] = [{ rw: 'read', blockBytes: 131_072, depth: 8, ...once }];
  for (const rw of ['randwrite', 'randread'] as const)
    for (const [blockBytes, depth] of [
      [4096, 32],
      [4096, 1],
      [131_072, 8],
    ] as const)
      jobs.push({ rw, blockBytes, depth, offset, size, runtimeMs: 400 });
  return jobs;
}

/**
 * Every workload on fresh overlays. All servers run from the beginning to the end of a round, and a
 * workload is measured with one right after the other: what slows the machine down for a while
 * slows all of them.
 */
async function oneRound(
  client: string,
  targets: readonly NbdTarget[],
  plan: Round,
): Promise<IoSample[]> {
  const { context, round, place, job, workloads } = plan;
  const send = CLIENTS[client]!;
  const servings: { id: string; serving: Serving }[] = [];
  const samples: IoSample[] = [];
  try {
    for (const target of targets) {
      const serving = await target.up(context);
      servings.push({ id: target.id, serving });
      await placeServers(place, serving.pids);
      for (const warmUp of warmUps(context.span)) await send(serving, warmUp, round + 1, place);
    }
    for (const [index, workload] of workloads.entries())
      for (let i = 0; i < servings.length; i++) {
        const { id, serving } = servings[(i + round + index) % servings.length]!;
        await settle(context.dir);
        const before = cpuMicros(serving.pids);
        const busyBefore = busyMicros();
        const measured = await send(serving, job(workload), round + 1, place);
        const cpu = (cpuMicros(serving.pids) - before) / measured.requests;
        const machine = (busyMicros() - busyBefore) / measured.requests;
        const value = workload.unit === 'IOPS' ? measured.iops : measured.rate / 1e6;
        samples.push({
          ...{ round, target: id, workload: workload.id, value },
          ...{ p50: 0, p99: 0, cpu, machine },
        });
        process.stderr.write(
          `round ${round + 1}  ${client.padEnd(6)} ${id.padEnd(8)} ` +
            `${workload.title.padEnd(34)} ${value.toFixed(0).padStart(8)} ${workload.unit}` +
            `  ${cpu.toFixed(1)} us\n`,
        );
      }
  } finally {
    for (const { serving } of servings.reverse()) await serving.down();
  }
  return samples;
}

/** What one server has written is on the disk before the next one is measured. */
async function settle(dir: string): Promise<void> {
  await run('sync', ['--file-system', dir]);
}

async function available(
  ids: readonly string[],
  skipped: Record<string, string>,
): Promise<NbdTarget[]> {
  const found: NbdTarget[] = [];
  for (const target of NBD_TARGETS.filter(one => ids.includes(one.id))) {
    const lacking: string[] = [];
    for (const program of target.needs)
      if ((await which(program)) === undefined) lacking.push(program);
    if (lacking.length === 0) found.push(target);
    else skipped[target.id] = `${lacking.join(', ')} not installed`;
  }
  return found;
}

await main();
