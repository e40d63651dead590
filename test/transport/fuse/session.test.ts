/**
 * A FUSE session without a kernel's FUSE: the test speaks for the kernel on a socket, in whole
 * messages, and reads the replies. So it can also say what no kernel would.
 */
import type { Socket } from 'node:net';
import { setImmediate as tick } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { EINVAL, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, EROFS } from '../../../src/base/errno.ts';
import { PartPool, UnionDevice } from '../../../src/engine/union.ts';
import { FuseSession } from '../../../src/transport/fuse/session.ts';
import { DATA_BYTES, FuseSlots } from '../../../src/transport/fuse/slots.ts';
import { FALLOC, FUSE, INIT } from '../../../src/transport/fuse/wire.ts';
import { Ring } from '../../../src/uring/ring.ts';
import { dataBody, devFuse, fallocateBody, message } from '../../support/fuse-requests.ts';
import { MemoryLayer } from '../../support/memory-layer.ts';

const SECTORS = 4096;

interface Reply {
  error: number;
  unique: bigint;
  body: Buffer;
}

interface KernelOptions {
  slots?: number;
  readOnly?: boolean;
  neighbour?: Kernel;
}

class Kernel {
  readonly ring: Ring;
  readonly slots: FuseSlots;
  readonly leaf = new MemoryLayer(SECTORS);
  readonly session: FuseSession;
  readonly #socket: Socket;
  #received = Buffer.alloc(0);
  #unique = 0x1_0000_0001;
  /** What onEnd told; undefined before. */
  ended: string | null | undefined;

  private constructor(
    socket: Socket,
    fd: number,
    neighbour: Kernel | undefined,
    slots: number,
    readOnly: boolean,
  ) {
    this.#socket = socket;
    this.ring = neighbour?.ring ?? new Ring({ entries: 64 });
    this.slots = neighbour?.slots ?? new FuseSlots(this.ring, slots);
    this.session = new FuseSession({
      slots: this.slots,
      fd,
      device: new UnionDevice({
        sizeSectors: SECTORS,
        layers: readOnly ? [this.leaf] : [],
        leaf: readOnly ? null : this.leaf,
        parts: new PartPool(8),
        onFault: () => {},
      }),
      onEnd: reason => {
        if (this.ended !== undefined) throw new Error('ended twice');
        this.ended = reason;
      },
    });
    socket.on('data', data => {
      this.#received = Buffer.concat([this.#received, data]);
    });
  }

  /** `neighbour`: shares its ring and its slots. */
  static async start(
    t: Test,
    { slots = 4, readOnly = false, neighbour }: KernelOptions = {},
  ): Promise<Kernel> {
    const { socket, fd } = await devFuse(t);
    const kernel = new Kernel(socket, fd, neighbour, slots, readOnly);
    if (neighbour === undefined)
      t.teardown(() => {
        kernel.ring.close();
        kernel.slots.close();
      });
    return kernel;
  }

  async turn(times = 20): Promise<void> {
    for (let i = 0; i < times; i++) {
      this.ring.turn(false);
      await tick();
    }
  }

  async send(opcode: number, body: Buffer, length?: number): Promise<bigint> {
    const unique = this.#unique++;
    this.#socket.write(message(opcode, unique, body, length));
    await this.turn();
    return BigInt(unique);
  }

  /** The next reply that came; undefined if there is none. */
  take(): Reply | undefined {
    if (this.#received.length < 16) return undefined;
    const length = this.#received.readUInt32LE(0);
    const reply = {
      error: this.#received.readInt32LE(4),
      unique: this.#received.readBigUInt64LE(8),
      body: this.#received.subarray(16, length),
    };
    if (this.#received.length < length) return undefined;
    this.#received = this.#received.subarray(length);
    return reply;
  }

  async ask(opcode: number, body: Buffer): Promise<Reply> {
    const unique = await this.send(opcode, body);
    const reply = this.take();
    if (reply === undefined) throw new Error(`no reply to ${opcode}`);
    if (reply.unique !== unique) throw new Error(`reply to ${reply.unique} instead of ${unique}`);
    return reply;
  }
}

t.test('INIT takes what both sides have', async t => {
  const kernel = await Kernel.start(t);
  const body = Buffer.alloc(64);
  body.writeUInt32LE(7, 0);
  body.writeUInt32LE(45, 4);
  body.writeUInt32LE((INIT.ASYNC_DIO | INIT.MAX_PAGES | 0x40000000) >>> 0, 12);
  const reply = await kernel.ask(FUSE.INIT, body);
  t.equal(reply.error, 0);
  t.equal(reply.body.readUInt32LE(12), INIT.ASYNC_DIO | INIT.MAX_PAGES);
  t.equal(reply.body.readUInt32LE(20), DATA_BYTES, 'max_write');
});

t.test('a kernel that is too old ends the session with the reason', async t => {
  const kernel = await Kernel.start(t);
  const body = Buffer.alloc(16);
  body.writeUInt32LE(7, 0);
  body.writeUInt32LE(30, 4);
  await kernel.send(FUSE.INIT, body);
  t.match(kernel.ended, /7\.30.*7\.31 is needed/);
});

t.test('what is written is read back, at the right place', async t => {
  const kernel = await Kernel.start(t);
  const data = Buffer.alloc(1024, 0xab);
  const written = await kernel.ask(FUSE.WRITE, dataBody(512 * 7, 1024, data));
  t.equal(written.error, 0);
  t.equal(written.body.readUInt32LE(0), 1024);
  t.equal(written.body.length, 8);
  const read = await kernel.ask(FUSE.READ, dataBody(512 * 6, 2048));
  t.same(read.body, Buffer.concat([Buffer.alloc(512), data, Buffer.alloc(512)]));
  t.strictSame(kernel.leaf.calls, ['write 7+2', 'read 6+4']);
});

t.test('FSYNC is a flush, and a hole is zeroes, exactly where it was asked for', async t => {
  const kernel = await Kernel.start(t);
  t.equal((await kernel.ask(FUSE.FSYNC, Buffer.alloc(16))).error, 0);
  const punch = FALLOC.PUNCH_HOLE | FALLOC.KEEP_SIZE;
  t.equal((await kernel.ask(FUSE.FALLOCATE, fallocateBody(512, 1024, punch))).error, 0);
  const zero = FALLOC.ZERO_RANGE | FALLOC.KEEP_SIZE;
  t.equal((await kernel.ask(FUSE.FALLOCATE, fallocateBody(4096, 512, zero))).error, 0);
  t.strictSame(kernel.leaf.calls, ['flush', 'zeroes 1+2', 'zeroes 8+1 keep']);
  const other = await kernel.ask(FUSE.FALLOCATE, fallocateBody(0, 512, 0));
  t.equal(other.error, -EOPNOTSUPP, 'allocating is not offered');
});

t.test('ranges that are not the device’s are refused, and reach no store', async t => {
  const kernel = await Kernel.start(t);
  const end = SECTORS * 512;
  const sector = Buffer.alloc(512);
  const ask = async (opcode: number, body: Buffer): Promise<number> =>
    (await kernel.ask(opcode, body)).error;
  t.equal(await ask(FUSE.READ, dataBody(1, 512)), -EINVAL);
  t.equal(await ask(FUSE.READ, dataBody(0, 100)), -EINVAL);
  t.equal(await ask(FUSE.READ, dataBody(0, DATA_BYTES + 512)), -EINVAL, 'more than was agreed on');
  t.equal(await ask(FUSE.WRITE, dataBody(1, 512, sector)), -EINVAL);
  t.equal(await ask(FUSE.WRITE, dataBody(0, 5, Buffer.alloc(5))), -EINVAL);
  t.equal(await ask(FUSE.WRITE, dataBody(0, 0)), -EINVAL);
  t.equal(await ask(FUSE.WRITE, dataBody(end, 512, sector)), -ENOSPC);
  t.equal(await ask(FUSE.WRITE, dataBody(end - 512, 1024, Buffer.alloc(1024))), -ENOSPC);
  t.equal(await ask(FUSE.WRITE, dataBody(2 ** 52, 512, sector)), -ENOSPC);
  const punch = FALLOC.PUNCH_HOLE | FALLOC.KEEP_SIZE;
  t.equal(await ask(FUSE.FALLOCATE, fallocateBody(0, end + 512, punch)), -ENOSPC);
  t.equal(await ask(FUSE.FALLOCATE, fallocateBody(512, 100, punch)), -EINVAL);
  t.equal(await ask(FUSE.FALLOCATE, fallocateBody(512, 2 ** 53, punch)), -ENOSPC);
  const huge = fallocateBody(0, 0, punch);
  huge.fill(0xff, 8, 24);
  t.not(await ask(FUSE.FALLOCATE, huge), 0, 'all ones');
  t.strictSame(kernel.leaf.calls, []);
});

t.test('a read ends where the device ends', async t => {
  const kernel = await Kernel.start(t);
  const end = SECTORS * 512;
  t.equal((await kernel.ask(FUSE.READ, dataBody(end - 512, 4096))).body.length, 512);
  t.equal((await kernel.ask(FUSE.READ, dataBody(end, 4096))).body.length, 0);
  t.equal((await kernel.ask(FUSE.READ, dataBody(2 ** 60, 4096))).body.length, 0);
});

t.test('errors of a store and of a read-only device arrive', async t => {
  const kernel = await Kernel.start(t);
  kernel.leaf.errno = EIO;
  const reply = await kernel.ask(FUSE.READ, dataBody(0, 4096));
  t.match(reply, { error: -EIO });
  t.equal(reply.body.length, 0, 'without data');
  t.match(await kernel.ask(FUSE.FSYNC, Buffer.alloc(16)), { error: -EIO });
  const readOnly = await Kernel.start(t, { readOnly: true });
  const write = dataBody(0, 512, Buffer.alloc(512));
  t.match(await readOnly.ask(FUSE.WRITE, write), { error: -EROFS });
  t.match(await readOnly.ask(FUSE.FSYNC, Buffer.alloc(16)), { error: 0 }, 'nothing is volatile');
});

t.test('what needs no answer gets none, what is unknown is refused', async t => {
  const kernel = await Kernel.start(t, { slots: 2 });
  for (const opcode of [FUSE.FORGET, FUSE.BATCH_FORGET, FUSE.INTERRUPT])
    for (let i = 0; i < 5; i++) await kernel.send(opcode, Buffer.alloc(8));
  t.equal(kernel.take(), undefined);
  t.match(await kernel.ask(999, Buffer.alloc(8)), { error: -ENOSYS });
  t.match(await kernel.ask(FUSE.FLUSH, Buffer.alloc(24)), { error: 0 });
});

t.test('garbage ends the session with a reason', async t => {
  const cases: [
    name: string,
    opcode: number,
    body: Buffer,
    length: number | undefined,
    why: RegExp,
  ][] = [
    ['a wrong length', FUSE.READ, dataBody(0, 512), 4000, /names another length/],
    ['a length of zero', FUSE.READ, dataBody(0, 512), 0, /names another length/],
    ['a READ without its end', FUSE.READ, Buffer.alloc(20), undefined, /READ that is cut off/],
    ['a WRITE without data', FUSE.WRITE, dataBody(0, 512), undefined, /WRITE that is cut off/],
    ['a WRITE with more', FUSE.WRITE, dataBody(0, 512, Buffer.alloc(513)), undefined, /WRITE/],
    ['half a FALLOCATE', FUSE.FALLOCATE, Buffer.alloc(16), undefined, /FALLOCATE/],
    ['half an INIT', FUSE.INIT, Buffer.alloc(8), undefined, /INIT/],
  ];
  for (const [name, opcode, body, length, why] of cases) {
    const kernel = await Kernel.start(t);
    await kernel.send(opcode, body, length);
    t.match(kernel.ended, why, name);
    t.equal(kernel.take(), undefined);
  }
});

t.test('stop waits for what is in flight, and answers it', async t => {
  const kernel = await Kernel.start(t);
  kernel.leaf.holding = true;
  await kernel.send(FUSE.READ, dataBody(0, 512));
  kernel.session.stop();
  await kernel.turn();
  t.equal(kernel.ended, undefined, 'a request is in flight');
  kernel.leaf.release();
  await kernel.turn();
  t.equal(kernel.ended, null);
  t.match(kernel.take(), { error: 0 }, 'it was answered');
});

t.test('with its share of the slots in use requests wait, and none is lost', async t => {
  const kernel = await Kernel.start(t, { slots: 4 });
  kernel.leaf.holding = true;
  const sent: bigint[] = [];
  // One more than it may take at any time: on this socket, two that wait would come as one.
  for (let i = 0; i < 3; i++) sent.push(await kernel.send(FUSE.READ, dataBody(i * 512, 512)));
  const answered: bigint[] = [];
  for (let i = 3; i < 9; i++) {
    t.equal(kernel.leaf.calls.length, i - 1, 'half of the slots');
    kernel.leaf.release();
    await kernel.turn();
    answered.push(kernel.take()!.unique);
    sent.push(await kernel.send(FUSE.READ, dataBody(i * 512, 512)));
  }
  for (let i = 0; i < 3; i++) {
    kernel.leaf.release();
    await kernel.turn();
    answered.push(kernel.take()!.unique);
  }
  t.strictSame(answered, sent);
  kernel.session.stop();
  await kernel.turn();
  t.equal(kernel.ended, null);
});

t.test('a device that hangs does not keep another one from going on', async t => {
  const hung = await Kernel.start(t, { slots: 4 });
  const well = await Kernel.start(t, { neighbour: hung });
  hung.leaf.holding = true;
  for (let i = 0; i < 6; i++) await hung.send(FUSE.READ, dataBody(i * 512, 512));
  t.equal(hung.leaf.calls.length, 2, 'it has its share of the slots, and wants more');
  for (let i = 0; i < 6; i++) {
    const reply = await well.ask(FUSE.WRITE, dataBody(512 * i, 512, Buffer.alloc(512, i)));
    t.equal(reply.error, 0);
  }
  t.equal(hung.take(), undefined);
});
