/**
 * Goal: with its shadow, a leaf keeps what it answered for when its process dies without a flush;
 * and a shadow is used in no other case.
 * Method: a leaf on a real file, whose process "dies" by being forgotten half-way.
 */
import { closeSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { EFBIG } from '../../src/base/errno.ts';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { makeRoom } from '../../src/leaf/grow.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { LeafShadow, openShadow, removeShadow } from '../../src/leaf/shadow.ts';
import { native } from '../../src/native/binding.ts';
import type { IoOp } from '../../src/uring/io.ts';
import { Ring } from '../../src/uring/ring.ts';
import { RingIo } from '../../src/uring/ring-io.ts';
import { Random } from '../support/random.ts';

const SIZE_SECTORS = 2 ** 31; // 1 TiB: bits beyond what 32-bit numbers of bytes could hold
const SECTOR = 512;

const ring = new Ring({ entries: 64 });
const io = new RingIo(ring);
const memory = io.allocate(64 * 1024);
const directory = mkdtempSync(join(tmpdir(), 'ubd-shadow-'));
const path = join(directory, 'leaf');
const shadowPath = join(directory, 'shadow');
t.teardown(() => rmSync(directory, { recursive: true }));

t.beforeEach(() => {
  rmSync(path, { force: true });
  rmSync(shadowPath, { force: true });
  createLeaf({ path, sizeBytes: SIZE_SECTORS * SECTOR, parent: NO_PARENT });
});

function wait(start: (op: IoOp) => void): number {
  let answer: number | undefined;
  start({
    done: result => {
      answer = result;
    },
  });
  while (answer === undefined) ring.turn(true);
  return answer;
}

class Life {
  readonly opened;
  readonly shadow;
  readonly leaf;
  readonly #shadowFd;

  constructor(goingOn: boolean) {
    this.opened = openLeaf(path);
    try {
      const opened = openShadow(shadowPath, this.opened, goingOn);
      this.#shadowFd = opened.fd;
      this.shadow = new LeafShadow(opened);
    } catch (error) {
      closeSync(this.opened.fd);
      throw error;
    }
    this.leaf = new Leaf(io, this.opened, undefined, this.shadow);
  }

  write(sector: number, count: number): void {
    const result = wait(op => this.leaf.write(sector, count, memory, 0, op));
    if (result !== count * SECTOR) throw new Error(`write: ${result}`);
  }

  die(): void {
    this.#end();
  }

  close(): void {
    if (wait(op => this.leaf.close(op)) !== 0) throw new Error('close');
    this.#end();
  }

  #end(): void {
    this.shadow.close();
    native.close(this.#shadowFd);
    closeSync(this.opened.fd);
  }
}

t.test('what was answered and not flushed is there after a death, and durable later', async t => {
  const first = new Life(false);
  first.write(5, 3);
  wait(op => first.leaf.flush(op));
  first.write(100, 1);
  wait(op => first.leaf.writeZeroes(SIZE_SECTORS - 9, 9, false, op));
  first.die();

  const alone = openLeaf(path);
  closeSync(alone.fd);
  t.equal(alone.map.mapped, 3, 'the leaf alone knows what was flushed');

  const second = new Life(true);
  t.match(second.opened.notes.join(), /10 sectors were answered for by a process that died/);
  t.equal(second.leaf.changedSectors, 13);
  t.equal(second.leaf.run(100, 200), 1);
  t.equal(second.leaf.run(SIZE_SECTORS - 9, SIZE_SECTORS), 9);
  t.equal(second.leaf.run(8, 100), -92);
  second.write(7, 4);
  second.die();

  const third = new Life(true);
  t.equal(third.leaf.changedSectors, 16, 'one shadow serves several lives');
  t.equal(
    wait(op => third.leaf.flush(op)),
    0,
  );
  third.die();
  removeShadow(shadowPath);
  const last = openLeaf(path);
  closeSync(last.fd);
  t.equal(last.map.mapped, 16, 'the first flush writes down what the dead had answered');
});

t.test('a leaf that grows keeps its shadow', async t => {
  const larger = SIZE_SECTORS + 2 ** 20;
  const first = new Life(false);
  first.write(5, 3);
  const at = makeRoom(path, first.opened.superblock, larger * SECTOR);
  t.equal(first.shadow.grow(larger), 0);
  first.write(100, 1);
  first.die();

  const second = new Life(true);
  t.equal(second.leaf.changedSectors, 4, 'one that is larger than its leaf is fine');
  t.equal(second.shadow.grow(larger), 0);
  t.equal(second.shadow.grow(larger), 0, 'again, after a failure');
  t.equal(
    wait(op => second.leaf.grow(larger, at, op)),
    0,
  );
  second.write(larger - 9, 9);
  second.write(7, 4);
  second.die();

  const third = new Life(true);
  t.equal(third.leaf.changedSectors, 16);
  t.equal(third.leaf.run(larger - 9, larger), 9);
  third.close();
  t.equal(new LeafShadow(openShadow(shadowPath, openLeaf(path), false)).grow(2 ** 40), -EFBIG);
});

t.test('random ranges over many deaths: the map is what was written', async t => {
  for (let seed = 1; seed <= 5; seed++) {
    rmSync(path);
    createLeaf({ path, sizeBytes: SIZE_SECTORS * SECTOR, parent: NO_PARENT });
    const random = new Random(seed);
    const model = new Set<number>();
    let life = new Life(false);
    const base = random.pick([0, 2 ** 19 - 300, 2 ** 30 - 17, SIZE_SECTORS - 4000]);
    for (let i = 0; i < 200; i++) {
      const count = random.between(1, random.chance(0.1) ? 128 : 12);
      const sector = base + random.below(4000 - count);
      life.write(sector, count);
      for (let s = sector; s < sector + count; s++) model.add(s);
      if (random.chance(0.05)) wait(op => life.leaf.flush(op));
      if (random.chance(0.05)) {
        life.die();
        life = new Life(true);
      }
    }
    life.die();
    life = new Life(true);
    const found = new Set<number>();
    for (let s = base; s < base + 4000; s++) if (life.leaf.run(s, s + 1) > 0) found.add(s);
    t.strictSame(found, model, `seed ${seed}`);
    t.equal(life.leaf.changedSectors, model.size, `seed ${seed}`);
    life.close();
  }
});

t.test('a leaf that was closed in order needs nothing from its shadow', async t => {
  const first = new Life(false);
  first.write(5, 3);
  first.close();
  const second = new Life(true);
  t.equal(second.leaf.changedSectors, 3);
  t.equal(second.opened.unwritten ?? false, false);
  second.close();
});

t.test(
  'a device that goes on is refused where its shadow is lost, of another boot, or another leaf',
  async t => {
    const lost = { code: 'io', message: /what was written last is not known/ };
    new Life(false).die();
    removeShadow(shadowPath);
    t.throws(() => new Life(true), lost);

    new Life(false).die();
    const bytes = readFileSync(shadowPath);
    bytes[8]! ^= 1; // in the boot's name
    writeFileSync(shadowPath, bytes);
    t.throws(() => new Life(true), lost);

    new Life(false).die();
    rmSync(path);
    createLeaf({ path, sizeBytes: SIZE_SECTORS * SECTOR, parent: NO_PARENT });
    t.throws(() => new Life(true), lost);
  },
);

t.test('a new device drops the shadow of an old one', async t => {
  const first = new Life(false);
  first.write(5, 3);
  first.die();
  const second = new Life(false);
  t.equal(second.leaf.changedSectors, 0, 'as after a power failure');
  second.die();
  const third = new Life(true);
  t.equal(third.leaf.changedSectors, 0);
  third.die();
});
