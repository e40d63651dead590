/** Mapped memory: what it is when it comes, and that nothing of it can be used when it is gone. */
import t from 'tap';
import { native } from '../../src/native/binding.ts';
import { allocateMemory } from '../../src/uring/memory.ts';

t.test('memory is page-aligned, zeroed and as long as asked for', t => {
  for (const length of [1, 4095, 4096, 4097, 1 << 20]) {
    const { address, buffer } = native.mapMemory(length);
    t.equal(address % 4096, 0);
    t.ok(address > 0 && Number.isSafeInteger(address));
    t.equal(buffer.byteLength, length);
    t.ok(new Uint8Array(buffer).every(byte => byte === 0));
    new Uint8Array(buffer).fill(0xab);
    native.unmapMemory(address);
  }
  t.end();
});

t.test('the largest piece is 4 GiB, and costs nothing until it is touched', t => {
  const before = process.memoryUsage().rss;
  const memory = allocateMemory(2 ** 32);
  memory.bytes[2 ** 32 - 1] = 1;
  t.equal(memory.bytes.length, 2 ** 32);
  t.ok(process.memoryUsage().rss - before < 64 * 1024 * 1024);
  memory.free();
  t.end();
});

t.test('freed memory is detached: it reads as empty and cannot be written', t => {
  const memory = allocateMemory(4096);
  memory.bytes[0] = 1;
  memory.free();
  t.equal(memory.bytes.length, 0);
  t.equal(memory.bytes[0], undefined);
  memory.bytes[0] = 1; // ignored
  t.throws(() => memory.view.getUint8(0), TypeError);
  memory.free(); // idempotent
  t.end();
});

t.test('a call may use all of one mapping and not a byte more, also between two neighbours', t => {
  // Two mappings may lie side by side; together they are still two.
  const one = native.mapMemory(4096);
  const two = native.mapMemory(4096);
  const record = new ArrayBuffer(40);
  const result = (address: number, length: number): number => {
    new Float64Array(record).set([address, length, 0], 1);
    new Int32Array(record)[0] = 0;
    new Int32Array(record)[1] = -1;
    native.runCalls(record, 1);
    return new Int32Array(record)[8]!;
  };
  const EBADF = -9;
  const EFAULT = -14;
  for (const { address } of [one, two]) {
    t.equal(result(address, 4096), EBADF, 'the range is right, the descriptor is not');
    t.equal(result(address + 4095, 1), EBADF);
    t.equal(result(address, 4097), EFAULT);
    t.equal(result(address + 4095, 2), EFAULT);
  }
  t.equal(result(Math.min(one.address, two.address), 8192), EFAULT);
  native.unmapMemory(one.address);
  t.equal(result(one.address, 1), EFAULT, 'stale');
  t.equal(result(two.address, 1), EBADF, 'the other one is still there');
  native.unmapMemory(two.address);
  t.end();
});

t.test('memory that nothing in JavaScript refers to stays mapped until it is unmapped', t => {
  const { address } = native.mapMemory(4096);
  const garbage: unknown[] = [];
  for (let i = 0; i < 200; i++) garbage.push(new ArrayBuffer(1 << 20)); // has the collector run
  garbage.length = 0;
  const record = new ArrayBuffer(40);
  new Float64Array(record).set([address, 4096, 0], 1);
  new Int32Array(record)[1] = -1;
  native.runCalls(record, 1);
  t.equal(new Int32Array(record)[8], -9, 'EBADF, not EFAULT');
  native.unmapMemory(address);
  t.end();
});
