/**
 * runCalls: the batch does each call as the system would, in order, whatever happens to its
 * neighbours.
 */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { native } from '../../src/native/binding.ts';

const PREAD = 0;
const PWRITE = 1;
const READ = 2;
const WRITE = 3;
const FALLOCATE = 4;
const PWRITE_DURABLE = 5;
const READ_NEXT = 6;
const PREAD_CACHED = 7;
const SEND = 8;
const COPY = 9;
const EBADF = -9;
const EAGAIN = -11;
const EFAULT = -14;
const EINVAL = -22;
const EPIPE = -32;

const { address, buffer } = native.mapMemory(1 << 16);
const bytes = new Uint8Array(buffer);
t.teardown(() => native.unmapMemory(address));

type Call = [which: number, fd: number, address: number, length: number, position: number];

function run(...calls: Call[]): number[] {
  const records = new ArrayBuffer(calls.length * 40);
  const ints = new Int32Array(records);
  const doubles = new Float64Array(records);
  calls.forEach(([which, fd, ...rest], i) => {
    ints[i * 10] = which;
    ints[i * 10 + 1] = fd;
    doubles.set(rest, i * 5 + 1);
  });
  native.runCalls(records, calls.length);
  return calls.map((_, i) => ints[i * 10 + 8]!);
}

t.test('what is sent may lie in mappings side by side, and in nothing beyond them', t => {
  const page = 4096;
  const mapped: number[] = [];
  const map = (): number => {
    mapped.push(native.mapMemory(page).address);
    return mapped.at(-1)!;
  };
  t.teardown(() => {
    for (const one of mapped) native.unmapMemory(one);
  });
  // The kernel places them so sooner or later.
  let first: number | undefined;
  for (let tries = 0; first === undefined && tries < 1000; tries++) {
    map();
    first = mapped.find(one => mapped.includes(one + page) && !mapped.includes(one + 2 * page));
  }
  if (first === undefined) return t.end();
  const ends = new Int32Array(2);
  native.socketpair(new Uint8Array(ends.buffer));
  const vector = new DataView(buffer);
  const send = (start: number, length: number): number => {
    vector.setBigUint64(0, BigInt(start), true);
    vector.setBigUint64(8, BigInt(length), true);
    return run([SEND, ends[0]!, address, 16, 0])[0]!;
  };
  t.equal(send(first + 100, page + 100), page + 100);
  t.equal(send(first, 2 * page), 2 * page);
  if (first + 2 * page !== address) t.equal(send(first, 2 * page + 1), EFAULT);
  for (const fd of ends) native.close(fd);
  t.end();
});

t.test('calls run in order, and each has its own result', t => {
  const path = join(t.testdir(), 'file');
  const fd = openSync(path, 'w+');
  bytes.fill(1, 0, 4096);
  bytes.fill(2, 4096, 8192);
  const results = run(
    [PWRITE, fd, address, 4096, 0],
    [PWRITE, -1, address, 4096, 0],
    [PWRITE_DURABLE, fd, address + 4096, 4096, 2048],
    [PREAD, fd, address + 8192, 8192, 0],
    [PREAD, fd, address, 1, 100_000],
  );
  t.same(results, [4096, EBADF, 4096, 6144, 0]);
  t.equal(bytes[8192 + 2047], 1);
  t.equal(bytes[8192 + 2048], 2);
  const content = readFileSync(path);
  t.equal(content.length, 6144);
  t.ok(content.subarray(0, 2048).every(byte => byte === 1));
  t.ok(content.subarray(2048).every(byte => byte === 2));
  closeSync(fd);
  t.end();
});

t.test('a copy is made in its turn, overlapping or not', t => {
  const fd = openSync(join(t.testdir({ file: 'abcdef' }), 'file'), 'r');
  bytes.fill(0, 0, 300);
  const results = run(
    [COPY, -1, address + 100, 6, address],
    [PREAD, fd, address, 6, 0],
    [COPY, -1, address + 200, 6, address],
    [COPY, -1, address + 202, 6, address + 200],
  );
  t.same(results, [6, 6, 6, 6]);
  t.same([...bytes.subarray(100, 106)], [0, 0, 0, 0, 0, 0], 'before the read');
  t.equal(Buffer.from(bytes.subarray(200, 208)).toString(), 'ababcdef', 'after it');
  for (const length of [0, 1, 63, 64, 65, 4096, 4096 + 200]) {
    const source = randomBytes(length);
    bytes.fill(0, 8192 - 1, 3 * 8192);
    bytes.set(source, 32_768 + 17);
    // whatever follows: another copy, one that is out of bounds, or another call
    const copy: Call = [COPY, -1, address + 8192, length, address + 32_768 + 17];
    const others: Call[] = [copy, [COPY, -1, 0, 5, 1e300], [PREAD, fd, address, 1, 0]];
    for (const other of others) {
      t.equal(run(copy, other)[0], length);
      const found = bytes.subarray(8192, 8192 + length);
      t.ok(source.equals(found) && bytes[8191] === 0 && bytes[8192 + length] === 0, `${length}`);
    }
  }
  closeSync(fd);
  t.end();
});

t.test('read and write move on in the file', t => {
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  bytes.set(Buffer.from('abcdef'));
  t.same(run([WRITE, fd, address, 3, 0], [WRITE, fd, address + 3, 3, 0]), [3, 3]);
  t.equal(native.lseek(fd, 0, 0), 0);
  t.same(run([READ, fd, address + 100, 4, 0], [READ, fd, address + 200, 4, 0]), [4, 2]);
  t.equal(Buffer.from(bytes.subarray(100, 104)).toString(), 'abcd');
  t.equal(Buffer.from(bytes.subarray(200, 202)).toString(), 'ef');
  closeSync(fd);
  t.end();
});

t.test('reads in a row stop at the first one that moves nothing', t => {
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  writeSync(fd, 'abcde');
  native.lseek(fd, 0, 0);
  const next: Call = [READ_NEXT, fd, address, 2, 0];
  t.same(run([READ, fd, address, 2, 0], next, next, next, next), [2, 2, 1, 0, 0]);
  t.same(run([READ, -1, address, 2, 0], next, next), [EBADF, EBADF, EBADF], 'an error, too');
  native.lseek(fd, 0, 0);
  t.same(run(next, next), [2, 2], 'the first of a batch has none before it');
  closeSync(fd);
  t.end();
});

t.test('the first read of a batch looks at nothing before the batch', t => {
  // Mappings follow each other downwards: one ends where another one begins, and its last bytes are
  // where the result of a record before that one's first would lie.
  const pages = Array.from({ length: 64 }, () => native.mapMemory(4096));
  const places = new Map(pages.map(page => [page.address, page.buffer]));
  const batch = pages.find(page => places.has(page.address - 4096));
  if (batch === undefined) throw new Error('no two mappings lie side by side');
  new Int32Array(places.get(batch.address - 4096)!).fill(-5);
  const fd = openSync(join(t.testdir({ file: 'abc' }), 'file'), 'r');
  const ints = new Int32Array(batch.buffer);
  ints[0] = READ_NEXT;
  ints[1] = fd;
  new Float64Array(batch.buffer).set([address, 3, 0], 1);
  native.runCalls(batch.buffer, 1);
  t.equal(ints[8], 3);
  closeSync(fd);
  for (const page of pages) native.unmapMemory(page.address);
  t.end();
});

t.test('a read of what is cached is one that must not wait', t => {
  // What cannot say whether it would wait refuses to be asked so: any file of /proc.
  const fd = openSync('/proc/self/stat', 'r');
  t.same(run([PREAD_CACHED, fd, address, 1, 0]), [-95], 'EOPNOTSUPP');
  t.same(run([PREAD, fd, address, 1, 0]), [1]);
  closeSync(fd);
  t.end();
});

t.test('a read of what is cached moves it, or says that it would have to wait', t => {
  const directory = t.testdir();
  const fd = openSync(join(directory, 'file'), 'w+');
  writeSync(fd, Buffer.alloc(8192, 3));
  bytes.fill(0);
  t.same(run([PREAD_CACHED, fd, address, 4096, 4096]), [4096]);
  t.ok(bytes.subarray(0, 4096).every(byte => byte === 3));
  t.same(run([PREAD_CACHED, fd, address, 4096, 8192]), [0], 'the end');
  closeSync(fd);
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const pipe = openSync(fifo, 'r+');
  t.same(run([PREAD_CACHED, pipe, address, 1, 0]), [-29], 'ESPIPE');
  closeSync(pipe);
  t.end();
});

t.test('a message of pieces is sent as far as it goes, without waiting', t => {
  const ends = new Uint8Array(8);
  t.equal(native.socketpair(ends), 0);
  const [left, right] = new Int32Array(ends.buffer) as unknown as [number, number];
  const vectors = (...pieces: [at: number, bytes: number][]): void => {
    const list = new BigUint64Array(buffer, 0, 2 * pieces.length);
    pieces.forEach(([at, length], i) => {
      list.set([BigInt(at), BigInt(length)], 2 * i);
    });
  };
  bytes.set(Buffer.from('abcdef'), 4096);
  vectors([address + 4100, 2], [address + 4096, 3], [address + 4099, 0]);
  t.same(run([SEND, left, address, 48, 0]), [5]);
  t.same(run([READ, right, address + 8192, 100, 0]), [5]);
  t.equal(Buffer.from(bytes.subarray(8192, 8197)).toString(), 'efabc');
  t.same(run([SEND, left, address, 0, 0]), [0], 'nothing');

  vectors([address, 65_536]);
  let sent = 0;
  let result = 1;
  for (; result > 0; sent += Math.max(result, 0))
    [result] = run([SEND, left, address, 16, 0]) as [number];
  t.equal(result, EAGAIN, 'a full socket is not waited for');
  let received = 0;
  while (received < sent) received += run([READ, right, address, 65_536, 0])[0]!;
  t.equal(received, sent);

  vectors([address, 16], [address + 65_530, 7]);
  t.same(run([SEND, left, address, 32, 0]), [EFAULT], 'memory that is not ours');
  vectors([0, 2 ** 40]);
  t.same(run([SEND, left, address, 16, 0]), [EFAULT]);
  t.same(run([SEND, left, address + 65_520, 32, 0]), [EFAULT], 'a list that is not ours');
  t.same(run([SEND, left, address, 15, 0]), [EINVAL], 'half a vector');
  t.same(run([SEND, left, address + 4, 16, 0]), [EINVAL], 'between two vectors');
  t.same(run([SEND, left, address, 16 * 1025, 0]), [EINVAL], 'too many');
  native.close(right);
  vectors([address, 16]);
  t.same(run([SEND, left, address, 16, 0]), [EPIPE], 'and no signal');
  native.close(left);
  t.end();
});

t.test('a unix socket holds as much as it is told to, and others are left alone', t => {
  const full = (bytes?: number): number => {
    const ends = new Uint8Array(8);
    native.socketpair(ends);
    const [left, right] = new Int32Array(ends.buffer) as unknown as [number, number];
    if (bytes !== undefined) t.equal(native.setSendBuffer(left, bytes), 0);
    new BigUint64Array(buffer, 0, 2).set([BigInt(address), 65_536n]);
    let sent = 0;
    for (let result = 1; result > 0; sent += Math.max(result, 0))
      [result] = run([SEND, left, address, 16, 0]) as [number];
    native.close(left);
    native.close(right);
    return sent;
  };
  const usual = full();
  t.ok(full(65_536) < usual);
  t.ok(process.getuid?.() !== 0 || full(2 ** 22) > 4 * usual, 'beyond what all may have');
  const server = createServer().listen(0, '127.0.0.1', () => {
    const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
    t.equal(native.setSendBuffer(fd, 4096), -95, 'EOPNOTSUPP: TCP');
    server.close();
    t.end();
  });
});

t.test('positions beyond 32 bits arrive whole', t => {
  const path = join(t.testdir(), 'file');
  const fd = openSync(path, 'w+');
  const far = 5 * 2 ** 32 + 512;
  bytes.fill(7, 0, 512);
  t.same(run([PWRITE, fd, address, 512, far], [PREAD, fd, address + 512, 512, far]), [512, 512]);
  t.equal(bytes[1023], 7);
  t.equal(statSync(path).size, far + 512);
  closeSync(fd);
  t.end();
});

t.test('fallocate keeps the size and makes holes', t => {
  const path = join(t.testdir(), 'file');
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, 1 << 20);
  const KEEP_SIZE = 1;
  const PUNCH_HOLE = 2;
  t.same(run([FALLOCATE, fd, KEEP_SIZE, 1 << 20, 0]), [0]);
  t.equal(statSync(path).size, 1 << 20);
  t.ok(statSync(path).blocks >= 2048);
  t.same(run([FALLOCATE, fd, KEEP_SIZE | PUNCH_HOLE, 1 << 20, 0]), [0]);
  t.equal(statSync(path).blocks, 0);
  t.equal(native.fallocate(fd, KEEP_SIZE, 0, 4096), 0);
  t.ok(statSync(path).blocks > 0);
  closeSync(fd);
  t.end();
});

t.test('lseek finds data and holes', t => {
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  ftruncateSync(fd, 1 << 20);
  writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, 1 << 16);
  const SEEK_DATA = 3;
  const SEEK_HOLE = 4;
  t.equal(native.lseek(fd, 0, SEEK_DATA), 1 << 16);
  t.equal(native.lseek(fd, 1 << 16, SEEK_HOLE), (1 << 16) + 4096);
  t.equal(native.lseek(fd, 1 << 17, SEEK_DATA), -6, 'ENXIO: no more data');
  closeSync(fd);
  t.end();
});

t.test('flock meets another holder', t => {
  const path = join(t.testdir({ file: '' }), 'file');
  const LOCK_EX_NB = 2 | 4;
  const one = openSync(path, 'r+');
  const two = openSync(path, 'r+');
  t.equal(native.flock(one, LOCK_EX_NB), 0);
  t.equal(native.flock(two, LOCK_EX_NB), -11, 'EAGAIN');
  closeSync(one);
  t.equal(native.flock(two, LOCK_EX_NB), 0);
  closeSync(two);
  t.end();
});

t.test('ioctl reads and writes the buffer, now or on a thread of the pool', async t => {
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  const FS_IOC_GETFLAGS = 0x80086601;
  const FIONREAD = 0x541b; // encodes no size; writes an int
  writeSync(fd, 'abcde');
  native.lseek(fd, 0, 0);
  const available = new Uint8Array(8).fill(0xee);
  t.equal(native.ioctl(fd, FIONREAD, available), 0);
  t.same(
    [...available],
    [5, 0, 0, 0, 0xee, 0xee, 0xee, 0xee],
    'only what the kernel wrote changed',
  );
  const flags = new Uint8Array(8);
  const result = native.ioctl(fd, FS_IOC_GETFLAGS, flags);
  t.ok(result === 0 || result === -25, 'flags, or ENOTTY where the file system has none');
  const short = new Uint8Array(1);
  t.equal(native.ioctl(fd, FIONREAD, short), 0);
  t.equal(short[0], 5, 'what does not fit is cut off');
  closeSync(fd);
});
