/**
 * What the cache of root blocks gives and costs, next to reads without it: 4K at depth 32 on a loop
 * device.
 *
 *     node dist/test/bench/cache.js [--rounds 16] [--only hit|miss] [--place together|apart|free]
 *                                   [--uring] [--json FILE]
 *
 *     hits     everything is in memory: ours, or the page cache's
 *     misses   everything comes from the disk, and is kept: by a cache that is empty, by one that
 *              is full (each block pushes another one out), or by the page cache
 *
 * What the two sides of a ratio have in common, so that a second run finds the same one:
 *  - Each has a daemon of its own, which stays as it is: nothing is warmed or resized in between.
 *  - They take turns of about a second, each going first as often as last; a ratio is that of one
 *    round, and the result the median of all. Behind it stand the quartiles.
 *  - Servers and client are on one processor, and the kernel's own threads where they like. Left to
 *    the scheduler, who shares a processor with whom changes from one second to the next, and with
 *    it how many requests come in a batch: by a half, and CPU by a third.
 *  - CPU is what the threads of the server ran, by the scheduler's own count (nanoseconds): ticks
 *    of a hundredth of a second are a tenth of what there is to measure.
 *
 * With --uring, FUSE goes by io_uring (UBD_FUSE_URING; the kernel's parameter is switched on
 * meanwhile), and hits are compared with the page cache by /dev/fuse as well.
 *
 * The first rounds are left out: the engine compiles what is hot.
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Cleanup } from '../support/cleanup.ts';
import { switchUringOn, URING_ENV } from '../support/fuse-uring.ts';
import { run } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { fio } from './fio.ts';
import { machineFacts, microsBetween, threadNanos } from './machine.ts';
import { clientPrefix, PLACES, type Place, placeServers } from './nbd/place.ts';
import { median } from './results.ts';

const MIB = 2 ** 20;
/** What hits read: more than any processor's cache has. */
const HIT_BYTES: number = 128 * MIB;
const HIT_MS = 1000;
/** Misses go through a root in parts; the cache holds four of its sixteen. */
const PART: number = 32 * MIB;
const PARTS = 16;
const MISS_CACHE: number = 4 * PART;
const ROUNDS_LEFT_OUT = 2;

interface Sample {
  iops: number;
  /** Microseconds of the server's CPU for each request. */
  cpu: number;
}

interface Case {
  cacheBytes: number;
  /** By /dev/fuse, whatever the others use. */
  byDevice?: boolean;
  /** Once, before the first round. */
  prepare?: (server: Server) => Promise<unknown>;
  /** Of a miss: before each round. */
  before?: (server: Server) => Promise<unknown>;
}

const HITS: Record<string, Case> = {
  hit: {
    cacheBytes: 2 * HIT_BYTES,
    prepare: ({ sandbox, root }) => sandbox.client.warmCache({ target: root }),
  },
  'hit, none': {
    cacheBytes: 0,
    prepare: ({ root }) => run('dd', [`if=${root}`, 'of=/dev/null', 'bs=1M', 'status=none']),
  },
};

/** What is measured beside them with --uring. */
const HITS_BY_DEVICE: Record<string, Case> = {
  'hit, /dev/fuse': { ...HITS.hit!, byDevice: true },
  'hit, none, /dev/fuse': { ...HITS['hit, none']!, byDevice: true },
};

const MISSES: Record<string, Case> = {
  'miss, empty': {
    cacheBytes: MISS_CACHE,
    before: ({ sandbox }) => sandbox.client.dropCache(),
  },
  'miss, full': {
    cacheBytes: MISS_CACHE,
    prepare: ({ sandbox, root }) =>
      sandbox.client.warmCache({
        target: root,
        offset: PARTS * PART - MISS_CACHE,
        length: MISS_CACHE,
      }),
  },
  'miss, none': { cacheBytes: 0 },
};

const GOALS: readonly {
  title: string;
  of: string;
  over: string;
  met: (iops: number, cpu: number) => boolean;
}[] = [
  {
    title: 'a hit: 1.2 times the IOPS, or 1.4 times less CPU (0.71)',
    of: 'hit',
    over: 'hit, none',
    met: (iops, cpu) => iops >= 1.2 || cpu <= 1 / 1.4,
  },
  {
    title: 'a hit by io_uring, over the page cache by /dev/fuse',
    of: 'hit',
    over: 'hit, none, /dev/fuse',
    met: (iops, cpu) => iops >= 1.2 || cpu <= 1 / 1.4,
  },
  {
    title: 'a hit by /dev/fuse, over the page cache by /dev/fuse',
    of: 'hit, /dev/fuse',
    over: 'hit, none, /dev/fuse',
    met: (iops, cpu) => iops >= 1.2 || cpu <= 1 / 1.4,
  },
  {
    title: 'a miss: at most 1.1 times the CPU',
    of: 'miss, full',
    over: 'miss, none',
    met: (_, cpu) => cpu <= 1.1,
  },
];

/** A daemon with one device, for one case. */
class Server {
  readonly sandbox: Sandbox;
  readonly root: string;
  readonly node: string;

  private constructor(sandbox: Sandbox, root: string, node: string) {
    this.sandbox = sandbox;
    this.root = root;
    this.node = node;
  }

  static async start(cleanup: Cleanup, root: string, own: Case): Promise<Server> {
    const env = uring && own.byDevice !== true ? URING_ENV : {};
    const sandbox = await Sandbox.start(cleanup, '/var/tmp', env);
    await sandbox.client.setCache({ sizeBytes: own.cacheBytes });
    const { node } = await sandbox.attach({ root, name: 'one', readOnly: true });
    await placeServers(place, [sandbox.daemonPid()]);
    const server = new Server(sandbox, root, node);
    await own.prepare?.(server);
    return server;
  }

  /** @param runtimeMs undefined: once over the whole range */
  async sample(
    range: { offset: number; size: number },
    runtimeMs: number | undefined,
    seed: number,
  ): Promise<Sample> {
    const pid = this.sandbox.daemonPid();
    const before = threadNanos(pid);
    const job = { rw: 'randread', blockBytes: 4096, depth: 32, ...range, runtimeMs } as const;
    const { iops, requests } = await fio(this.node, job, 'io_uring', seed, clientPrefix(place));
    return { iops, cpu: microsBetween(before, threadNanos(pid)) / requests };
  }
}

let place: Place = 'together';
let uring = false;

type Samples = Map<string, Sample[]>;

async function makeRoot(path: string, bytes: number): Promise<void> {
  const count = bytes / MIB;
  await run('dd', ['if=/dev/urandom', `of=${path}`, 'bs=1M', `count=${count}`, 'conv=fsync']);
}

/** Interleaves the cases. */
async function measure(
  cases: Record<string, Case>,
  rounds: number,
  cleanup: Cleanup,
  sample: (server: Server, own: Case, round: number) => Promise<Sample>,
  root: string,
): Promise<Samples> {
  const names = Object.keys(cases);
  const servers: Server[] = [];
  for (const name of names) servers.push(await Server.start(cleanup, root, cases[name]!));
  const samples: Samples = new Map(names.map(name => [name, []]));
  for (let round = -ROUNDS_LEFT_OUT; round < rounds; round++)
    for (let i = 0; i < names.length; i++) {
      const at = (i + round + ROUNDS_LEFT_OUT) % names.length;
      const name = names[at]!;
      const found = await sample(servers[at]!, cases[name]!, round + ROUNDS_LEFT_OUT);
      if (round >= 0) samples.get(name)!.push(found);
      const { iops, cpu } = found;
      process.stderr.write(`${name.padEnd(20)} ${iops.toFixed(0)} IOPS ${cpu.toFixed(2)} us\n`);
    }
  return samples;
}

async function measureHits(rounds: number, cleanup: Cleanup, root: string): Promise<Samples> {
  await makeRoot(root, HIT_BYTES);
  const range = { offset: 0, size: HIT_BYTES };
  const sample = (server: Server, _: Case, round: number): Promise<Sample> =>
    server.sample(range, HIT_MS, round + 1);
  const cases = uring ? { ...HITS, ...HITS_BY_DEVICE } : HITS;
  return measure(cases, rounds, cleanup, sample, root);
}

async function measureMisses(rounds: number, cleanup: Cleanup, root: string): Promise<Samples> {
  await makeRoot(root, PARTS * PART);
  const sample = async (server: Server, own: Case, round: number): Promise<Sample> => {
    await own.before?.(server);
    // Nothing of the root is in the page cache.
    await run('dd', [`if=${root}`, 'iflag=nocache', 'count=0', 'status=none']);
    const range = { offset: (round % PARTS) * PART, size: PART };
    return server.sample(range, undefined, round + 1);
  };
  return measure(MISSES, rounds, cleanup, sample, root);
}

/** Median, and the quartiles in brackets. */
function spread(values: readonly number[]): string {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part: number): string => sorted[Math.floor((sorted.length - 1) * part)]!.toFixed(2);
  return `${median(values).toFixed(3)} (${at(0.25)} to ${at(0.75)})`;
}

function table(samples: Samples): string {
  const lines = ['| 4K random reads, depth 32 | IOPS | server CPU, us |', '| --- | ---: | ---: |'];
  for (const [one, list] of samples)
    lines.push(
      `| ${one} | ${median(list.map(({ iops }) => iops)).toFixed(0)} | ` +
        `${median(list.map(({ cpu }) => cpu)).toFixed(2)} |`,
    );
  lines.push('', '| goal | IOPS | CPU | reached |', '| --- | ---: | ---: | --- |');
  for (const { title, of, over, met } of GOALS) {
    const [ones, others] = [samples.get(of), samples.get(over)];
    if (ones === undefined || others === undefined) continue;
    const iops = ones.map((one, i) => one.iops / others[i]!.iops);
    const cpu = ones.map((one, i) => one.cpu / others[i]!.cpu);
    const reached = met(median(iops), median(cpu)) ? 'yes' : 'no';
    lines.push(`| ${title} | ${spread(iops)} | ${spread(cpu)} | ${reached} |`);
  }
  return lines.join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '16' },
      only: { type: 'string', default: '' },
      place: { type: 'string', default: 'together' },
      uring: { type: 'boolean', default: false },
      json: { type: 'string' },
    },
  });
  const rounds = Number(values.rounds);
  place = PLACES.find(one => one === values.place) ?? place;
  uring = values.uring;
  const switched = new Cleanup();
  if (uring) switchUringOn(switched);
  const all: Samples = new Map();
  for (const [kind, measured] of [
    ['hit', measureHits],
    ['miss', measureMisses],
  ] as const) {
    if (!kind.startsWith(values.only)) continue;
    const cleanup = new Cleanup();
    const root = `/var/tmp/ubd-bench-cache-${process.pid}.img`;
    cleanup.add(`remove ${root}`, () => run('rm', ['-f', root]));
    try {
      for (const [name, list] of await measured(rounds, cleanup, root)) all.set(name, list);
    } finally {
      await cleanup.run();
    }
  }
  await switched.run();
  process.stdout.write(`${table(all)}\n`);
  if (values.json !== undefined)
    writeFileSync(
      values.json,
      `${JSON.stringify({ machine: await machineFacts(), ...Object.fromEntries(all) }, null, 2)}\n`,
    );
}

await main();
