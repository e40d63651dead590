/**
 * What clients cost a server by their number: 200 disks of one template over one root, 1,000
 * connections, five to a disk. Prints a table of memory and CPU time of the daemon.
 *
 *     npm run build && node dist/test/bench/nbd/many.js [CONNECTIONS [DISKS]]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { Cleanup } from '../../support/cleanup.ts';
import { NbdCaller } from '../../support/nbd-caller.ts';
import { request } from '../../support/nbd-words.ts';
import { Sandbox } from '../../support/sandbox.ts';
import { cpuMicros } from '../machine.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const ROOT_BYTES = 256 * MIB;
const BLOCK = 4096;
const READ = 0;
const WRITE = 1;
const ROUNDS = 10;

const connections = Number(process.argv[2] ?? 1000);
const disks = Number(process.argv[3] ?? 200);

/** What the daemon has resident, in KiB. */
function memory(pid: number): number {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(text)![1]);
}

const cleanup = new Cleanup();
try {
  const sandbox = await Sandbox.start(cleanup);
  const root = sandbox.path('root.img');
  writeFileSync(root, Buffer.alloc(ROOT_BYTES, 7));
  const socket = sandbox.path('s');
  await sandbox.client.listen({ uri: `nbd+unix://${socket}` });
  await sandbox.client.addTemplate({ root, dir: sandbox.path('disks') });
  const pid = sandbox.daemonPid();
  const callers: NbdCaller[] = [];

  console.log('| state | MiB | KiB per connection | CPU ms | CPU us per step |');
  console.log('| --- | ---: | ---: | ---: | ---: |');
  const first = memory(pid);
  const row = async (title: string, steps: number, work: () => Promise<void>): Promise<void> => {
    const before = cpuMicros([pid]);
    await work();
    const micros = cpuMicros([pid]) - before;
    const kib = memory(pid);
    const each = callers.length === 0 ? 0 : (kib - first) / callers.length;
    const perStep = steps === 0 ? '' : (micros / steps).toFixed(0);
    console.log(
      `| ${title} | ${(kib / KIB).toFixed(0)} | ${each.toFixed(0)} ` +
        `| ${(micros / 1000).toFixed(0)} | ${perStep} |`,
    );
  };
  const all = async (ask: (index: number) => Buffer, replyBytes: number): Promise<void> => {
    for (let round = 0; round < ROUNDS; round++) {
      for (const [index, caller] of callers.entries())
        caller.socket.write(ask(index * ROUNDS + round));
      for (const caller of callers) {
        const reply = await caller.take(replyBytes);
        if (reply.readUInt32BE(4) !== 0) throw new Error(`error ${reply.readUInt32BE(4)}`);
      }
    }
  };
  const offsetOf = (index: number): number => (index * BLOCK) % ROOT_BYTES;
  const data = Buffer.alloc(BLOCK, 9);

  await row('no client', 0, async () => {});
  await row(`${disks} disks, ${connections} connections`, connections, async () => {
    for (let i = 0; i < connections; i++) {
      const caller = await NbdCaller.connect({ path: socket });
      callers.push(caller);
      await caller.begin();
      await caller.go(`vm-${i % disks}`);
    }
  });
  await row('one second idle', 0, () => new Promise(resolve => setTimeout(resolve, 1000)));
  const steps = connections * ROUNDS;
  await row(`${steps} reads of 4K, one each at a time`, steps, () =>
    all(index => request({ type: READ, offset: offsetOf(index), length: BLOCK }), 16 + BLOCK),
  );
  await row(`${steps} first writes of 4K`, steps, () =>
    all(index => request({ type: WRITE, offset: offsetOf(index), data }), 16),
  );
  await row('all have left, six seconds later', connections, async () => {
    for (const caller of callers) caller.end();
    await new Promise(resolve => setTimeout(resolve, 6500));
  });
  const cache = await sandbox.client.cache();
  console.log(`\nOf that the cache of root blocks has ${(cache.memory / MIB).toFixed(0)} MiB.`);
} finally {
  await cleanup.run();
}
