/**
 * Goal: the leaf does on a real file and a real block device, through the real ring, what it does
 * in simulations. Method: random requests against a Buffer; then the leaf is abandoned without a
 * close, as by a kill, and opened again.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { OP, Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { Ring } from '../../src/uring/ring.ts';
import { RingIo } from '../../src/uring/ring-io.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';

const SECTOR = 512;
const SECTORS = 20_000;
const directory = mkdtempSync(join(tmpdir(), 'ubd-ring-'));
t.teardown(() => rmSync(directory, { recursive: true }));

/** A leaf without a parent on a path, and the Buffer that says what the device must hold. */
class Device {
  readonly path: string;
  readonly expected: Buffer = Buffer.alloc(SECTORS * SECTOR);
  readonly random: Random;
  readonly ring = new Ring({ entries: 64 });
  readonly io = new RingIo(this.ring);
  leaf!: Leaf;
  device!: UnionDevice;
  fd = -1;

  constructor(path: string, seed: number) {
    this.path = path;
    this.random = new Random(seed);
  }

  open(): void {
    const opened = openLeaf(this.path);
    this.fd = opened.fd;
    this.leaf = new Leaf(this.io, opened);
    const parts = new PartPool(16);
    const onFault = (): void => {};
    const options = { sizeSectors: SECTORS, layers: [], leaf: this.leaf, parts, onFault };
    this.device = new UnionDevice(options);
  }

  /** Waits for what `start` starts. */
  wait(start: (op: { done(result: number): void }) => void): number {
    let result: number | undefined;
    start({
      done: value => {
        result = value;
      },
    });
    while (result === undefined) this.ring.turn(true);
    return result;
  }

  /** Random requests, `depth` at a time; those that overlap one in flight are left out. */
  work(count: number, depth: number): void {
    const { random } = this;
    let completed = 0;
    const requests = Array.from({ length: depth }, () => {
      const state = { busy: false, request: null as unknown as Request };
      const complete = (request: Request): void => {
        state.busy = false;
        completed++;
        this.#check(request);
      };
      state.request = new Request({ complete }, this.io.allocate(64 * SECTOR));
      return state;
    });
    for (let issued = 0; issued < count; ) {
      const state = requests.find(entry => !entry.busy);
      if (state === undefined) {
        this.ring.turn(true);
        continue;
      }
      const { request } = state;
      request.sector = random.below(SECTORS - 64);
      request.count = random.between(1, 64);
      const end = request.sector + request.count;
      const overlaps = (other: Request): boolean =>
        other.sector < end && request.sector < other.sector + other.count;
      if (requests.some(entry => entry.busy && overlaps(entry.request))) continue;
      const ops = [OP.WRITE, OP.WRITE, OP.WRITE, OP.READ, OP.READ, OP.DISCARD, OP.WRITE_ZEROES];
      request.op = random.pick(ops);
      request.fua = random.chance(0.02);
      request.keepSpace = random.chance(0.5);
      if (random.chance(0.03)) Object.assign(request, { op: OP.FLUSH, sector: 0, count: 0 });
      for (let i = 0; i < request.count * SECTOR; i += 4)
        request.memory.view.setUint32(i, random.word(), true);
      state.busy = true;
      issued++;
      this.device.submit(request);
    }
    while (completed < count) this.ring.turn(true);
    for (const { request } of requests) request.memory.free();
  }

  #check(request: Request): void {
    if (request.result !== 0) throw new Error(`op ${request.op}: ${request.result}`);
    const start = request.sector * SECTOR;
    const length = request.count * SECTOR;
    const data = Buffer.from(request.memory.bytes.buffer, request.memory.bytes.byteOffset, length);
    if (request.op === OP.WRITE) data.copy(this.expected, start);
    // Over no parent a discard of what is not mapped leaves zeroes as well.
    else if (request.op !== OP.READ) this.expected.fill(0, start, start + length);
    else if (data.compare(this.expected, start, start + length) !== 0)
      throw new Error(`${request.count} sectors at ${request.sector} read wrongly`);
  }

  verify(): boolean {
    const memory = this.io.allocate(SECTORS * SECTOR);
    let done = false;
    const complete = (): void => {
      done = true;
    };
    const request = new Request({ complete }, memory);
    request.count = SECTORS;
    this.device.submit(request);
    while (!done) this.ring.turn(true);
    const same = Buffer.from(memory.bytes).equals(this.expected);
    memory.free();
    return same && request.result === 0;
  }

  end(): void {
    this.ring.close();
    this.io.close();
  }
}

function lives(t: Tap, path: string, seed: number): void {
  const device = new Device(path, seed);
  for (const depth of [1, 32]) {
    device.open();
    t.ok(device.verify(), 'what was there is there');
    device.work(1500, depth);
    t.ok(device.verify());
    t.equal(
      device.wait(op => device.leaf.flush(op)),
      0,
    );
    const changed = device.leaf.changedSectors;
    closeSync(device.fd); // no close of the leaf: its process was killed
    const opened = openLeaf(path);
    closeSync(opened.fd);
    t.equal(opened.map.mapped, changed, 'all that was flushed is mapped');
  }
  device.open();
  t.ok(device.verify());
  t.equal(
    device.wait(op => device.leaf.close(op)),
    0,
  );
  closeSync(device.fd);
  const report = checkLeaf(path, { readData: true });
  t.strictSame(report.findings, []);
  t.ok(report.superblock!.clean);
  device.end();
}
type Tap = typeof t;

t.test('on a file', async t => {
  const path = join(directory, 'file.leaf');
  createLeaf({ path, sizeBytes: SECTORS * SECTOR, parent: NO_PARENT });
  lives(t as Tap, path, 1);
});

t.test('a discard of everything gives the space back', async t => {
  const path = join(directory, 'file.leaf');
  const before = statSync(path).blocks;
  const device = new Device(path, 2);
  device.open();
  t.equal(
    device.wait(op => device.leaf.discard(0, SECTORS, op)),
    0,
  );
  t.equal(
    device.wait(op => device.leaf.close(op)),
    0,
  );
  closeSync(device.fd);
  device.end();
  t.ok(statSync(path).blocks < before / 10, `${before} blocks, then ${statSync(path).blocks}`);
});

t.test(
  'on a block device, over what was on it before',
  { skip: await missing('root', '/dev/loop-control', 'losetup') },
  async t => {
    const image = join(directory, 'disk.img');
    writeFileSync(image, '');
    truncateSync(image, 16 * 2 ** 20);
    const node = execFileSync('losetup', ['-f', '--show', image], { encoding: 'utf8' }).trim();
    t.teardown(() => execFileSync('losetup', ['-d', node]));
    const wishes = { path: node, sizeBytes: SECTORS * SECTOR, parent: NO_PARENT };
    writeFileSync(node, Buffer.alloc(15 * 2 ** 20, 0xd1));
    t.throws(() => createLeaf(wishes), { code: 'exists', place: { file: node, offset: 0 } });
    t.throws(() => createLeaf({ ...wishes, sizeBytes: 2 ** 30, overwrite: true }), {
      code: 'no-space',
    });
    createLeaf({ ...wishes, overwrite: true });
    t.throws(() => createLeaf(wishes), { code: 'exists' }, 'also not over another leaf');
    lives(t as Tap, node, 3);
    const opened = openLeaf(node);
    t.throws(() => openLeaf(node), { code: 'busy' }, 'it is claimed');
    closeSync(opened.fd);
  },
);
