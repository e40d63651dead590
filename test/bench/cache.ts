/**
 * What the cache of root blocks gives and costs, next to reads without it: 4K at depth 32 on a loop
 * device.
 *
 *     node dist/test/bench/cache.js [--rounds 5] [--json FILE]
 *
 *     hits     everything is in memory: ours, or the page cache's
 *     misses   everything comes from the disk, and is kept: by a cache that is empty, by one that
 *              is full (each block pushes another one out), or by the page cache
 *
 * Rounds are interleaved, and the first one is left out: the engine compiles what is hot. Server
 * CPU is that of the daemon, for each request.
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Cleanup } from '../support/cleanup.ts';
import { run } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { type FioJob, fio } from './fio.ts';
import { cpuMicros, machineFacts } from './machine.ts';
import { median } from './results.ts';

const MIB = 2 ** 20;
/** A root has four parts; the cache holds one of them. */
const PART = 128 * MIB;
const PARTS = 4;

interface Sample {
  iops: number;
  /** Microseconds of the server's CPU for each request. */
  cpu: number;
}

const CASES = ['hit', 'hit, none', 'miss, empty', 'miss, full', 'miss, none'] as const;
type Case = (typeof CASES)[number];

const GOALS: readonly { title: string; of: Case; over: Case; met: (r: Ratio) => boolean }[] = [
  {
    title: 'a hit: 1.2 times the IOPS, or 1.4 times less CPU',
    of: 'hit',
    over: 'hit, none',
    met: ({ iops, cpu }) => iops >= 1.2 || cpu <= 1 / 1.4,
  },
  {
    title: 'a miss: at most 1.1 times the CPU',
    of: 'miss, full',
    over: 'miss, none',
    met: ({ cpu }) => cpu <= 1.1,
  },
];

interface Ratio {
  iops: number;
  cpu: number;
}

async function measure(
  rounds: number,
  cleanup: Cleanup,
  say: (line: string) => void,
): Promise<Map<Case, Sample[]>> {
  const sandbox = await Sandbox.start(cleanup, '/var/tmp');
  const root = sandbox.path('root.img');
  const mibs = (PART * PARTS) / MIB;
  await run('dd', ['if=/dev/urandom', `of=${root}`, 'bs=1M', `count=${mibs}`, 'conv=fsync']);
  const { node } = await sandbox.attach({ root, name: 'one', readOnly: true });
  const { client } = sandbox;
  const setCache = (sizeBytes: number): Promise<unknown> => client.setCache({ sizeBytes });
  /** Nothing of the root is in the page cache. */
  const chill = (): Promise<unknown> =>
    run('dd', [`if=${root}`, 'iflag=nocache', 'count=0', 'status=none']);
  const sample = async (job: Partial<FioJob>, round: number): Promise<Sample> => {
    const base: FioJob = {
      rw: 'randread',
      blockBytes: 4096,
      depth: 32,
      offset: 0,
      size: PART,
      runtimeMs: undefined,
    };
    const before = cpuMicros([sandbox.daemonPid()]);
    const { iops, requests } = await fio(node, { ...base, ...job }, 'io_uring', round + 1);
    return { iops, cpu: (cpuMicros([sandbox.daemonPid()]) - before) / requests };
  };
  const hits = { runtimeMs: 2000 };
  const ways: Record<Case, (round: number) => Promise<Sample>> = {
    hit: async round => {
      await setCache(2 * PART);
      await client.warmCache({ target: root, length: PART });
      return sample(hits, round);
    },
    'hit, none': async round => {
      await setCache(0);
      await run('dd', [`if=${root}`, 'of=/dev/null', 'bs=1M', `count=${PART / MIB}`]);
      return sample(hits, round);
    },
    'miss, empty': async round => {
      await setCache(PART);
      await client.dropCache();
      await chill();
      return sample({}, round);
    },
    'miss, full': async round => {
      await setCache(PART);
      await client.warmCache({ target: root, offset: PART, length: PART });
      await chill();
      return sample({}, round);
    },
    'miss, none': async round => {
      await setCache(0);
      await chill();
      return sample({}, round);
    },
  };
  const samples = new Map<Case, Sample[]>(CASES.map(one => [one, []]));
  for (let round = 0; round <= rounds; round++)
    for (let i = 0; i < CASES.length; i++) {
      const one = CASES[(i + round) % CASES.length]!;
      const found = await ways[one](round);
      if (round > 0) samples.get(one)!.push(found);
      say(`${one.padEnd(12)} ${found.iops.toFixed(0).padStart(7)} IOPS ${found.cpu.toFixed(2)} us`);
    }
  return samples;
}

/** The median of what each round has for itself: a slow minute is slow for both. */
function ratio(of: readonly Sample[], over: readonly Sample[]): Ratio {
  return {
    iops: median(of.map(({ iops }, i) => iops / over[i]!.iops)),
    cpu: median(of.map(({ cpu }, i) => cpu / over[i]!.cpu)),
  };
}

function table(samples: Map<Case, Sample[]>): string {
  const lines = ['| 4K random reads, depth 32 | IOPS | server CPU, us |', '| --- | ---: | ---: |'];
  for (const [one, list] of samples)
    lines.push(
      `| ${one} | ${median(list.map(({ iops }) => iops)).toFixed(0)} | ` +
        `${median(list.map(({ cpu }) => cpu)).toFixed(2)} |`,
    );
  lines.push('', '| goal | IOPS | CPU | reached |', '| --- | ---: | ---: | --- |');
  for (const { title, of, over, met } of GOALS) {
    const found = ratio(samples.get(of)!, samples.get(over)!);
    const { iops, cpu } = found;
    const reached = met(found) ? 'yes' : 'no';
    lines.push(`| ${title} | ${iops.toFixed(2)} x | ${cpu.toFixed(2)} x | ${reached} |`);
  }
  return lines.join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { rounds: { type: 'string', default: '5' }, json: { type: 'string' } },
  });
  const cleanup = new Cleanup();
  try {
    const samples = await measure(Number(values.rounds), cleanup, line => {
      process.stderr.write(`${line}\n`);
    });
    process.stdout.write(`${table(samples)}\n`);
    if (values.json !== undefined)
      writeFileSync(
        values.json,
        `${JSON.stringify({ machine: await machineFacts(), ...Object.fromEntries(samples) }, null, 2)}\n`,
      );
  } finally {
    await cleanup.run();
  }
}

await main();
