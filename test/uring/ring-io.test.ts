/**
 * RingIo on real files: every operation on a file system with all features (the test's directory,
 * ext4 or another), on tmpfs (no ZERO_RANGE) and on ramfs (no fallocate at all), each checked
 * against a plain read.
 */

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';

import { DirtyRoom, measureRoom } from '../../src/uring/dirty.ts';
import { Ring } from '../../src/uring/ring.ts';
import { RingIo } from '../../src/uring/ring-io.ts';
import { OPCODE, RWF_DSYNC, SQE_WORDS } from '../../src/uring/sqe.ts';
import { detachedMount } from '../support/detached-mount.ts';
import { Recorder, turnUntil, waitFor } from '../support/wait-for.ts';

const { EBADF, EINVAL, EISDIR, ENODATA, ENOSPC } = constants.errno;
const KIB = 1024;
const MIB = 1024 * KIB;

interface Bench {
  ring: Ring;
  io: RingIo;
}

function bench(t: Test, options: { entries?: number; room?: () => number } = {}): Bench {
  const ring = new Ring({ entries: options.entries ?? 64 });
  const io = new RingIo(ring, { dirtyRoom: new DirtyRoom(options.room ?? (() => 64 * MIB)) });
  t.teardown(() => {
    ring.close();
    io.close();
  });
  return { ring, io };
}

/** Opcodes of the SQEs that were prepared while `act` ran. */
function opcodes(ring: Ring, act: () => void): number[] {
  ring.words.fill(0);
  const before = ring.underWay;
  act();
  const found: number[] = [];
  for (let word = 0; word < ring.words.length; word += SQE_WORDS)
    if (ring.words[word] !== 0) found.push(ring.words[word]! & 0xff);
  if (found.length > ring.underWay - before) throw new Error('more submissions than operations');
  return found;
}

const places = [
  { name: 'a directory on disk', mount: undefined, allocates: true },
  { name: 'tmpfs', mount: () => detachedMount('tmpfs'), allocates: true },
  { name: 'ramfs', mount: () => detachedMount('ramfs'), allocates: false },
];
for (const { name, mount, allocates } of places) {
  t.test(`on ${name}`, t => {
    let directory: string;
    if (mount === undefined) directory = t.testdir();
    else {
      const mounted = mount();
      if (mounted === undefined) {
        t.plan(0, `${name} cannot be mounted here`);
        return;
      }
      directory = mounted.path;
      t.teardown(() => mounted.close());
    }
    const { ring, io } = bench(t);
    const memory = io.allocate(4 * MIB);
    t.teardown(() => memory.free());
    const fd = openSync(join(directory, 'file'), 'w+');
    t.teardown(() => closeSync(fd));

    t.test('what was written is read, at any offset of memory and file', t => {
      for (let i = 0; i < 256 * KIB; i++) memory.bytes[i] = (i * 7) >> 3;
      t.equal(
        waitFor(ring, op => io.write(fd, memory, 512, 100_000, 1536, op)),
        100_000,
      );
      t.equal(
        waitFor(ring, op => io.writeDurable(fd, memory, 1024, 50_000, 200_000, op)),
        50_000,
      );
      t.equal(
        waitFor(ring, op => io.sync(fd, op)),
        0,
      );
      t.equal(
        waitFor(ring, op => io.read(fd, memory, MIB, 100_000, 1536, op)),
        100_000,
      );
      t.equal(
        waitFor(ring, op => io.read(fd, memory, 2 * MIB, 50_000, 200_000, op)),
        50_000,
      );
      const { bytes } = memory;
      t.equal(Buffer.compare(bytes.subarray(512, 100_512), bytes.subarray(MIB, MIB + 100_000)), 0);
      t.equal(
        Buffer.compare(bytes.subarray(1024, 51_024), bytes.subarray(2 * MIB, 2 * MIB + 50_000)),
        0,
      );
      const content = readFileSync(join(directory, 'file'));
      t.equal(Buffer.compare(content.subarray(1536, 101_536), bytes.subarray(512, 100_512)), 0);
      t.end();
    });

    t.test('reading beyond the end is ENODATA, also if a part was there', t => {
      const { size } = fstatSync(fd);
      t.equal(
        waitFor(ring, op => io.read(fd, memory, 0, 512, size, op)),
        -ENODATA,
      );
      t.equal(
        waitFor(ring, op => io.read(fd, memory, 0, 1024, size - 512, op)),
        -ENODATA,
      );
      t.equal(
        waitFor(ring, op => io.read(fd, memory, 0, 512, size - 512, op)),
        512,
      );
      t.end();
    });

    for (const erase of ['punch', 'zero'] as const) {
      t.test(`${erase} makes exactly the range read as zeroes and keeps the size`, t => {
        const bytes = memory.bytes.fill(0xaa, 0, 3 * MIB);
        ftruncateSync(fd, 0);
        t.equal(
          waitFor(ring, op => io.write(fd, memory, 0, 3 * MIB, 0, op)),
          3 * MIB,
        );
        const { size, blocks } = fstatSync(fd);
        for (const [position, length] of [
          [512, 512], // within a block
          [4096 * 3 - 512, 4096 * 4], // across blocks
          [MIB - 512, MIB + 1024], // more than one piece of zeroes
          [3 * MIB - 512, 512], // at the end
        ] as const) {
          t.equal(
            waitFor(ring, op => io[erase](fd, position, length, op)),
            0,
          );
          bytes.fill(0, position, position + length);
        }
        t.equal(fstatSync(fd).size, size);
        const content = Buffer.alloc(3 * MIB);
        readSync(fd, content, 0, content.length, 0);
        t.equal(Buffer.compare(content, bytes.subarray(0, 3 * MIB)), 0);
        if (allocates && erase === 'punch')
          t.ok(fstatSync(fd).blocks * 512 <= blocks * 512 - MIB, 'the space is given back');
        t.end();
      });
    }
    t.end();
  });
}

t.test('errors of the kernel arrive as they are', t => {
  const { ring, io } = bench(t);
  const memory = io.allocate(4096);
  const directory = openSync(t.testdir(), 'r');
  const readOnly = openSync('/proc/self/exe', 'r');
  t.equal(
    waitFor(ring, op => io.read(-1, memory, 0, 512, 0, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.write(-1, memory, 0, 512, 0, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.write(99_999, memory, 0, 512, 0, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.sync(-1, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.punch(-1, 0, 512, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.zero(readOnly, 0, 512, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.writeDurable(readOnly, memory, 0, 512, 0, op)),
    -EBADF,
  );
  t.equal(
    waitFor(ring, op => io.read(directory, memory, 0, 512, 0, op)),
    -EISDIR,
  );
  closeSync(directory);
  closeSync(readOnly);
  t.equal(ring.underWay, 0);
  t.end();
});

t.test('nothing to transfer is done with 0, and erasing nothing is refused', t => {
  const { ring, io } = bench(t);
  const memory = io.allocate(4096);
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  t.equal(
    waitFor(ring, op => io.read(fd, memory, 0, 0, 0, op)),
    0,
  );
  t.equal(
    waitFor(ring, op => io.write(fd, memory, 0, 0, 0, op)),
    0,
  );
  t.equal(
    waitFor(ring, op => io.writeDurable(fd, memory, 0, 0, 0, op)),
    0,
  );
  t.equal(
    waitFor(ring, op => io.punch(fd, 0, 0, op)),
    -EINVAL,
  );
  closeSync(fd);
  t.end();
});

t.test('a full file system is ENOSPC, after a part was written', t => {
  const mount = detachedMount('tmpfs', { size: '64k' });
  if (mount === undefined) {
    t.plan(0, 'tmpfs cannot be mounted here');
    return;
  }
  const { ring, io } = bench(t);
  const slow = new RingIo(ring, { dirtyRoom: new DirtyRoom(() => 0) });
  const memory = io.allocate(MIB);
  const fd = openSync(join(mount.path, 'file'), 'w+');
  t.equal(
    waitFor(ring, op => io.write(fd, memory, 0, 100_000, 0, op)),
    -ENOSPC,
    'plain',
  );
  t.ok(fstatSync(fd).size > 0);
  t.equal(
    waitFor(ring, op => slow.write(fd, memory, 0, 300_000, 0, op)),
    -ENOSPC,
    'ring',
  );
  t.equal(
    waitFor(ring, op => io.writeDurable(fd, memory, 0, 100_000, 0, op)),
    -ENOSPC,
  );
  ftruncateSync(fd, 0);
  t.equal(
    waitFor(ring, op => io.write(fd, memory, 0, 32_768, 0, op)),
    32_768,
    'and it recovers',
  );
  closeSync(fd);
  mount.close();
  t.end();
});

t.test('a transfer that comes in pieces is done once, whole', t => {
  const { ring, io } = bench(t);
  const memory = io.allocate(4096);
  const fifo = join(t.testdir(), 'fifo');
  execFileSync('mkfifo', [fifo]);
  const fd = openSync(fifo, 'r+');
  const op = new Recorder();
  io.read(fd, memory, 100, 10, 0, op);
  ring.turn(false);
  for (const [start, length] of [
    [0, 3],
    [3, 6],
    [9, 1],
  ] as const) {
    t.same(op.results, [], `not done before byte ${start}`);
    memory.bytes.set(Buffer.from('0123456789'));
    const write = new Recorder();
    ring.calls.write(fd, memory.address + start, length, write);
    turnUntil(ring, () => write.results.length > 0);
    turnUntil(ring, () => op.results.length > 0 || memory.bytes[100 + start + length - 1] !== 0);
  }
  turnUntil(ring, () => op.results.length > 0);
  t.same(op.results, [10]);
  t.equal(Buffer.from(memory.bytes.subarray(100, 110)).toString(), '0123456789');
  closeSync(fd);
  t.end();
});

t.test('a read takes the plain road, and goes on through the ring where it would wait', t => {
  const { ring, io } = bench(t);
  const memory = io.allocate(MIB);
  const path = join(t.testdir(), 'file');
  const content = Buffer.alloc(MIB, 'what the file has');
  writeFileSync(path, content);
  const fd = openSync(path, 'r');
  const read = (): void => {
    memory.bytes.fill(0);
    t.equal(
      waitFor(ring, op =>
        t.same(
          opcodes(ring, () => io.read(fd, memory, 0, MIB, 0, op)),
          [],
        ),
      ),
      MIB,
    );
    t.ok(content.equals(memory.bytes));
  };
  read();
  // Drops the file from the cache, where its file system has one; and leaves a part of it there.
  execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' });
  readSync(fd, Buffer.alloc(512), 0, 512, 0);
  read();
  closeSync(fd);
  t.end();
});

t.test('writes take the plain road while there is room, and the ring without', t => {
  let room = 1;
  let looks = 0;
  const { ring, io } = bench(t, {
    room: () => {
      looks++;
      return room;
    },
  });
  const memory = io.allocate(MIB);
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  const road = (): number[] => {
    const op = new Recorder();
    const found = opcodes(ring, () => io.write(fd, memory, 0, MIB / 2, 0, op));
    turnUntil(ring, () => op.results.length > 0 && ring.underWay === 0);
    t.same(op.results, [MIB / 2]);
    return found;
  };
  t.same([road(), road(), road()], [[], [], []]);
  t.equal(looks, 1, 'one look for a MiB or so');
  room = 0;
  t.same([road(), road(), road()], [[OPCODE.WRITE], [OPCODE.WRITE], [OPCODE.WRITE]]);
  room = 1;
  t.same(road(), [], 'plain again');
  closeSync(fd);
  t.end();
});

t.test('with much room we look seldom, and soon enough to see it fill up', t => {
  const MEASURES = 20;
  let dirty = 0;
  let looks = 0;
  const ceiling = 400 * MIB;
  const room = new DirtyRoom(() => {
    looks++;
    return ceiling - dirty;
  });
  while (room.take(MIB)) dirty += MIB;
  t.ok(looks < MEASURES, `${looks} looks`);
  t.ok(dirty >= ceiling && dirty <= ceiling + 2 * MIB, 'stopped at the ceiling');
  t.end();
});

t.test('the kernel says how much room there is', t => {
  const vmstat = readFileSync('/proc/vmstat', 'latin1');
  const limit = Number(/^nr_dirty_threshold (\d+)$/m.exec(vmstat)![1]) * 4096;
  const room = measureRoom();
  t.ok(room < limit, 'below the hard limit');
  t.ok(room > -limit && Number.isInteger(Math.round(room)), `${room} bytes`);
  t.end();
});

t.test('a durable write asks for RWF_DSYNC, a buffered one does not', t => {
  const { ring, io } = bench(t, { room: () => 0 });
  const memory = io.allocate(4096);
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  const op = new Recorder();
  ring.words.fill(0);
  io.writeDurable(fd, memory, 0, 512, 0, op);
  io.write(fd, memory, 0, 512, 0, op);
  const flags: number[] = [];
  for (let word = 0; word < ring.words.length; word += SQE_WORDS)
    if (ring.words[word] === OPCODE.WRITE) flags.push(ring.words[word + 7]!);
  t.same(flags, [RWF_DSYNC, 0]);
  turnUntil(ring, () => op.results.length === 2);
  closeSync(fd);
  t.end();
});

t.test('done may start the next operation with the same op, a thousand times', t => {
  const { ring, io } = bench(t, { entries: 8 });
  const memory = io.allocate(64 * KIB);
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  const op = new Recorder();
  let left = 1000;
  const start = (): void => {
    left--;
    if (left % 3 === 0) io.write(fd, memory, 0, 512, left * 512, op);
    else if (left % 3 === 1) io.read(fd, memory, 512, 512, 0, op);
    else io.sync(fd, op);
  };
  op.next = () => {
    if (left > 0) start();
  };
  ftruncateSync(fd, 4096);
  start();
  turnUntil(ring, () => op.results.length === 1000);
  t.ok(op.results.every(result => result === 512 || result === 0));
  closeSync(fd);
  t.end();
});

t.test('random operations in flight at once leave the same content as a plain buffer', t => {
  let turns = 0;
  const room = (): number => turns++ % 2; // both roads, in turns
  const { ring, io } = bench(t, { entries: 16, room });
  const SECTOR = 512;
  const SECTORS = 4096;
  const SLOTS = 48;
  const LENGTH_MAX = 32;
  const memory = io.allocate(SLOTS * LENGTH_MAX * SECTOR);
  const fd = openSync(join(t.testdir(), 'file'), 'w+');
  ftruncateSync(fd, SECTORS * SECTOR);
  const model = Buffer.alloc(SECTORS * SECTOR);
  const busy = new Uint8Array(SECTORS);
  let seed = 77;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  let started = 0;
  let bad = 0;
  class Slot {
    readonly #start: number;
    #kind = 0;
    #sector = 0;
    #count = 0;
    constructor(index: number) {
      this.#start = index * LENGTH_MAX * SECTOR;
    }
    next(): void {
      if (started >= 6000) return;
      started++;
      do {
        this.#sector = random(SECTORS - LENGTH_MAX);
        this.#count = 1 + random(LENGTH_MAX);
      } while (busy.subarray(this.#sector, this.#sector + this.#count).includes(1));
      busy.fill(1, this.#sector, this.#sector + this.#count);
      this.#kind = random(6);
      const position = this.#sector * SECTOR;
      const length = this.#count * SECTOR;
      const target = model.subarray(position, position + length);
      const own = memory.bytes.subarray(this.#start, this.#start + length);
      if (this.#kind < 3) {
        own.fill(1 + random(255));
        target.set(own);
        if (this.#kind < 2) io.write(fd, memory, this.#start, length, position, this);
        else io.writeDurable(fd, memory, this.#start, length, position, this);
      } else if (this.#kind === 3) {
        own.fill(0xee);
        io.read(fd, memory, this.#start, length, position, this);
      } else {
        target.fill(0);
        if (this.#kind === 4) io.punch(fd, position, length, this);
        else io.zero(fd, position, length, this);
      }
    }
    done(result: number): void {
      const length = this.#count * SECTOR;
      if (result !== (this.#kind < 4 ? length : 0)) bad++;
      if (this.#kind === 3) {
        const own = memory.bytes.subarray(this.#start, this.#start + length);
        const position = this.#sector * SECTOR;
        if (Buffer.compare(own, model.subarray(position, position + length)) !== 0) bad++;
      }
      busy.fill(0, this.#sector, this.#sector + this.#count);
      this.next();
    }
  }
  for (let i = 0; i < SLOTS; i++) new Slot(i).next();
  turnUntil(ring, () => started >= 6000 && ring.underWay === 0 && !ring.calls.queued);
  t.equal(bad, 0, 'every read and every result was right');
  const content = Buffer.alloc(model.length);
  readSync(fd, content, 0, content.length, 0);
  t.equal(Buffer.compare(content, model), 0);
  closeSync(fd);
  t.end();
});
