/**
 * The boot storm: what many nodes read while they boot, over one root behind a narrow link.
 *
 *     node dist/test/bench/storm.js [--nodes 20] [--svg FILE] [--json FILE]
 *
 * The reads are those of a real virtual machine (scripts/record-boot), replayed on one block device
 * for each node, as fast as they are answered (storm-node.ts). The root is an NBD export behind a link of
 * 76 MB/s and 5 ms (nbdkit's rate and delay filters). Nodes boot one after the other, and, with
 * everything cold again, all at once. Prints a table.
 */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
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
  /** Seconds that its reads took. */
  seconds: number;
  /** Bytes that the link carried meanwhile. */
  linkBytes: number;
}

export interface Storm {
  reads: number;
  readBytes: number;
  distinctBytes: number;
  oneByOne: NodeTime[];
  together: { nodes: NodeTime[]; linkBytes: number };
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

async function storm(nodes: number, cleanup: Cleanup, say: (line: string) => void): Promise<Storm> {
  const reads = loadTrace(TRACE);
  const lab = await Sandbox.start(cleanup);
  const image = lab.path('root.img');
  makeRoot(image, reads);
  const server = nbdkit(image, lab.path('link.sock'), {
    filters: ['rate', 'delay'],
    parameters: [`rate=${LINK.megabytes * 8}M`, `rdelay=${LINK.delayMs}ms`],
  });
  await server.start();
  cleanup.add('end the server', () => server.kill());
  const attach = (sandbox: Sandbox): Promise<Attached> =>
    sandbox.attach({ root: server.uri, ephemeral: true });

  const oneByOne: NodeTime[] = [];
  for (let node = 1; node <= nodes; node++) {
    const device = await attach(lab);
    const before = await linkBytes(lab, server.uri);
    const seconds = await boot(device.node);
    oneByOne.push({ seconds, linkBytes: (await linkBytes(lab, server.uri)) - before });
    say(`node ${node}: ${seconds.toFixed(2)} s`);
  }

  const cold = await Sandbox.start(cleanup);
  const devices: Attached[] = [];
  for (let node = 1; node <= nodes; node++) devices.push(await attach(cold));
  const before = await linkBytes(cold, server.uri);
  const times = await Promise.all(devices.map(device => boot(device.node)));
  const carried = (await linkBytes(cold, server.uri)) - before;
  say(`all at once: ${Math.max(...times).toFixed(2)} s`);
  return {
    reads: reads.length,
    readBytes: reads.reduce((sum, { length }) => sum + length, 0),
    distinctBytes: distinct(reads),
    oneByOne,
    together: {
      nodes: times.map(seconds => ({ seconds, linkBytes: carried / nodes })),
      linkBytes: carried,
    },
  };
}

function table({ reads, readBytes, distinctBytes, oneByOne, together }: Storm): string {
  const mib = (bytes: number): string => (bytes / MIB).toFixed(1);
  const [first, ...others] = oneByOne;
  const rest = others.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const middle = rest[Math.floor(rest.length / 2)] ?? Number.NaN;
  const worst = Math.max(...together.nodes.map(({ seconds }) => seconds));
  const later = others.reduce((sum, one) => sum + one.linkBytes, 0);
  return [
    `A boot: ${reads} reads, ${mib(readBytes)} MiB, ${mib(distinctBytes)} MiB of them distinct.`,
    '',
    '| | reads take, s | over the link, MiB |',
    '| --- | ---: | ---: |',
    `| the first node | ${first!.seconds.toFixed(2)} | ${mib(first!.linkBytes)} |`,
    `| the second node | ${others[0]?.seconds.toFixed(2)} | ${mib(others[0]?.linkBytes ?? 0)} |`,
    `| nodes 2 to ${oneByOne.length}, median; sum | ${middle.toFixed(2)} | ${mib(later)} |`,
    `| ${oneByOne.length} at once, the slowest; sum | ${worst.toFixed(2)} | ${mib(together.linkBytes)} |`,
    '',
    `The second node reads ${(first!.seconds / (others[0]?.seconds ?? 1)).toFixed(1)} times as fast as the first.`,
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
