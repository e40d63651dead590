/**
 * FUSE by entries of a ring, without a kernel that has it. Method: the ring is ours, which keeps
 * what is prepared instead of submitting it; the test plays the kernel: INIT over a socket, then
 * requests put into entries by their addresses, and commits read from there.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { setImmediate as tick } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { EINVAL, EIO, ENOTCONN } from '../../../src/base/errno.ts';
import { PartPool, UnionDevice } from '../../../src/engine/union.ts';
import { native } from '../../../src/native/binding.ts';
import type { Loan } from '../../../src/store/loan.ts';
import {
  FuseQueues,
  RING_DATA_BYTES,
  RingIntake,
} from '../../../src/transport/fuse/ring-intake.ts';
import { FuseSession } from '../../../src/transport/fuse/session.ts';
import { FuseSlots } from '../../../src/transport/fuse/slots.ts';
import { FUSE, INIT, INIT2 } from '../../../src/transport/fuse/wire.ts';
import { SyncCalls } from '../../../src/uring/calls.ts';
import type { IoOp, Memory } from '../../../src/uring/io.ts';
import { allocateMemory } from '../../../src/uring/memory.ts';
import type { Ring } from '../../../src/uring/ring.ts';
import { COMMAND_WORD, OPCODE } from '../../../src/uring/sqe.ts';
import { dataBody, devFuse, message } from '../../support/fuse-requests.ts';
import { MemoryLayer } from '../../support/memory-layer.ts';

const SECTORS = 4096;
const PROCESSORS = 3;
const REGISTER = 1;
const COMMIT_AND_FETCH = 2;

interface Prepared {
  opcode: number;
  word: number;
  op: IoOp;
}

/** A ring that submits nothing. */
class IdleRing {
  readonly words = new Uint32Array(32 * 1024);
  readonly calls = new SyncCalls();
  prepared: Prepared[] = [];
  #next = 0;

  prepare(opcode: number, _fd: number, op: IoOp): number {
    const word = (this.#next++ * 32) % this.words.length;
    this.words.fill(0, word, word + 32);
    this.prepared.push({ opcode, word, op });
    return word;
  }

  cancelAll(): void {
    const poll = this.take(OPCODE.POLL_ADD);
    poll?.op.done(-125, 0);
  }

  take(opcode: number): Prepared | undefined {
    const at = this.prepared.findIndex(one => one.opcode === opcode);
    return at < 0 ? undefined : this.prepared.splice(at, 1)[0];
  }
}

/** Lends what it has, as the cache does; but for the last sector of each block, which is read. */
class Lending extends MemoryLayer {
  readonly memory = allocateMemory(SECTORS * 512);
  /** Of what is lent. */
  address = this.memory.address;
  lent = 0;

  override run(sector: number, end: number): number {
    return Math.min(end - sector, sector % 8 === 7 ? 1 : 7 - (sector % 8));
  }

  lend(sector: number, count: number, loan: Loan): number {
    if (sector % 8 === 7 || !loan.hasRoom) return 0;
    loan.addresses[loan.lend(count * 512, this, 1)] = this.address + sector * 512;
    this.lent++;
    return count;
  }

  giveBack(): void {
    this.lent--;
  }
}

/** Has what was written to it. */
class Leaf extends MemoryLayer {
  readonly #has = new Set<number>();

  override run(sector: number): number {
    return this.#has.has(sector) ? 1 : -1;
  }

  override write(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    for (let i = 0; i < count; i++) this.#has.add(sector + i);
    super.write(sector, count, memory, start, op);
  }
}

interface Entry {
  header: number;
  data: number;
  queue: number;
  /** How the kernel ends the command that gave it the entry. */
  end: (result: number) => void;
}

class Kernel {
  readonly ring = new IdleRing();
  readonly slots: FuseSlots;
  readonly queues: FuseQueues;
  readonly session: FuseSession;
  readonly root = new Lending(SECTORS);
  readonly leaf = new Leaf(SECTORS);
  readonly #socket: Socket;
  readonly #own = allocateMemory(RING_DATA_BYTES + 4096);
  #unique = 5;
  ended: string | null | undefined;
  entries: Entry[] = [];

  constructor(socket: Socket, fd: number) {
    this.#socket = socket;
    const ring = this.ring as unknown as Ring;
    this.slots = new FuseSlots(ring, 4);
    this.queues = new FuseQueues(ring, PROCESSORS);
    this.session = new FuseSession({
      slots: this.slots,
      queues: this.queues,
      fd,
      device: new UnionDevice({
        sizeSectors: SECTORS,
        layers: [this.root],
        leaf: this.leaf,
        parts: new PartPool(8),
        onFault: () => {},
      }),
      onEnd: reason => {
        if (this.ended !== undefined) throw new Error('ended twice');
        this.ended = reason;
      },
    });
  }

  static async start(t: Test): Promise<Kernel> {
    const { socket, fd } = await devFuse(t);
    const kernel = new Kernel(socket, fd);
    t.teardown(() => {
      kernel.queues.close();
      kernel.slots.close();
    });
    return kernel;
  }

  /** INIT over /dev/fuse; returns the flags of the answer. */
  async init(flags2: number = INIT2.OVER_IO_URING): Promise<{ flags2: number; maxWrite: number }> {
    const body = Buffer.alloc(64);
    body.writeUInt32LE(7, 0);
    body.writeUInt32LE(45, 4);
    body.writeUInt32LE(INIT.INIT_EXT | INIT.ASYNC_DIO, 12);
    body.writeUInt32LE(flags2, 16);
    this.#socket.write(message(FUSE.INIT, 1, body));
    await tick();
    await tick();
    this.ring.take(OPCODE.POLL_ADD)!.op.done(1, 0);
    this.ring.calls.run();
    const write = this.ring.take(OPCODE.WRITE);
    if (write === undefined) return { flags2: 0, maxWrite: 0 };
    const { words } = this.ring;
    const length = words[write.word + 6]!;
    const reply = this.look(words[write.word + 4]! + words[write.word + 5]! * 2 ** 32, length);
    write.op.done(length, 0);
    this.#collect(REGISTER);
    return { flags2: reply.readUInt32LE(16 + 32), maxWrite: reply.readUInt32LE(16 + 20) };
  }

  /** Copies out of memory that is known by its address. */
  look(address: number, length: number): Buffer {
    native.copyMemory(this.#own.address, address, length);
    return Buffer.from(this.#own.bytes.slice(0, length));
  }

  #put(address: number, bytes: Buffer): void {
    this.#own.bytes.set(bytes);
    native.copyMemory(address, this.#own.address, bytes.length);
  }

  /** Takes the commands that were prepared; all are of this kind. */
  #collect(code: number): Prepared[] {
    const commands: Prepared[] = [];
    for (;;) {
      const one = this.ring.take(OPCODE.URING_CMD);
      if (one === undefined) return commands;
      if (this.ring.words[one.word + 2] !== code) throw new Error('another command');
      if (code === REGISTER) this.#registered(one);
      commands.push(one);
    }
  }

  #registered({ word, op }: Prepared): void {
    const { words } = this.ring;
    if (words[word + 6] !== 2) throw new Error('two vectors');
    const vectors = this.look(words[word + 4]! + words[word + 5]! * 2 ** 32, 32);
    if (vectors.readUInt32LE(8) < 288) throw new Error('a header is longer');
    if (vectors.readUInt32LE(24) < RING_DATA_BYTES) throw new Error('data are longer');
    this.entries.push({
      header: Number(vectors.readBigUInt64LE(0)),
      data: Number(vectors.readBigUInt64LE(16)),
      queue: words[word + COMMAND_WORD + 4]!,
      end: result => op.done(result, 0),
    });
  }

  /** Puts a request into an entry; returns its number. */
  give(entry: Entry, opcode: number, body: Buffer, data: Buffer = Buffer.alloc(0)): bigint {
    const unique = BigInt(this.#unique++) + 2n ** 40n;
    const header = Buffer.alloc(288);
    header.writeUInt32LE(40 + body.length + data.length, 0);
    header.writeUInt32LE(opcode, 4);
    header.writeBigUInt64LE(unique, 8);
    header.writeBigUInt64LE(2n, 16);
    body.copy(header, 128);
    header.writeBigUInt64LE(unique, 264);
    header.writeUInt32LE(data.length, 272);
    this.#put(entry.header, header);
    if (data.length > 0) this.#put(entry.data, data);
    entry.end(0);
    this.ring.calls.run();
    return unique;
  }

  /** The commit of a request: its error and its data. */
  committed(entry: Entry, unique: bigint): { error: number; data: Buffer } {
    const [command, ...more] = this.#collect(COMMIT_AND_FETCH);
    if (command === undefined || more.length > 0) throw new Error('one commit for one request');
    const { words } = this.ring;
    const at = command.word + COMMAND_WORD;
    if (BigInt(words[at + 2]!) + (BigInt(words[at + 3]!) << 32n) !== unique)
      throw new Error('the commit is of another request');
    if (words[at + 4] !== entry.queue) throw new Error('the commit is of another queue');
    const header = this.look(entry.header, 288);
    if (header.readBigUInt64LE(8) !== unique) throw new Error('the reply is another one’s');
    entry.end = result => command.op.done(result, 0);
    return { error: header.readInt32LE(4), data: this.look(entry.data, header.readUInt32LE(272)) };
  }

  ask(entry: Entry, opcode: number, body: Buffer, data?: Buffer): { error: number; data: Buffer } {
    return this.committed(entry, this.give(entry, opcode, body, data));
  }
}

t.test('after INIT each queue has its entries, with memory of their own', async t => {
  const kernel = await Kernel.start(t);
  t.strictSame(await kernel.init(), { flags2: INIT2.OVER_IO_URING, maxWrite: RING_DATA_BYTES });
  const { entries, queues } = kernel;
  t.equal(entries.length, PROCESSORS * queues.entriesEach);
  for (let queue = 0; queue < PROCESSORS; queue++)
    t.equal(entries.filter(entry => entry.queue === queue).length, queues.entriesEach);
  const starts = entries.map(({ data }) => data).sort((a, b) => a - b);
  t.ok(starts.every((start, i) => i === 0 || start - starts[i - 1]! >= RING_DATA_BYTES));
});

t.test('however many processors there are, each has entries, and a device not many', async t => {
  const ring = new IdleRing() as unknown as Ring;
  for (const [processors, each] of [
    [1, 32],
    [2, 32],
    [16, 16],
    [128, 2],
    [1024, 2],
  ] as const)
    t.equal(new FuseQueues(ring, processors).entriesEach, each, `${processors}`);
});

t.test('a kernel that does not offer it ends the session with the reason', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init(0);
  t.match(kernel.ended, /an INIT that does not offer FUSE over io_uring/);
  t.notOk(kernel.queues.held, 'its memory is free');
});

t.test('what is written is read back, also in part lent', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init();
  const [first, second] = kernel.entries as [Entry, Entry];
  // Where the layer lends from, and where it reads from: each sector says which.
  for (let sector = 0; sector < SECTORS; sector++) {
    kernel.root.memory.bytes.fill(1 + (sector % 100), sector * 512, sector * 512 + 512);
    kernel.root.content.fill(1 + (sector % 100), sector * 512, sector * 512 + 512);
  }
  const data = Buffer.alloc(1024, 0xab);
  const written = kernel.ask(first, FUSE.WRITE, dataBody(512 * 9, 1024), data);
  t.equal(written.error, 0);
  t.equal(written.data.readUInt32LE(0), 1024);
  t.equal(written.data.length, 8);
  const read = kernel.ask(second, FUSE.READ, dataBody(512 * 3, 512 * 20));
  const expected = Buffer.concat(
    Array.from({ length: 20 }, (_, i) =>
      Buffer.alloc(512, i + 3 === 9 || i + 3 === 10 ? 0xab : 1 + i + 3),
    ),
  );
  t.equal(read.error, 0);
  t.ok(read.data.equals(expected));
  t.equal(kernel.root.lent, 0, 'all that was lent is given back');
  kernel.root.address = 0;
  const failed = kernel.ask(first, FUSE.READ, dataBody(512 * 16, 4096));
  t.equal(failed.error, -EIO, 'what cannot be copied is an error, not what stood there');
  t.equal(kernel.root.lent, 0);
});

t.test('errors of stores, and ranges that no entry can hold, are answered', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init();
  const entry = kernel.entries[0]!;
  t.equal(kernel.ask(entry, FUSE.READ, dataBody(0, RING_DATA_BYTES + 512)).error, -EINVAL);
  kernel.leaf.errno = EIO;
  const failed = kernel.ask(entry, FUSE.FSYNC, Buffer.alloc(16));
  t.equal(failed.error, -EIO);
  t.equal(failed.data.length, 0);
});

t.test('when the connection ends, so does the session, and its memory is free', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init();
  for (const entry of kernel.entries) entry.end(-ENOTCONN);
  t.equal(kernel.ended, 'the kernel ended the connection');
  t.notOk(kernel.queues.held);
});

t.test('after a stop, requests are refused until the last entry is back', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init();
  const [first, ...others] = kernel.entries as [Entry, ...Entry[]];
  kernel.session.stop();
  t.equal(kernel.ended, null);
  t.equal(kernel.ask(first, FUSE.READ, dataBody(0, 512)).error, -EIO);
  for (const entry of others) entry.end(-ENOTCONN);
  t.ok(kernel.queues.held, 'the kernel has one still');
  first.end(-ENOTCONN);
  t.notOk(kernel.queues.held);
});

t.test('an entry that the kernel refuses ends the session with the reason', async t => {
  const kernel = await Kernel.start(t);
  await kernel.init();
  const [first, ...others] = kernel.entries as [Entry, ...Entry[]];
  first.end(-EINVAL);
  t.equal(kernel.ended, 'the kernel refused an entry: EINVAL');
  for (const entry of others) entry.end(-ENOTCONN);
  t.notOk(kernel.queues.held);
});

t.test('a device for which there is no memory is refused, and leaves nothing', t => {
  const queues = new FuseQueues(new IdleRing() as unknown as Ring, 1024); // 256 MiB for each device
  const fd = openSync('/dev/null', 'r');
  t.teardown(() => closeSync(fd));
  const open = (): number => readdirSync('/proc/self/fd').length;
  const before = open();
  const make = (): RingIntake => new RingIntake(undefined as unknown as FuseSession, queues, fd);
  const kibibytes = Number(/^VmSize:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]);
  const limit = (bytes: number | 'unlimited'): unknown =>
    spawnSync('prlimit', ['--pid', `${process.pid}`, `--as=${bytes}:`]).status;
  t.equal(limit((kibibytes + 2 ** 17) * 1024), 0);
  try {
    t.throws(make, { code: 'io', message: /no 257 MiB of memory/, next: /UBD_FUSE_URING/ });
  } finally {
    limit('unlimited');
  }
  t.notOk(queues.held);
  t.equal(open(), before);
  make().release();
  t.equal(open(), before);
  t.end();
});
