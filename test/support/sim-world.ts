/**
 * A whole device on the simulated disk: engine, leaf, and a root with content; random requests,
 * several at a time; crashes of all kinds; and the model that says after each of them whether a
 * promise was broken.
 *
 * Everything follows from the seed. A broken promise throws, with the sector and what was expected.
 */
import { OP, type Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { NO_PARENT, planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import { type Geometry, PAGE_SECTORS } from '../../src/leaf/format.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { SECTOR } from './promise.ts';
import { Random } from './random.ts';
import { fillSectors, PARENT, SectorModel } from './sector-model.ts';
import { PowerLoss, SimDisk } from './sim-disk.ts';
import { SimIo } from './sim-io.ts';
import { SimMedia } from './sim-media.ts';
import { SimRoot } from './sim-root.ts';
import { begin, end, newSlots, readTouched, type Slot } from './sim-slots.ts';

const REQUEST_SECTORS_MAX = 64;

export interface WorldOptions {
  seed: number;
  /** Makes the Io; for those that lie about what is durable. */
  io?: (disk: SimDisk, random: Random) => SimIo;
  /** Requests between crashes, at most. */
  requestsMax?: number;
  /** Injects a full disk and failing operations. */
  faults?: boolean;
  /** Parts of the engine; few of them make requests wait. */
  parts?: number;
  /** Device and root, in sectors; random by default. */
  sizeSectors?: number;
}

export class World {
  readonly random: Random;
  readonly disk: SimDisk = new SimDisk();
  readonly sizeSectors: number;
  readonly rootSectors: number;
  readonly model: SectorModel;
  readonly #options: WorldOptions;
  readonly #leafFd: number;
  readonly geometry: Geometry;
  readonly #rootFd: number;
  readonly #depth: number;
  readonly #hot: number[];
  /** How often zeroes and discards are large. */
  readonly #large: number;
  #slots: Slot[] = [];
  #version = 0;
  io!: SimIo;
  leaf!: Leaf;
  device!: UnionDevice;
  readonly counts = { requests: 0, errors: 0, powerLosses: 0, kills: 0, closes: 0, verified: 0 };
  checkpoints = 0;
  records = 0;

  constructor(options: WorldOptions) {
    this.#options = options;
    const random = new Random(options.seed);
    this.random = random;
    // The last one reaches into the second directory sector.
    const sizes = [57, PAGE_SECTORS + 100, 3 * PAGE_SECTORS + 17, 1984 * PAGE_SECTORS + 999];
    this.sizeSectors = options.sizeSectors ?? random.pick(sizes);
    this.rootSectors = random.pick([this.sizeSectors, Math.ceil(this.sizeSectors * 0.6), 1]);
    this.model = new SectorModel(this.rootSectors);
    this.#depth = random.between(1, 8);
    this.#large = random.chance(0.2) ? 0.1 : 0;
    this.#hot = hotSectors(this.sizeSectors, this.rootSectors);

    this.#rootFd = this.disk.add(this.rootSectors * SECTOR);
    this.disk.file(this.#rootFd).content = (target, start, length, position) =>
      fillSectors(target, start, PARENT, position / SECTOR, length / SECTOR);
    this.#leafFd = this.disk.add();
    const media = new SimMedia(this.disk, this.#leafFd);
    const plan = planLeaf({
      sizeBytes: this.sizeSectors * SECTOR,
      parent: NO_PARENT,
      logBytes: random.pick([4096, 8192, 65536]),
    });
    this.geometry = plan.geometry;
    // The UUID is the one thing that the seed does not give; it must not matter.
    writeLeaf(media, plan, true);
  }

  // ── a device's life ──────────────────────────────────────────────────────

  /** Opens the leaf and builds the device; true if the power failed on the way. */
  open(): boolean {
    const { random } = this;
    let powerLost = false;
    for (;;) {
      this.io = (this.#options.io ?? ((disk, r) => new SimIo(disk, r)))(this.disk, random);
      const media = new SimMedia(this.disk, this.#leafFd);
      if (random.chance(0.3)) media.callsLeft = random.below(3);
      try {
        const opened = loadLeaf(media);
        const recordExtents = random.pick([2, 5, 4096]);
        const unsyncedBytes = random.pick([20_000, 2 ** 25]);
        const dirtyPages = random.pick([3, 100]);
        this.leaf = new Leaf(this.io, opened, { recordExtents, unsyncedBytes, dirtyPages });
        break;
      } catch (error) {
        if (!(error instanceof PowerLoss)) throw error;
        this.counts.powerLosses++;
        powerLost = true;
        this.io.crash('power');
      }
    }
    const root = new SimRoot(this.io, this.#rootFd, this.rootSectors);
    this.device = new UnionDevice({
      sizeSectors: this.sizeSectors,
      layers: [root],
      leaf: this.leaf,
      parts: new PartPool(this.#options.parts ?? random.pick([1, 2, 3, 64])),
      onFault: () => {},
    });
    this.#slots = newSlots(this.io, this.#depth, REQUEST_SECTORS_MAX, slot => this.#complete(slot));
    if (this.#options.faults) this.#injectFaults();
    return powerLost;
  }

  #injectFaults(): void {
    const { random } = this;
    const file = this.disk.file(this.#leafFd);
    file.blocksMax = random.chance(0.5)
      ? file.blocksUsed + random.between(1, 20)
      : Number.POSITIVE_INFINITY;
    const kind = random.pick(['none', 'write', 'writeDurable', 'sync', 'read', 'punch'] as const);
    const errno = random.pick([-5, -28]);
    let left = random.between(1, 30);
    this.io.fault = op => (op.kind === kind && --left === 0 ? errno : 0);
  }

  /** Issues requests, several at a time, until `count` have been issued. */
  work(count: number): void {
    for (let issued = 0; issued < count; ) {
      const slot = this.#slots.find(entry => !entry.busy);
      if (slot !== undefined && this.random.chance(0.7)) {
        this.#issue(slot);
        issued++;
      } else if (!this.io.step() && slot === undefined) throw new Error('requests hang');
    }
  }

  drain(): void {
    while (this.io.step());
    const stuck = this.#slots.find(slot => slot.busy);
    if (stuck !== undefined) throw new Error(`a request (op ${stuck.request.op}) never completes`);
    if (this.device.inFlight !== 0) throw new Error('the device counts requests that are done');
  }

  crash(kind: 'power' | 'kill'): void {
    this.#countCommits();
    this.io.crash(kind);
    if (kind === 'power') this.counts.powerLosses++;
    else this.counts.kills++;
  }

  /** Closes the leaf; with `steps`, only so far. True if it came to its end. */
  close(steps: number = Number.POSITIVE_INFINITY): boolean {
    this.drain();
    const submit = this.model.tick();
    let result = 1;
    this.leaf.close({
      done: value => {
        result = value;
      },
    });
    for (let i = 0; i < steps && result === 1; i++) if (!this.io.step()) break;
    if (result === 1) {
      if (steps === Number.POSITIVE_INFINITY) throw new Error('close hangs');
      return false;
    }
    if (result === 0) this.model.flushed(submit);
    else if (!this.#options.faults) throw new Error(`close failed: ${result}`);
    this.#countCommits();
    this.counts.closes++;
    return true;
  }

  #countCommits(): void {
    this.checkpoints += this.leaf.counters.checkpoints;
    this.records += this.leaf.counters.records;
  }

  // ── requests ─────────────────────────────────────────────────────────────

  #issue(slot: Slot): void {
    const { random } = this;
    const { request } = slot;
    this.counts.requests++;
    const kind = random.below(100);
    request.fua = kind < 6 || (kind >= 82 && kind < 84);
    request.keepSpace = false;
    request.start = 0;
    this.#chooseRange(request, REQUEST_SECTORS_MAX);
    if (kind < 50) request.op = OP.WRITE;
    else if (kind < 70) request.op = OP.READ;
    else if (kind < 82) request.op = OP.FLUSH;
    else {
      request.op = kind < 91 ? OP.WRITE_ZEROES : OP.DISCARD;
      request.keepSpace = request.op === OP.WRITE_ZEROES && random.chance(0.3);
      if (random.chance(this.#large)) this.#chooseRange(request, 2 * PAGE_SECTORS);
    }
    begin(slot, this.model, () => ++this.#version);
    this.device.submit(request);
  }

  /** A range near one of the places where something could go wrong. */
  #chooseRange(request: Request, max: number): void {
    const { random, sizeSectors } = this;
    const hot = random.pick(this.#hot);
    const spread = max > REQUEST_SECTORS_MAX ? PAGE_SECTORS : 24;
    const first = Math.min(sizeSectors - 1, Math.max(0, hot + random.between(-spread, spread)));
    const length = random.chance(0.7)
      ? random.between(1, Math.min(16, max))
      : random.between(1, max);
    request.sector = first;
    request.count = Math.min(length, sizeSectors - first);
    if (max > REQUEST_SECTORS_MAX && random.chance(0.5)) {
      // Exactly whole pages.
      const page = Math.floor(first / PAGE_SECTORS);
      request.sector = page * PAGE_SECTORS;
      request.count = Math.min(PAGE_SECTORS, sizeSectors - request.sector);
    }
  }

  #complete(slot: Slot): void {
    const { request } = slot;
    const { model } = this;
    if (request.result < 0) {
      this.counts.errors++;
      if (!this.#options.faults) throw new Error(`op ${request.op} failed: ${request.result}`);
    }
    end(slot, model);
    if (slot.versions.length === 0) return;
    const oldest = this.#slots.reduce(
      (least, s) => (s.busy ? Math.min(least, s.submit) : least),
      model.now,
    );
    for (let i = 0; i < request.count; i++) model.prune(request.sector + i, oldest);
  }

  // ── after a crash ────────────────────────────────────────────────────────

  /** Reads all that was ever touched, through the device, and holds it against the model. */
  verify(after: 'power' | 'kill' | 'close'): void {
    const { model } = this;
    const fault = this.io.fault;
    this.io.fault = null;
    model.tick();
    readTouched(
      this,
      REQUEST_SECTORS_MAX,
      () => this.io.step(),
      sector => model.mayLast(sector),
      `after ${after}`,
      (sector, version) => {
        if (after === 'kill') model.settleVisible(sector, version);
        else model.settle(sector, version);
        this.counts.verified++;
      },
    );
    model.tick();
    model.tick();
    this.io.fault = fault;
  }
}

/** Where ranges begin: the ends of pages, of the directory sector, of root and device. */
function hotSectors(sizeSectors: number, rootSectors: number): number[] {
  const places = [0, 8, PAGE_SECTORS, 2 * PAGE_SECTORS, rootSectors, sizeSectors - 20];
  places.push(1984 * PAGE_SECTORS);
  return places.filter(place => place >= 0 && place < sizeSectors);
}
