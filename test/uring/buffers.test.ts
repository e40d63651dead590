/**
 * Provided buffers: the kernel picks one when data come, and has it again when it is given back.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { BufferRing } from '../../src/uring/buffers.ts';
import { supportedOpcodes } from '../../src/uring/probe.ts';
import { Ring } from '../../src/uring/ring.ts';
import {
  IORING_CQE_BUFFER_SHIFT,
  IORING_CQE_F_BUFFER,
  IORING_CQE_F_MORE,
  IOSQE_BUFFER_SELECT,
  OPCODE,
  setBufferGroup,
  setFlags,
} from '../../src/uring/sqe.ts';
import { Recorder, turnUntil } from '../support/wait-for.ts';

const { ENOBUFS } = constants.errno;
const GROUP = 3;
const COUNT = 4;
const STRIDE = 4096;

t.test('buffers from a pipe', t => {
  const ring = new Ring({ entries: 16 });
  const buffers = new BufferRing(ring, { group: GROUP, count: COUNT, stride: STRIDE });
  const fifo = join(t.testdir(), 'fifo');
  execFileSync('mkfifo', [fifo]);
  const fd = openSync(fifo, 'r+');
  t.teardown(() => {
    ring.close();
    closeSync(fd);
  });
  const read = (opcode: number, op: Recorder): void => {
    const word = ring.prepare(opcode, fd, op);
    setFlags(ring.words, word, IOSQE_BUFFER_SELECT);
    setBufferGroup(ring.words, word, GROUP);
  };
  const text = (index: number, length: number): string =>
    Buffer.from(
      buffers.memory.bytes.subarray(buffers.offset(index), buffers.offset(index) + length),
    ).toString();

  t.test('each read says which buffer it used, and it holds the data', t => {
    // More rounds than 16-bit tails have room for in their ring: it goes around many times.
    for (let i = 0; i < 500; i++) {
      const op = new Recorder();
      read(OPCODE.READ, op);
      ring.turn(false);
      writeSync(fd, `message ${i}`);
      turnUntil(ring, () => op.results.length > 0);
      t.ok((op.flags & IORING_CQE_F_BUFFER) !== 0);
      const index = op.flags >>> IORING_CQE_BUFFER_SHIFT;
      t.equal(text(index, op.results[0]!), `message ${i}`);
      buffers.provide(index);
    }
    t.end();
  });

  t.test('without a free buffer a read fails with ENOBUFS; with one given back it works', t => {
    const used: number[] = [];
    for (let i = 0; i < COUNT; i++) {
      const op = new Recorder();
      read(OPCODE.READ, op);
      writeSync(fd, 'x');
      turnUntil(ring, () => op.results.length > 0);
      used.push(op.flags >>> IORING_CQE_BUFFER_SHIFT);
    }
    t.same(used.toSorted(), [0, 1, 2, 3], 'every buffer is used once');
    const op = new Recorder();
    writeSync(fd, 'y');
    read(OPCODE.READ, op);
    turnUntil(ring, () => op.results.length > 0);
    t.same(op.results, [-ENOBUFS]);
    buffers.provide(used[2]!);
    read(OPCODE.READ, op);
    turnUntil(ring, () => op.results.length > 1);
    t.equal(op.results[1], 1);
    t.equal(op.flags >>> IORING_CQE_BUFFER_SHIFT, used[2]);
    for (const index of used) buffers.provide(index);
    t.end();
  });

  t.test('a multishot read goes on from buffer to buffer', t => {
    if (!supportedOpcodes(ring.fd).has(OPCODE.READ_MULTISHOT)) {
      t.plan(0, 'this kernel has no READ_MULTISHOT (Linux 6.7)');
      return;
    }
    const op = new Recorder();
    read(OPCODE.READ_MULTISHOT, op);
    ring.turn(false);
    for (let i = 0; i < 20; i++) {
      writeSync(fd, `part ${i}`);
      turnUntil(ring, () => op.results.length > i);
      t.ok((op.flags & IORING_CQE_F_MORE) !== 0);
      const index = op.flags >>> IORING_CQE_BUFFER_SHIFT;
      t.equal(text(index, op.results[i]!), `part ${i}`);
      buffers.provide(index);
    }
    ring.cancelAll(fd, new Recorder());
    turnUntil(ring, () => ring.underWay === 0);
    t.end();
  });

  t.test('places are page-aligned, apart, and inside of the memory', t => {
    for (let i = 0; i < COUNT; i++) {
      t.equal(buffers.address(i) % 4096, 0);
      t.equal(buffers.address(i) - buffers.memory.address, buffers.offset(i));
      t.ok(buffers.offset(i) + STRIDE <= buffers.memory.bytes.length);
      if (i > 0) t.equal(buffers.offset(i) - buffers.offset(i - 1), STRIDE);
    }
    t.end();
  });

  t.test('a group that exists is refused; a closed one can be made again', t => {
    const options = { group: GROUP, count: COUNT, stride: STRIDE };
    t.throws(() => new BufferRing(ring, options), { code: 'unsupported' });
    buffers.close();
    buffers.close(); // idempotent
    new BufferRing(ring, options).close();
    t.end();
  });
  t.end();
});
