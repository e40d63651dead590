/**
 * Goal: no client harms another, nor the daemon: floods, junk, clients that read nothing, hold
 * their requests back, or vanish, by the hundred. Method: they all run against one daemon, while a
 * well-behaved client works and is verified; then its memory and descriptors are as before.
 */
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import t from 'tap';
import { OPT } from '../../src/transport/nbd/wire.ts';
import { ExportSandbox, ROOT_BYTES } from '../support/export-sandbox.ts';
import { NbdCaller } from '../support/nbd-caller.ts';
import { CLIENT_FLAGS, option, wanted } from '../support/nbd-talk.ts';
import { request } from '../support/nbd-words.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import { run, sleep, until } from '../support/run.ts';

t.setTimeout(900_000); // for what hangs

const skip = await missing('root', 'qemu-img', 'nbdcopy');

const READ = 0;
const WRITE = 1;
const MIB = 1024 * 1024;

function descriptors(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** Memory of the daemon's own, in bytes. */
function ownMemory(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^RssAnon:\s+(\d+) kB/m.exec(status)![1]) * 1024;
}

async function settled({ sandbox }: ExportSandbox, files: number): Promise<void> {
  await until('the clients are gone', async () => {
    const [listener] = await sandbox.client.listeners();
    return listener!.connections === 0 && listener!.handshakes === 0;
  });
  await until('their descriptors are closed', () => descriptors(sandbox.daemonPid()) <= files + 2);
}

t.test('hostile clients', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root, content, socket: path } = made;
  await sandbox.client.addExport({ name: 'web', root });
  await sandbox.client.addTemplate({ root, dir: made.path('vms'), prefix: 'vm-' });
  const pid = sandbox.daemonPid();
  const image = made.file('image', Buffer.from(content).reverse());
  /** A disk is written and read back: over several connections. */
  const work = async (name: string): Promise<boolean> => {
    const out = made.path(`${name}.out`);
    await run('nbdcopy', ['--connections=2', image, made.uri(name)]);
    await run('nbdcopy', ['--connections=2', made.uri(name), out]);
    return readFileSync(out).equals(readFileSync(image));
  };
  t.ok(await work('vm-0'));

  const served = async (name: string): Promise<NbdCaller> => {
    const caller = await NbdCaller.connect({ path });
    await caller.begin();
    await caller.go(name);
    return caller;
  };

  t.test('hundreds that read none of their replies do not stop the others', async t => {
    const files = descriptors(pid);
    const before = ownMemory(pid);
    const deaf: NbdCaller[] = [];
    for (let i = 0; i < 200; i++) {
      const caller = await served('web');
      caller.socket.removeAllListeners('data').pause();
      // More than sockets hold: the replies stay with the server.
      const asks = Array.from({ length: 40 }, (_, n) =>
        request({ type: READ, offset: n * 256 * 1024, length: 256 * 1024 }),
      );
      caller.socket.write(Buffer.concat(asks));
      deaf.push(caller);
    }
    t.ok(await work('vm-1'), 'a client beside them is served, and right');
    const grown = ownMemory(pid) - before;
    // 200 connections, each with a block of its own, and what all share.
    t.ok(grown < 200 * 1.6 * MIB + 100 * MIB, `${Math.round(grown / MIB)} MiB`);
    for (const caller of deaf) caller.end();
    await settled(made, files);
    t.ok(await work('vm-1'));
  });

  t.test('hundreds that send half a request do not stop the others', async t => {
    const files = descriptors(pid);
    const halves: NbdCaller[] = [];
    const write = request({ type: WRITE, offset: 0, data: Buffer.alloc(MIB, 7) });
    for (let i = 0; i < 200; i++) {
      const caller = await served('web');
      caller.socket.write(write.subarray(0, 1 + i * 5000));
      halves.push(caller);
    }
    t.ok(await work('vm-2'));
    for (const caller of halves) caller.end();
    await settled(made, files);
  });

  t.test('junk, floods and vanishing clients in numbers', async t => {
    const files = descriptors(pid);
    const random = new Random(3);
    const junk = async (round: number): Promise<void> => {
      const socket = connect({ path });
      socket.on('error', () => {}).resume();
      const bytes = Buffer.from(Array.from({ length: random.below(300) }, () => random.below(256)));
      const kinds = [
        bytes,
        Buffer.concat([CLIENT_FLAGS, bytes]),
        Buffer.concat([CLIENT_FLAGS, option(random.below(14), bytes)]),
        Buffer.concat([CLIENT_FLAGS, ...Array.from({ length: 500 }, () => option(OPT.LIST))]),
        Buffer.concat([CLIENT_FLAGS, option(OPT.GO, wanted('web')), bytes]),
        Buffer.concat([
          CLIENT_FLAGS,
          option(OPT.GO, wanted('web')),
          request({ type: random.below(9), offset: 2n ** 63n, length: 0xffffffff }),
        ]),
      ];
      socket.write(kinds[round % kinds.length]!);
      await sleep(random.below(30));
      if (random.chance(0.5)) socket.end();
      await sleep(random.below(30));
      socket.destroy();
    };
    const flood = async (worker: number): Promise<void> => {
      for (let i = 0; i < 60; i++) await junk(worker + i);
    };
    const floods = Promise.all(Array.from({ length: 10 }, (_, worker) => flood(worker)));
    t.ok(await work('vm-3'));
    await floods;
    await settled(made, files);
    t.ok(await work('vm-3'));
  });

  t.test('a thousand connections at once: each is served', async t => {
    const files = descriptors(pid);
    const callers: NbdCaller[] = [];
    for (let i = 0; i < 1000; i += 50) {
      const group = Array.from({ length: 50 }, (_, n) => served(n % 2 === 0 ? 'web' : 'vm-4'));
      callers.push(...(await Promise.all(group)));
    }
    t.match(await sandbox.client.listeners(), [{ connections: 1000 }]);
    let right = 0;
    // Beyond what half a request may have written.
    const offsetOf = (index: number): number => MIB + ((index * 4096) % (ROOT_BYTES - MIB));
    for (const [index, caller] of callers.entries()) {
      const offset = offsetOf(index);
      caller.socket.write(request({ type: READ, offset, length: 4096, cookie: BigInt(index) }));
    }
    for (const [index, caller] of callers.entries()) {
      const reply = await caller.take(16 + 4096);
      const offset = offsetOf(index);
      const header = reply.readUInt32BE(4) === 0 && reply.readBigUInt64BE(8) === BigInt(index);
      if (header && reply.subarray(16).equals(content.subarray(offset, offset + 4096))) right++;
    }
    t.equal(right, 1000);
    t.ok(await work('vm-5'), 'and one more');
    for (const caller of callers) caller.end();
    await settled(made, files);
  });

  t.test('clients that are killed in the middle of their work', async t => {
    const files = descriptors(pid);
    for (let i = 0; i < 10; i++) {
      const bench = spawn('qemu-img', [
        ...['bench', '-w', '-f', 'raw', '-c', '100000000', '-d', '64', made.uri('vm-6')],
      ]);
      bench.on('error', () => {});
      await sleep(30 + i * 10);
      bench.kill('SIGKILL');
    }
    t.ok(await work('vm-7'));
    await settled(made, files);
    t.ok(await work('vm-6'));
  });

  t.ok(made.rootIsUntouched());
  t.notMatch(sandbox.log(), /a bug|died/);
});
