/**
 * Goal: the cache takes as much memory of the machine as it was given, whatever goes through it,
 * and gives it back. Method: a real ring, a real file, reads all over it from many layers; the
 * process's own RSS is measured.
 */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { EINVAL } from '../../src/base/errno.ts';
import { Cache } from '../../src/cache/cache.ts';
import { CachedLayer, LOCAL } from '../../src/cache/cached-layer.ts';
import { POLICIES } from '../../src/cache/policy.ts';
import { RootLayer } from '../../src/image/raw-image.ts';
import { DIRECT_FLAGS, RootSource } from '../../src/image/root-source.ts';
import type { IoOp, Pieces, ScatterIo } from '../../src/uring/io.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { Ring } from '../../src/uring/ring.ts';
import { RingIo } from '../../src/uring/ring-io.ts';
import { RingSlabIo } from '../../src/uring/slab-io.ts';
import { Random } from '../support/random.ts';
import { turnUntil } from '../support/wait-for.ts';

const MIB = 2 ** 20;
const SIZE = 192 * MIB;
const LIMIT = 48 * MIB;
/** What the engine itself may come to take meanwhile, and two extents of 2 MiB at the edges. */
const SLACK = 12 * MIB;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

function rss(): number {
  collect();
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;
}

const folder = mkdtempSync(join(tmpdir(), 'ubd-cache-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const file = join(folder, 'root.img');

function writeRoot(): void {
  const fd = openSync(file, 'w');
  const block = Buffer.alloc(MIB);
  for (let at = 0; at < SIZE; at += MIB) {
    for (let i = 0; i < MIB; i += 8) block.writeDoubleLE(at + i + 1, i);
    writeSync(fd, block, 0, MIB, at);
  }
  closeSync(fd);
}
writeRoot();

for (const policy of POLICIES)
  t.test(`${policy}: memory stays inside the limit, follows it, and is given back`, async t => {
    const ring = new Ring({ entries: 64 });
    const io = new RingIo(ring);
    const cache = new Cache({ io: new RingSlabIo(ring), capacityBytes: LIMIT, policy });
    const fds = [openSync(file, 'r'), openSync(file, DIRECT_FLAGS)] as const;
    t.teardown(() => {
      ring.close();
      io.close();
      cache.close();
      for (const fd of fds) closeSync(fd);
    });
    const layers = Array.from({ length: 4 }, () => {
      const plain = new RootLayer(io, file, fds[0], SIZE / 512);
      const source = new RootSource(io, plain, { fd: fds[0], directFd: fds[1] });
      const content = { key: 'root', name: file, sizeSectors: SIZE / 512, lasting: true };
      return new CachedLayer(cache, { content, plain, source, tuning: LOCAL });
    });
    const random = new Random(3);
    const target = allocateMemory(MIB);
    t.teardown(() => target.free());
    const churn = (rounds: number): void => {
      for (let i = 0; i < rounds; i++) {
        const layer = random.pick(layers);
        const length = random.pick([4096, 65_536, MIB]);
        const at = Math.floor(random.below(SIZE - length) / 512) * 512;
        const result = waitForAny(ring, layer, at, length, target);
        if (result !== length || target.view.getFloat64(0, true) !== wordAt(at))
          throw new Error(`${length} bytes at ${at}: ${result}`);
      }
    };
    // What the process itself comes to need shows before the cache is filled.
    cache.resize(2 * MIB);
    churn(300);
    cache.drop(null);
    const base = rss();
    cache.resize(LIMIT);
    let most = 0;
    for (let round = 0; round < 12; round++) {
      churn(120);
      most = Math.max(most, rss() - base);
      t.ok(cache.usedBytes <= LIMIT);
    }
    t.ok(cache.counters.evictions > 1000, `${cache.counters.evictions} chunks went`);
    t.ok(most <= LIMIT + SLACK, `${(most / MIB).toFixed(1)} MiB for ${LIMIT / MIB}`);
    t.ok(most >= LIMIT / 2, 'and it was used');
    cache.resize(LIMIT / 4);
    churn(60);
    const lowered = rss() - base;
    t.ok(lowered <= LIMIT / 4 + SLACK, `${(lowered / MIB).toFixed(1)} MiB after it was lowered`);
    cache.drop(null);
    turnUntil(ring, () => ring.underWay === 0 || cache.memoryBytes === 0);
    const left = rss() - base;
    t.ok(left <= SLACK, `${(left / MIB).toFixed(1)} MiB after all was dropped`);
  });

/** The eight bytes at a position that is a multiple of them. */
function wordAt(position: number): number {
  return position + 1;
}

/** A read that may be answered at once, or by the ring. */
function waitForAny(
  ring: Ring,
  layer: CachedLayer,
  at: number,
  length: number,
  memory: ReturnType<typeof allocateMemory>,
): number {
  let ended: number | null = null;
  layer.read(at / 512, length / 512, memory, 0, {
    done: result => {
      ended = result;
    },
  });
  turnUntil(ring, () => ended !== null);
  return ended!;
}

t.test('a root that the kernel does not read directly is read all the same', async t => {
  const ring = new Ring({ entries: 64 });
  const io = new RingIo(ring);
  t.teardown(() => {
    ring.close();
    io.close();
  });
  const odd = join(folder, 'odd.img');
  const bytes = Buffer.alloc(5 * 4096 + 3 * 512);
  for (let i = 0; i < bytes.length; i += 8) bytes.writeDoubleLE(i + 1, i);
  for (const [what, path, direct] of [
    ['its last block is short', odd, true],
    ['it lies in memory', '/dev/shm/ubd-cache-test.img', null],
    ['its descriptor refuses', odd, false],
  ] as const) {
    const writer = openSync(path, 'w');
    writeSync(writer, bytes);
    closeSync(writer);
    const fd = openSync(path, 'r');
    let directFd: number | null = null;
    try {
      directFd = openSync(path, DIRECT_FLAGS);
    } catch {
      // a file system without it
    }
    t.teardown(() => {
      closeSync(fd);
      if (directFd !== null) closeSync(directFd);
      rmSync(path, { force: true });
    });
    const cache = new Cache({ io: new RingSlabIo(ring), capacityBytes: MIB * 4, policy: 'lru' });
    const sizeSectors = bytes.length / 512;
    const plain = new RootLayer(io, path, fd, sizeSectors);
    const asked: number[] = [];
    const watched: ScatterIo = Object.assign(Object.create(io) as ScatterIo, {
      readScattered: (which: number, pieces: Pieces, position: number, op: IoOp): void => {
        asked.push(which);
        if (direct === false && which === directFd) op.done(-EINVAL, 0);
        else io.readScattered(which, pieces, position, op);
      },
    });
    const source = new RootSource(watched, plain, { fd, directFd });
    const content = { key: what, name: path, sizeSectors, lasting: true };
    const layer = new CachedLayer(cache, { content, plain, source, tuning: LOCAL });
    const memory = allocateMemory(32_768);
    // The first one is whole blocks: what only it needs is asked for directly.
    for (const [from, count] of [
      [1, 7],
      [40, 3],
      [0, sizeSectors],
    ] as const) {
      t.equal(waitForAny(ring, layer, from * 512, count * 512, memory), count * 512, what);
      const wanted = bytes.subarray(from * 512, (from + count) * 512);
      t.ok(wanted.equals(memory.bytes.subarray(0, count * 512)), `${what}: ${from}+${count}`);
    }
    if (direct === false && directFd !== null) {
      t.equal(source.isDirect, false, 'it is not asked again');
      t.equal(asked.filter(which => which === directFd).length, 1);
    }
    if (direct === true && directFd !== null)
      t.equal(source.isDirect, true, 'whole blocks still go past the page cache');
    t.equal(layer.content.fills.errors, 0);
    turnUntil(ring, () => ring.underWay === 0);
    cache.close();
    memory.free();
  }
});
