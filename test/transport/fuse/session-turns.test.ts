/**
 * Each step of a FUSE session, one result at a time: a ring that does nothing keeps what the
 * session asks of it, and the test answers in whatever order it likes. So it can end in the midst
 * of anything.
 */
import t, { type Test } from 'tap';
import { EAGAIN, ECANCELED, EINTR, EIO, ENODEV, ENOENT, EPERM } from '../../../src/base/errno.ts';
import { PartPool, UnionDevice } from '../../../src/engine/union.ts';
import { FuseSession } from '../../../src/transport/fuse/session.ts';
import { FuseSlots, type Slot } from '../../../src/transport/fuse/slots.ts';
import { FUSE, OUT_HEADER_BYTES } from '../../../src/transport/fuse/wire.ts';
import { CALL } from '../../../src/uring/calls.ts';
import type { IoOp } from '../../../src/uring/io.ts';
import type { Ring } from '../../../src/uring/ring.ts';
import { OPCODE } from '../../../src/uring/sqe.ts';
import { MemoryLayer } from '../../support/memory-layer.ts';

const SECTORS = 64;
const FD = 7;

/** What of a ring a session uses. */
class ScriptedRing {
  readonly words: Uint32Array = new Uint32Array(16);
  readonly prepared: { opcode: number; op: IoOp }[] = [];
  readonly called: { which: number; slot: Slot }[] = [];
  cancellations = 0;
  readonly calls = {
    doubles: new Float64Array(4),
    add: (which: number, _fd: number, op: IoOp): number => {
      this.called.push({ which, slot: op as unknown as Slot });
      return 1;
    },
  };

  prepare(opcode: number, _fd: number, op: IoOp): number {
    this.prepared.push({ opcode, op });
    return 0;
  }

  cancelAll(): void {
    this.cancellations++;
  }
}

class Script {
  readonly ring: ScriptedRing;
  readonly slots: FuseSlots;
  readonly leaf: MemoryLayer = new MemoryLayer(SECTORS);
  readonly session: FuseSession;
  /** What onEnd told; undefined before. */
  ended: string | null | undefined;

  constructor(t: Test, { slots = 64, beside }: { slots?: number; beside?: Script } = {}) {
    this.ring = beside?.ring ?? new ScriptedRing();
    this.slots = beside?.slots ?? new FuseSlots(this.ring as unknown as Ring, slots);
    if (beside === undefined) t.teardown(() => this.slots.close());
    this.session = new FuseSession({
      slots: this.slots,
      fd: FD,
      device: new UnionDevice({
        sizeSectors: SECTORS,
        layers: [],
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

  /** The poll that is under way; undefined if there is none. */
  takePoll(): IoOp | undefined {
    return this.#take(OPCODE.POLL_ADD);
  }

  takeReply(): IoOp | undefined {
    return this.#take(OPCODE.WRITE);
  }

  #take(wanted: number): IoOp | undefined {
    const at = this.ring.prepared.findIndex(({ opcode }) => opcode === wanted);
    return at < 0 ? undefined : this.ring.prepared.splice(at, 1)[0]!.op;
  }

  /** /dev/fuse is readable: the slots of the reads that the session makes. */
  takeBatch(result = 1): Slot[] {
    this.takePoll()!.done(result, 0);
    return this.takeReads();
  }

  takeReads(): Slot[] {
    return this.ring.called.splice(0).map(({ slot }) => slot);
  }
}

const REQUEST_BYTES = 56;

/** A request without a body comes to a slot. */
function come(slot: Slot | undefined, opcode: number = FUSE.FSYNC): void {
  const words = slot!.words.subarray(slot!.headerWord);
  words.fill(0, 0, REQUEST_BYTES / 4);
  words[0] = REQUEST_BYTES;
  words[1] = opcode;
  slot!.done(REQUEST_BYTES);
}

t.test('a poll that was interrupted leads to reads; one that failed ends the session', async t => {
  for (const errno of [EINTR, ECANCELED]) {
    const script = new Script(t);
    t.equal(script.takeBatch(-errno).length, 1);
    t.equal(script.ended, undefined);
  }
  const script = new Script(t);
  t.equal(script.takeBatch(-EIO).length, 0);
  t.match(script.ended, /waiting for \/dev\/fuse failed: EIO/);
});

t.test('a read without a request leads to the next poll', async t => {
  for (const errno of [EAGAIN, EINTR, ENOENT, ECANCELED]) {
    const script = new Script(t);
    script.takeBatch()[0]!.done(-errno);
    t.equal(script.ended, undefined);
    t.ok(script.takePoll());
  }
});

t.test('a read that fails ends the session, and says why', async t => {
  for (const [result, why] of [
    [-ENODEV, /^the kernel ended the connection$/],
    [-EIO, /reading \/dev\/fuse failed: EIO/],
    [0, /reading \/dev\/fuse failed/],
  ] as const) {
    const script = new Script(t);
    script.takeBatch()[0]!.done(result);
    t.match(script.ended, why);
    t.equal(script.takePoll(), undefined);
  }
});

t.test('a stop cancels the poll, and the session ends with it', async t => {
  const script = new Script(t);
  const poll = script.takePoll()!;
  script.session.stop();
  t.equal(script.ring.cancellations, 1);
  t.equal(script.ended, undefined, 'the poll is under way');
  poll.done(-ECANCELED, 0);
  t.equal(script.ended, null);
  t.same(script.takeReads(), [], 'nothing is read any more');

  const late = new Script(t);
  const readable = late.takePoll()!;
  late.session.stop();
  readable.done(1, 0);
  t.equal(late.ended, null, 'it was readable before it was cancelled');
  t.same(late.takeReads(), []);
});

t.test('a stop in the midst of a batch: what comes then is not served', async t => {
  const script = new Script(t);
  come(script.takeBatch()[0]); // all that it asked for: the next batch has two
  script.takeReply()!.done(OUT_HEADER_BYTES, 0);
  const [one, two] = script.takeBatch();
  script.leaf.calls.length = 0;
  script.session.stop();
  t.equal(script.ring.cancellations, 0, 'there is no poll');
  come(one);
  t.same(script.leaf.calls, [], 'it is not served');
  t.equal(script.takeReply(), undefined, 'nor answered: the connection ends');
  t.equal(script.ended, undefined, 'a read is under way');
  two!.done(-EAGAIN);
  t.equal(script.ended, null);
  t.equal(script.takePoll(), undefined);
});

t.test('an end in the midst of a batch lets its other reads come to theirs', async t => {
  const script = new Script(t);
  come(script.takeBatch()[0]);
  script.takeReply()!.done(OUT_HEADER_BYTES, 0);
  const [one, two] = script.takeBatch();
  one!.done(-ENODEV);
  t.equal(script.ended, undefined);
  two!.done(-ENODEV);
  t.equal(script.ended, 'the kernel ended the connection');
  t.equal(script.takePoll(), undefined);
});

t.test('the first reason to end is the one that is told', async t => {
  const script = new Script(t);
  come(script.takeBatch()[0]);
  const poll = script.takePoll()!;
  script.session.stop();
  script.takeReply()!.done(-EIO, 0);
  t.equal(script.ring.cancellations, 1, 'and ends it once');
  poll.done(-ECANCELED, 0);
  t.equal(script.ended, null);
});

t.test('a reply that nobody wants any more is no failure, one that is cut off is', async t => {
  for (const errno of [ENOENT, ENODEV, EPERM]) {
    const script = new Script(t);
    const [slot] = script.takeBatch();
    come(slot);
    script.takeReply()!.done(-errno, 0);
    t.equal(slot!.session, null, 'the slot is free');
    t.equal(script.ring.cancellations, 0, 'the session goes on');
  }
  for (const result of [-EIO, OUT_HEADER_BYTES - 1, 0]) {
    const script = new Script(t);
    come(script.takeBatch()[0]);
    const poll = script.takePoll()!;
    script.takeReply()!.done(result, 0);
    poll.done(-ECANCELED, 0);
    t.match(script.ended, /refused a reply/);
  }
});

t.test('what was lent for a reply is given back when it is written', async t => {
  const script = new Script(t);
  const [slot] = script.takeBatch();
  const back: number[] = [];
  script.leaf.holding = true;
  come(slot);
  const { loan, memory } = slot!;
  const piece = loan.lend(512, { giveBack: (token: number) => back.push(token) }, 5);
  loan.addresses[piece] = memory.address;
  script.leaf.release();
  const reply = script.takeReply()!;
  t.same(back, []);
  reply.done(OUT_HEADER_BYTES, 0);
  t.same(back, [5]);
});

t.test('one that ends is not called any more for slots that get free', async t => {
  const busy = new Script(t, { slots: 2 });
  busy.leaf.holding = true;
  come(busy.takeBatch()[0]); // and there is no more for it
  t.same(busy.takeBatch(), [], 'it is in line');
  busy.session.stop();
  busy.leaf.release();
  busy.takeReply()!.done(OUT_HEADER_BYTES, 0);
  t.equal(busy.ended, null);
  t.same(busy.takeReads(), []);
  const other = new Script(t, { beside: busy });
  come(other.takeBatch()[0]);
  other.takeReply()!.done(OUT_HEADER_BYTES, 0);
  t.same(busy.takeReads(), []);
});

t.test('batches grow while all come, and shrink to what there was', async t => {
  const script = new Script(t, { slots: 256 });
  const sizes: number[] = [];
  const batch = (coming: number): void => {
    script.takePoll()!.done(1, 0);
    const called = script.ring.called.splice(0);
    sizes.push(called.length);
    t.same(
      called.map(({ which }) => which),
      called.map((_, i) => (i === 0 ? CALL.READ : CALL.READ_NEXT)),
    );
    for (const [i, { slot }] of called.entries())
      if (i < coming) come(slot);
      else slot.done(-EAGAIN);
    for (let reply = script.takeReply(); reply; reply = script.takeReply())
      reply.done(OUT_HEADER_BYTES, 0);
  };
  for (let i = 0; i < 7; i++) batch(99);
  batch(5);
  batch(5);
  batch(5);
  t.same(sizes, [1, 2, 4, 8, 16, 32, 32, 32, 5, 10]);
  batch(1);
  sizes.length = 0;
  for (let i = 0; i < 10; i++) batch(1);
  t.same(sizes, [1, 1, 1, 1, 1, 1, 1, 1, 1, 2], 'one at a time: it asks for more once in a while');
});

t.test('a device that grows tells the kernel, which may not know the file', async t => {
  const told: number[] = [];
  const script = new Script(t);
  for (const result of [40, -ENOENT, -EIO]) {
    script.session.resized({ done: outcome => told.push(outcome) });
    script.takeReply()!.done(result, 0);
  }
  t.same(told, [0, 0, -EIO]);
});
