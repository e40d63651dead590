/**
 * The outbox without a kernel: a ring that carries out each sendmsg as the test wishes, byte by
 * byte if need be, from the vectors as they lie in memory. The first one is a call of the turn, the
 * others go through the ring.
 */
import t from 'tap';
import { EAGAIN, ECANCELED, EINTR, EPIPE } from '../../../src/base/errno.ts';
import { OUTBOX_BYTES, Outbox } from '../../../src/transport/nbd/outbox.ts';
import { CALL } from '../../../src/uring/calls.ts';
import type { IoOp } from '../../../src/uring/io.ts';
import { allocateMemory } from '../../../src/uring/memory.ts';
import type { Ring } from '../../../src/uring/ring.ts';
import { OPCODE } from '../../../src/uring/sqe.ts';

const DATA_AT = 64 * 1024;
/** The third record of a batch. */
const RECORD_AT = 11;
const memory = allocateMemory(DATA_AT + 64 * 1024);
t.teardown(() => memory.free());
for (let i = DATA_AT; i < memory.bytes.length; i++) memory.bytes[i] = i * 7 + (i >> 8);

class FakeRing {
  readonly words = new Uint32Array(16);
  readonly calls = {
    lastRuns: 0,
    lastDoubles: new Float64Array(20),
    addLast: (which: number, _fd: number, op: IoOp): number => {
      if (which !== CALL.SEND || this.op !== null) throw new Error('one sendmsg at a time');
      this.op = op;
      this.called = true;
      return RECORD_AT;
    },
  };
  op: IoOp | null = null;
  /** The sendmsg is a call. */
  called = false;
  cancelled = false;

  prepare(opcode: number, _fd: number, op: IoOp): number {
    if (opcode !== OPCODE.SENDMSG || this.op !== null) throw new Error('one sendmsg at a time');
    this.op = op;
    this.called = false;
    return 0;
  }

  cancelAll(): void {
    this.cancelled = true;
  }

  /** What the message is that the kernel would send now. */
  message(): Buffer {
    const number = (at: number): number => Number(memory.view.getBigUint64(at, true));
    const header = this.words[4]! + this.words[5]! * 2 ** 32 - memory.address;
    const { lastDoubles } = this.calls;
    const vectors = (this.called ? lastDoubles[RECORD_AT]! : number(header + 16)) - memory.address;
    const count = this.called ? lastDoubles[RECORD_AT + 1]! / 16 : number(header + 24);
    const parts: Buffer[] = [];
    for (let i = 0; i < count; i++) {
      const start = number(vectors + 16 * i) - memory.address;
      parts.push(Buffer.from(memory.bytes.subarray(start, start + number(vectors + 16 * i + 8))));
    }
    return Buffer.concat(parts);
  }

  end(result: number): void {
    const { op } = this;
    this.op = null;
    op!.done(result, 0);
  }
}

function make(): { ring: FakeRing; outbox: Outbox; sent: number[] } {
  const ring = new FakeRing();
  const sent: number[] = [];
  const outbox = new Outbox(ring as unknown as Ring, 9, memory, 0, error => sent.push(error));
  return { ring, outbox, sent };
}

/** Puts replies of different makes into it; returns the bytes that they are. */
function fill(outbox: Outbox, count: number): Buffer {
  const parts: Buffer[] = [];
  for (let i = 0; i < count; i++) {
    if (!outbox.open()) throw new Error('not open');
    const header = Buffer.alloc(16, i + 1);
    memory.bytes.set(header, outbox.headerAt);
    outbox.addHeader(header.length);
    parts.push(header);
    if (i % 3 === 0) continue;
    const start = DATA_AT + i * 100;
    outbox.addData(memory, start, 100);
    parts.push(Buffer.from(memory.bytes.subarray(start, start + 100)));
  }
  return Buffer.concat(parts);
}

t.test('a message that is sent in pieces of any size is the same message', async t => {
  for (const piece of [1, 15, 16, 17, 99, 116, 1000, 100_000]) {
    const { ring, outbox, sent } = make();
    const expected = fill(outbox, 20);
    const parts: Buffer[] = [];
    for (let tries = 0; sent.length === 0; tries++) {
      if (tries > 5000) throw new Error('no end');
      const some = ring.message().subarray(0, piece);
      parts.push(some);
      if (tries % 7 === 3) ring.end(-EINTR);
      if (tries % 7 === 3) t.ok(ring.message().subarray(0, piece).equals(some), 'once more');
      ring.end(some.length);
    }
    t.same(sent, [0]);
    t.ok(Buffer.concat(parts).equals(expected), `in pieces of ${piece}`);
    t.ok(outbox.idle);
    const second = fill(outbox, 3);
    t.ok(ring.message().equals(second), 'the next message begins anew');
  }
});

t.test('a message that finds the socket full is the same message later', async t => {
  const { ring, outbox, sent } = make();
  for (const count of [7, 20, 3]) {
    const expected = fill(outbox, count);
    t.ok(ring.called);
    t.ok(ring.message().equals(expected));
    ring.end(-EAGAIN);
    t.notOk(ring.called, 'through the ring');
    t.ok(ring.message().equals(expected), 'as a whole');
    t.notOk(outbox.open());
    ring.end(expected.length);
  }
  t.same(sent, [0, 0, 0]);
});

t.test('what is ready once the message is submitted waits for the next', async t => {
  const { ring, outbox } = make();
  const first = fill(outbox, 2);
  ring.calls.lastRuns++;
  t.notOk(outbox.open());
  ring.end(first.length);
  t.ok(outbox.open());
});

t.test('a message has an end', async t => {
  const { outbox } = make();
  let replies = 0;
  for (; outbox.open() && outbox.hasRoom; replies++) fill(outbox, 1);
  t.ok(replies > 100 && replies * 16 < OUTBOX_BYTES, `${replies} replies`);
});

t.test('errors and cancelled messages are told once', async t => {
  const broken = make();
  fill(broken.outbox, 1);
  broken.ring.end(-EPIPE);
  t.same(broken.sent, [-EPIPE]);
  const { ring, outbox, sent } = make();
  fill(outbox, 2);
  outbox.cancel();
  t.ok(ring.cancelled);
  ring.end(5); // a part was sent
  t.same(sent, [-ECANCELED]);
  t.equal(ring.op, null, 'the rest is not');
});
