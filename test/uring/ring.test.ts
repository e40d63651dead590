/** The ring itself: more submissions and completions than fit, multishot, exceptions, closing. */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { native } from '../../src/native/binding.ts';
import { CALL } from '../../src/uring/calls.ts';
import type { IoOp } from '../../src/uring/io.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { Ring } from '../../src/uring/ring.ts';
import {
  IORING_CQE_F_MORE,
  IORING_POLL_ADD_MULTI,
  IOSQE_ASYNC,
  IOSQE_IO_LINK,
  OPCODE,
  SQE_WORDS,
  setAddress,
  setFlags,
  setLength,
  setOpFlags,
  setPosition,
} from '../../src/uring/sqe.ts';
import { detachedMount } from '../support/detached-mount.ts';
import { Recorder, turnUntil } from '../support/wait-for.ts';

const { ECANCELED, EINVAL } = constants.errno;
const POLLIN = 1;

function pipe(t: Test): { fd: number; write(text: string): void } {
  const path = join(t.testdir(), 'fifo');
  execFileSync('mkfifo', [path]);
  const fd = openSync(path, 'r+');
  t.teardown(() => closeSync(fd));
  return { fd, write: text => void writeSync(fd, text) };
}

function newRing(t: Test, entries: number): Ring {
  const ring = new Ring({ entries });
  t.teardown(() => ring.close());
  return ring;
}

// First: a thread has numbers for 16 rings, and one that has none left closes by other means.
t.test('a closed ring is gone: it holds nothing open', t => {
  const reader = newRing(t, 8);
  const memory = allocateMemory(1);
  const REGISTER_FILES = 2;
  for (let i = 0; i < 3; i++) {
    const ends = new Uint8Array(8);
    t.equal(native.socketpair(ends), 0);
    const [held, watched] = new Int32Array(ends.buffer) as unknown as [number, number];
    const ring = new Ring({ entries: 8 });
    t.equal(native.ringRegister(ring.fd, REGISTER_FILES, ends.slice(0, 4), 1), 0);
    native.close(held);
    const op = new Recorder();
    const word = reader.prepare(OPCODE.READ, watched, op);
    setAddress(reader.words, word, memory.address);
    setLength(reader.words, word, 1);
    reader.turn(false);
    t.same(op.results, [], 'the other end is open while the ring is');
    ring.close();
    for (let waited = 0; waited < 2000 && op.results.length === 0; waited++) {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      reader.turn(false);
    }
    t.same(op.results, [0], 'and not any more');
    native.close(watched);
  }
  memory.free();
  t.end();
});

t.test('far more submissions than fit are all done, once each', t => {
  // 4 submission and 16 completion entries: the queue fills up, and the completions overflow.
  const ring = newRing(t, 4);
  const ops = Array.from({ length: 5000 }, () => new Recorder());
  for (const op of ops) ring.prepare(OPCODE.NOP, -1, op);
  t.ok(ring.underWay >= 4000);
  turnUntil(ring, () => ring.underWay === 0);
  t.ok(ops.every(op => op.results.length === 1 && op.results[0] === 0));
  t.end();
});

t.test('done may prepare more than the queue holds', t => {
  const ring = newRing(t, 4);
  let done = 0;
  const leaf: IoOp = { done: () => void done++ };
  const branch: IoOp = {
    done() {
      for (let i = 0; i < 100; i++) ring.prepare(OPCODE.NOP, -1, leaf);
    },
  };
  for (let i = 0; i < 20; i++) ring.prepare(OPCODE.NOP, -1, branch);
  turnUntil(ring, () => done === 2000 && ring.underWay === 0);
  t.end();
});

t.test('an SQE is cleared before it is used again', t => {
  const ring = newRing(t, 4);
  const op = new Recorder();
  for (let i = 0; i < 4; i++) {
    const word = ring.prepare(OPCODE.NOP, 7, op);
    ring.words.fill(0xffffffff, word + 2, word + 8);
    ring.words.fill(0xffffffff, word + 10, word + SQE_WORDS);
    ring.words[word] = OPCODE.NOP;
  }
  turnUntil(ring, () => ring.underWay === 0);
  const word = ring.prepare(OPCODE.READ, 5, op);
  const sqe = [...ring.words.subarray(word, word + SQE_WORDS)];
  t.equal(sqe[0], OPCODE.READ);
  t.equal(sqe[1], 5);
  t.ok(sqe.every((value, i) => i < 2 || i === 8 || value === 0));
  t.equal(sqe[9], 0, 'the upper half of user_data is zero');
  t.end();
});

t.test('64-bit fields are written as two halves, flags leave the opcode alone', t => {
  const words = new Uint32Array(SQE_WORDS);
  words[0] = OPCODE.READ;
  setAddress(words, 0, 2 ** 47 + 2 ** 32 * 3 + 5);
  setPosition(words, 0, 2 ** 53 - 1);
  setLength(words, 0, 2 ** 31 + 1);
  setFlags(words, 0, 0xff);
  setFlags(words, 0, IOSQE_IO_LINK);
  t.equal(words[4], 5);
  t.equal(words[5], 2 ** 15 + 3);
  t.equal(words[2], 0xffffffff);
  t.equal(words[3], 2 ** 21 - 1);
  t.equal(words[6], 2 ** 31 + 1);
  t.equal(words[0], OPCODE.READ | (IOSQE_IO_LINK << 8));
  t.end();
});

t.test('a multishot poll keeps its place until it says that no more come', t => {
  const ring = newRing(t, 8);
  const { fd, write } = pipe(t);
  const op = new Recorder();
  const word = ring.prepare(OPCODE.POLL_ADD, fd, op);
  setLength(ring.words, word, IORING_POLL_ADD_MULTI);
  setOpFlags(ring.words, word, POLLIN);
  ring.turn(false);
  for (let i = 1; i <= 3; i++) {
    write('x');
    turnUntil(ring, () => op.results.length >= i);
    t.ok((op.flags & IORING_CQE_F_MORE) !== 0);
    t.equal(ring.underWay, 1);
    readSync(fd, Buffer.alloc(10));
  }
  const cancel = new Recorder();
  ring.cancelAll(fd, cancel);
  turnUntil(ring, () => ring.underWay === 0);
  t.equal(op.results.at(-1), -ECANCELED);
  t.equal(op.flags & IORING_CQE_F_MORE, 0);
  t.same(cancel.results, [1]);
  t.end();
});

t.test(
  'a turn without waiting returns at once; one that waits sleeps until something is done',
  t => {
    const ring = newRing(t, 8);
    const { fd, write } = pipe(t);
    const memory = allocateMemory(16);
    const op = new Recorder();
    const word = ring.prepare(OPCODE.READ, fd, op);
    setAddress(ring.words, word, memory.address);
    setLength(ring.words, word, 16);
    for (let i = 0; i < 100; i++) ring.turn(false);
    t.same(op.results, []);
    write('hello');
    ring.turn(true);
    t.same(op.results, [5]);
    t.end();
  },
);

t.test('turns that never wait see what comes, though there is nothing to submit', t => {
  const ring = newRing(t, 4);
  const { fd, write } = pipe(t);
  const op = new Recorder();
  const word = ring.prepare(OPCODE.POLL_ADD, fd, op);
  setOpFlags(ring.words, word, POLLIN);
  ring.turn(false);
  write('x');
  for (let turns = 0; turns < 1000 && op.results.length === 0; turns++) ring.turn(false);
  t.same(op.results, [POLLIN]);
  // The same for completions that did not fit into their queue, of 16.
  const ops = Array.from({ length: 100 }, () => new Recorder());
  for (const nop of ops) ring.prepare(OPCODE.NOP, -1, nop);
  for (let turns = 0; turns < 1000; turns++) ring.turn(false);
  t.ok(ops.every(nop => nop.results.length === 1));
  t.end();
});

t.test('the result of a plain call ends the wait, though no completion comes', t => {
  const ring = newRing(t, 8);
  const { fd } = pipe(t);
  const op = new Recorder();
  const word = ring.prepare(OPCODE.POLL_ADD, fd, new Recorder()); // never ready
  setOpFlags(ring.words, word, POLLIN);
  ring.calls.pread(-1, 0, 0, 0, op);
  ring.turn(true);
  t.equal(op.results.length, 1);
  t.end();
});

t.test('calls that queue calls without end do not starve completions', t => {
  const ring = newRing(t, 8);
  const memory = allocateMemory(16);
  const nop = new Recorder();
  let calls = 0;
  const endless: IoOp = {
    done() {
      calls++;
      if (nop.results.length === 0) ring.calls.pread(-1, memory.address, 1, 0, endless);
    },
  };
  ring.calls.pread(-1, memory.address, 1, 0, endless);
  ring.prepare(OPCODE.NOP, -1, nop);
  ring.turn(true);
  t.same(nop.results, [0]);
  t.ok(calls > 1 && calls < 100);
  t.end();
});

t.test('what is added last runs behind all that the other calls queue, and surely', t => {
  const ring = newRing(t, 8);
  const memory = allocateMemory(16);
  const order: string[] = [];
  const add = (op: IoOp): void => {
    const at = ring.calls.addLast(CALL.SEND, -1, op);
    ring.calls.lastDoubles.set([memory.address, 16, 0], at);
  };
  let first: IoOp | null = {
    done: () => {
      order.push('first');
      ring.calls.pread(-1, memory.address, 1, 0, { done: () => order.push('second') });
    },
  };
  add({ done: result => order.push(`last: ${result}`) });
  ring.calls.pread(-1, memory.address, 1, 0, first);
  t.ok(ring.calls.queued);
  ring.turn(false);
  t.same(order, ['first', 'second', 'last: -14'], 'a vector of address 0 and length 0 is nobody’s');
  t.notOk(ring.calls.queued);

  const last = new Recorder();
  first = {
    done: () => {
      if (first !== null) ring.calls.pread(-1, memory.address, 1, 0, first);
    },
  };
  ring.calls.pread(-1, memory.address, 1, 0, first);
  add(last);
  ring.turn(false);
  t.equal(last.results.length, 1, 'calls without end do not starve it');
  first = null;
  ring.turn(false);
  const many = Array.from({ length: 600 }, () => new Recorder());
  for (const op of many) add(op);
  ring.turn(false);
  t.ok(
    many.every(op => op.results.length === 1),
    'more than a batch begins with',
  );
  t.end();
});

t.test('calls beyond the first size of a batch are all run', t => {
  const ring = newRing(t, 8);
  const ops = Array.from({ length: 3000 }, () => new Recorder());
  const memory = allocateMemory(16);
  for (const op of ops) ring.calls.pread(-1, memory.address, 1, 0, op);
  ring.turn(false);
  t.ok(ops.every(op => op.results.length === 1 && op.results[0] === -constants.errno.EBADF));
  t.equal(ring.calls.queued, false);
  t.end();
});

t.test('what done throws reaches the caller of turn, and no other completion is lost', t => {
  const ring = newRing(t, 16);
  const before = new Recorder();
  const after = new Recorder();
  const callAfter = new Recorder();
  const bad: IoOp = {
    done() {
      throw new Error('on purpose');
    },
  };
  ring.prepare(OPCODE.NOP, -1, before);
  ring.prepare(OPCODE.NOP, -1, bad);
  ring.prepare(OPCODE.NOP, -1, after);
  t.throws(() => ring.turn(true), { message: 'on purpose' });
  t.same([before.results, after.results], [[0], []]);
  turnUntil(ring, () => ring.underWay === 0);
  t.same([before.results, after.results], [[0], [0]]);

  ring.calls.pread(-1, 0, 0, 0, bad);
  ring.calls.pread(-1, 0, 0, 0, callAfter);
  t.throws(() => ring.turn(false), { message: 'on purpose' });
  t.ok(ring.calls.queued);
  ring.turn(true); // does not wait: results are there
  t.equal(callAfter.results.length, 1);
  t.end();
});

t.test('done must not turn the ring or close it', t => {
  const ring = newRing(t, 8);
  for (const act of [() => ring.turn(false), () => ring.close()]) {
    ring.prepare(OPCODE.NOP, -1, { done: act });
    t.throws(() => ring.turn(true), { name: 'InvariantError' });
  }
  t.end();
});

t.test('a wrong submission fails alone; those behind it run', t => {
  const ring = newRing(t, 16);
  const ops = Array.from({ length: 9 }, () => new Recorder());
  ops.forEach((op, i) => {
    const word = ring.prepare(i % 3 === 1 ? 255 : OPCODE.NOP, -1, op);
    if (i % 3 === 2) setFlags(ring.words, word, 0x80); // no such flag
  });
  turnUntil(ring, () => ring.underWay === 0);
  t.same(
    ops.map(op => op.results[0]),
    [0, -EINVAL, -EINVAL, 0, -EINVAL, -EINVAL, 0, -EINVAL, -EINVAL],
  );
  t.end();
});

t.test('closing cancels what is under way: nothing is read into memory afterwards', t => {
  const { fd, write } = pipe(t);
  const memory = allocateMemory(4096);
  for (let i = 0; i < 20; i++) {
    const ring = new Ring({ entries: 8 });
    const op = new Recorder();
    for (let j = 0; j < 8; j++) {
      const word = ring.prepare(OPCODE.READ, fd, op);
      setAddress(ring.words, word, memory.address);
      setLength(ring.words, word, 1);
    }
    ring.turn(false);
    const word = ring.prepare(OPCODE.READ, fd, op); // not even submitted
    setAddress(ring.words, word, memory.address);
    setLength(ring.words, word, 1);
    ring.close();
    ring.close(); // idempotent
    write('abcdefgh');
    const left = Buffer.alloc(16);
    t.equal(readSync(fd, left), 8, 'what was written after the close is all still in the pipe');
    t.same(op.results, []);
    t.equal(memory.bytes[0], 0);
    t.throws(() => ring.turn(false), { name: 'InvariantError' });
  }
  memory.free();
  t.end();
});

t.test('closing waits for what cannot be cancelled: the memory is free for other use', t => {
  // A long copy on a thread of the kernel, which is not interrupted: it goes on when the descriptor
  // is gone.
  const LENGTH = 128 << 20;
  const mount = detachedMount('tmpfs');
  const fd = openSync(join(mount?.path ?? t.testdir(), 'file'), 'w+');
  writeSync(fd, Buffer.alloc(LENGTH, 0xaa));
  const memory = allocateMemory(LENGTH);
  for (let i = 0; i < 3; i++) {
    const ring = new Ring({ entries: 8 });
    const word = ring.prepare(OPCODE.READ, fd, new Recorder());
    setFlags(ring.words, word, IOSQE_ASYNC);
    setAddress(ring.words, word, memory.address);
    setLength(ring.words, word, LENGTH);
    ring.turn(false);
    while (memory.bytes[4096] === 0); // it has begun
    ring.close();
    const filled = memory.bytes.lastIndexOf(0xaa);
    // Time for it to go on, if it did: with a ring at rest nothing happens however long this takes.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
    t.equal(memory.bytes.lastIndexOf(0xaa), filled, 'nothing is written after the close');
    memory.bytes.fill(0);
  }
  closeSync(fd);
  mount?.close();
  memory.free();
  t.end();
});

t.test('many rings live side by side', t => {
  const rings = Array.from({ length: 20 }, () => new Ring({ entries: 8 }));
  const ops = rings.map(ring => {
    const op = new Recorder();
    ring.prepare(OPCODE.NOP, -1, op);
    return op;
  });
  for (const ring of rings) ring.turn(true);
  t.ok(ops.every(op => op.results.length === 1));
  for (const ring of rings) ring.close();
  t.end();
});

t.test('a thread that waits in its ring does not wait for I/O, where the kernel can be told', t => {
  const { features, fd } = native.ringSetup(8, 0, 0);
  native.ringClose(fd);
  const ring = newRing(t, 8);
  ring.prepare(OPCODE.NOP, -1, new Recorder());
  ring.turn(true);
  const FLAGS = 3;
  const flags = new Int32Array(native.enterCall())[FLAGS]!;
  t.equal((flags & (1 << 7)) !== 0, (features & (1 << 17)) !== 0);
  t.end();
});
