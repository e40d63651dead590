/**
 * The boot storm: what many nodes read while they boot, over one root behind a narrow link.
 *
 *     node dist/test/bench/storm.js [--nodes 20] [--svg FILE] [--json FILE]
 *
 * The reads are those of a real virtual machine (scripts/record-boot), replayed on one block device
 * for each node, as fast as they are answered (storm-node.ts). The root is an NBD export behind a
 * link of 76 MB/s and 5 ms (nbdkit's rate and delay filters). Nodes boot one after the other; with
 * everything cold again, all at once; and on a third cold host a node boots whose root has the boot
 * pack that was recorded at the first boot. Prints a table.
 */
import { closeSync, cpSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Cleanup } from '../support/cleanup.ts';
import { nbdkit } from '../support/remote-servers.ts';
import { run } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';
import { machineFacts } from './machine.ts';
import { loadTrace, type TracedRead } from './storm-node.ts';
import { plotStorm } from './storm-plot.ts';

/** From dist/test/bench: what is not compiled lies in the sources. */
const TRACE = fileURLToPath(
  new URL('../../../test/bench/fixtures/boot-debian-12.gz', import.meta.url),
);
const LINK = { megabytes: 76, delayMs: 5 } as const;
const MIB = 2 ** 20;

export interface NodeTime {
  /** Seconds that its reads took; and from its attach to the last of them. */
  seconds: number;
  fromAttachSeconds: number;
  /** Bytes that the link carried meanwhile. */
  linkBytes: number;
}

export interface Storm {
  reads: number;
  readBytes: number;
  distinctBytes: number;
  oneByOne: NodeTime[];
  together: { nodes: NodeTime[]; linkBytes: number };
  /** The first node of a host that has a boot pack. */
  withPack: NodeTime & { packBytes: number; ranges: number };
}

/** Bytes that are read at least once, in blocks of 4 KiB. */
function distinct(reads: readonly TracedRead[]): number {
  const blocks = new Set<number>();
  for (const { offset, length } of reads)
    for (let at = Math.floor(offset / 4096); at * 4096 < offset + length; at++) blocks.add(at);
  return blocks.size * 4096;
}

/** An image with content wherever somebody reads, and holes elsewhere. */
function makeRoot(path: string, reads: readonly TracedRead[]): void {
  const end = Math.max(...reads.map(({ offset, length }) => offset + length));
  const file = openSync(path, 'w');
  const block = Buffer.alloc(MIB);
  let state = 1;
  for (const { offset, length } of reads) {
    for (let at = 0; at < length; at += 4) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      block.writeInt32LE(state, at);
    }
    writeSync(file, block, 0, length, offset);
  }
  writeSync(file, Buffer.alloc(512), 0, 512, Math.ceil(end / MIB) * MIB - 512);
  closeSync(file);
}

/** Seconds that the reads of one boot take on this device. */
async function boot(node: string): Promise<number> {
  const program = fileURLToPath(new URL('./storm-node.js', import.meta.url));
  return Number(await run(process.execPath, [program, node, TRACE], { timeoutMs: 600_000 }));
}

async function linkBytes(sandbox: Sandbox, root: string): Promise<number> {
  const [of] = await sandbox.client.replicas(root);
  return of?.replicas.reduce((sum, { readBytes }) => sum + readBytes, 0) ?? 0;
}

interface Meanwhile {
  attached(device: Attached): Promise<unknown>;
  booted(device: Attached): Promise<void>;
}

async function storm(nodes: number, cleanup: Cleanup, say: (line: string) => void): Promise<Storm> {
  const reads = loadTrace(TRACE);
  const lab = await Sandbox.start(cleanup);
  const image = lab.path('root.img');
  makeRoot(image, reads);
  const server = nbdkit(image, lab.path('link.sock'), {
    filters: ['rate', 'delay'],
    parameters: [
      `rate=${LINK.megabytes * 8}M`,
      'burstiness=0.05', // without it two seconds' worth would come at once
      `rdelay=${LINK.delayMs}ms`,
    ],
  });
  await server.start();
  cleanup.add('end the server', () => server.kill());
  const attach = (sandbox: Sandbox): Promise<Attached> =>
    sandbox.attach({ root: server.uri, ephemeral: true });

  const bootOne = async (sandbox: Sandbox, meanwhile?: Meanwhile): Promise<NodeTime> => {
    const started = performance.now();
    const before = await linkBytes(sandbox, server.uri);
    const device = await attach(sandbox);
    await meanwhile?.attached(device);
    const seconds = await boot(device.node);
    const fromAttachSeconds = (performance.now() - started) / 1000;
    await meanwhile?.booted(device);
    const carried = (await linkBytes(sandbox, server.uri)) - before;
    return { seconds, fromAttachSeconds, linkBytes: carried };
  };

  let packed = { pack: '', ranges: 0, fetchBytes: 0 };
  const record: Meanwhile = {
    attached: device => lab.client.recordCache(device.name),
    booted: async device => {
      packed = await lab.client.cacheRecorded(device.name);
    },
  };
  const oneByOne: NodeTime[] = [];
  for (let node = 1; node <= nodes; node++) {
    const time = await bootOne(lab, node === 1 ? record : undefined);
    oneByOne.push(time);
    say(`node ${node}: ${time.seconds.toFixed(2)} s`);
  }

  const cold = await Sandbox.start(cleanup);
  const devices: Attached[] = [];
  for (let node = 1; node <= nodes; node++) devices.push(await attach(cold));
  const before = await linkBytes(cold, server.uri);
  const started = performance.now();
  const times = await Promise.all(devices.map(device => boot(device.node)));
  const fromAttachSeconds = (performance.now() - started) / 1000;
  const carried = (await linkBytes(cold, server.uri)) - before;
  say(`all at once: ${Math.max(...times).toFixed(2)} s`);

  const third = await Sandbox.start(cleanup);
  cpSync(lab.path('state/roots'), third.path('state/roots'), { recursive: true });
  const withPack = await bootOne(third);
  say(`with a boot pack: ${withPack.seconds.toFixed(2)} s`);
  return {
    reads: reads.length,
    readBytes: reads.reduce((sum, { length }) => sum + length, 0),
    distinctBytes: distinct(reads),
    oneByOne,
    together: {
      nodes: times.map(seconds => ({ seconds, fromAttachSeconds, linkBytes: carried / nodes })),
      linkBytes: carried,
    },
    withPack: { ...withPack, packBytes: packed.fetchBytes, ranges: packed.ranges },
  };
}

function table({ reads, readBytes, distinctBytes, oneByOne, together, withPack }: Storm): string {
  const mib = (bytes: number): string => (bytes / MIB).toFixed(1);
  const [first, ...others] = oneByOne;
  const rest = others.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const middle = rest[Math.floor(rest.length / 2)] ?? Number.NaN;
  const worst = Math.max(...together.nodes.map(({ seconds }) => seconds));
  const later = others.reduce((sum, one) => sum + one.linkBytes, 0);
  const row = (what: string, node: NodeTime): string => {
    const times = `${node.seconds.toFixed(2)} | ${node.fromAttachSeconds.toFixed(2)}`;
    return `| ${what} | ${times} | ${mib(node.linkBytes)} |`;
  };
  return [
    `A boot: ${reads} reads, ${mib(readBytes)} MiB, ${mib(distinctBytes)} MiB of them distinct.`,
    '',
    '| | reads take, s | since its attach, s | over the link, MiB |',
    '| --- | ---: | ---: | ---: |',
    row('the first node', first!),
    row('the first node, with a boot pack', withPack),
    row('the second node', others[0] ?? first!),
    `| nodes 2 to ${oneByOne.length}, median; sum | ${middle.toFixed(2)} | | ${mib(later)} |`,
    `| ${oneByOne.length} at once, the slowest; sum | ${worst.toFixed(2)} | | ${mib(together.linkBytes)} |`,
    '',
    `The second node reads ${(first!.seconds / (others[0]?.seconds ?? 1)).toFixed(1)} times as fast as the first.`,
    `With a boot pack (${withPack.ranges} ranges, ${mib(withPack.packBytes)} MiB) the first node reads ${(first!.seconds / withPack.seconds).toFixed(1)} times as fast as without; from its attach on ${(first!.fromAttachSeconds / withPack.fromAttachSeconds).toFixed(1)} times.`,
  ].join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      nodes: { type: 'string', default: '20' },
      svg: { type: 'string' },
      json: { type: 'string' },
    },
  });
  const cleanup = new Cleanup();
  try {
    const result = await storm(Number(values.nodes), cleanup, line => {
      process.stderr.write(`${line}\n`);
    });
    process.stdout.write(`${table(result)}\n`);
    if (values.svg !== undefined) writeFileSync(values.svg, plotStorm(result));
    if (values.json !== undefined)
      writeFileSync(
        values.json,
        `${JSON.stringify({ machine: await machineFacts(), link: LINK, ...result }, null, 2)}\n`,
      );
  } finally {
    await cleanup.run();
  }
}

await main();
