/**
 * The life of a simulated device that is snapshotted while it is written: requests, snapshots,
 * closes and crashes in any order, and the model that says what each sector may hold.
 *
 * A snapshot does the steps of the daemon, one after the other, while requests go on; a crash may
 * come between any two. Everything follows from the seed; a broken promise throws.
 */

import { alignUp } from '../../src/base/units.ts';
import { OP, Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { NO_PARENT, planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import { fileBytesFor, geometryBehind, PAGE_SECTORS, REGION_ALIGN } from '../../src/leaf/format.ts';
import { freezeMedia, newFreeze } from '../../src/leaf/freeze.ts';
import { FrozenLayer } from '../../src/leaf/frozen-layer.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { parentOf, requireParent } from '../../src/leaf/lineage.ts';
import { loadImage, loadLeaf } from '../../src/leaf/load.ts';
import type { OpenedLeaf } from '../../src/leaf/opened.ts';
import { mergeOwners } from '../../src/leaf/owner-map.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import type { Shadow } from '../../src/leaf/shadow.ts';
import { succeed } from '../../src/leaf/succession.ts';
import {
  chooseSuperblock,
  type Freeze,
  readSuperblockCopies,
  type Superblock,
} from '../../src/leaf/superblock.ts';
import type { Layer } from '../../src/store/store.ts';
import type { IoOp } from '../../src/uring/io.ts';
import { Random } from './random.ts';
import { fillSectors, PARENT, SectorModel, type Version, versionIn } from './sector-model.ts';
import { PowerLoss, SimDisk } from './sim-disk.ts';
import { SimIo } from './sim-io.ts';
import { SimMedia } from './sim-media.ts';
import { SimNames } from './sim-names.ts';
import { SimRoot } from './sim-root.ts';

const SECTOR = 512;
const REQUEST_SECTORS_MAX = 48;
const LEAF = 'web.leaf';
const NEXT = 'web.next';

export interface HistoryOptions {
  seed: number;
  /** The device outlives the process: a kill loses nothing that was answered. */
  outlives?: boolean;
  /** For mutations: what the daemon might forget. */
  forget?: 'prepare' | 'sync names' | 'flush the old leaf' | 'replay the shadow' | 'rename';
}

interface Slot {
  request: Request;
  busy: boolean;
  submit: number;
  versions: Version[];
}

/** An intermediate image, and what it holds for ever. */
interface Snapshot {
  file: string;
  /** Sector to version; set once it is frozen. */
  content: Map<number, number> | null;
  /** What each sector may hold, as of its moment. */
  legal: Map<number, number[]>;
}

class MapShadow implements Shadow {
  /** Larger than any leaf of a history grows. */
  readonly map: SectorMap = new SectorMap(2 ** 24);

  reserve(): number {
    return 0;
  }

  set(sector: number, count: number): void {
    this.map.setRange(sector, count);
  }
}

type Step = Generator<(op: IoOp) => void, void, number>;

export class History {
  readonly random: Random;
  readonly disk: SimDisk = new SimDisk();
  readonly names: SimNames;
  readonly counts = {
    requests: 0,
    snapshots: 0,
    crashes: 0,
    recovered: 0,
    undone: 0,
    grown: 0,
    verified: 0,
  };
  readonly #options: HistoryOptions;
  #sectors: number;
  /** What a grow was answered for. */
  #sectorsLeast = 0;
  readonly #rootFd: number;
  readonly #model: SectorModel;
  readonly #shadows = new Map<string, MapShadow>();
  readonly #snapshots: Snapshot[] = [];
  #slots: Slot[] = [];
  #version = 0;
  #io!: SimIo;
  #leaf!: Leaf;
  #device!: UnionDevice;
  /** Namespace operations under way. */
  #nameOps: (() => void)[] = [];
  /** The snapshot under way, and whether it waits for an operation. */
  #taking: Step | null = null;
  #waiting = false;

  constructor(options: HistoryOptions) {
    this.#options = options;
    this.random = new Random(options.seed);
    const { random, disk } = this;
    this.names = new SimNames(disk);
    this.#sectors = random.pick([90, PAGE_SECTORS + 40]);
    const rootSectors = random.pick([this.#sectors, 60]);
    this.#model = new SectorModel(rootSectors);
    this.#rootFd = disk.add(rootSectors * SECTOR);
    disk.file(this.#rootFd).content = (target, start, length, position) =>
      fillSectors(target, start, PARENT, position / SECTOR, length / SECTOR);
    this.#create(LEAF, NO_PARENT, true);
    this.names.sync();
  }

  #create(name: string, parent: Superblock['parent'], durable: boolean): void {
    const fd = this.disk.add();
    const media = new SimMedia(this.disk, fd);
    const sizeBytes = this.#sectors * SECTOR;
    writeLeaf(media, planLeaf({ sizeBytes, parent, logBytes: 4096 }), durable);
    this.names.link(name, fd);
  }

  #media(name: string): SimMedia {
    const fd = this.names.get(name);
    if (fd === undefined) throw new Error(`${name} is missing`);
    return new SimMedia(this.disk, fd, { name });
  }

  // ── opening, as a new daemon does ────────────────────────────────────────

  /** @param killed the process died, and nothing else; true if the power fails meanwhile */
  open(killed: boolean): boolean {
    let powerLost = false;
    for (;;) {
      this.#io = new SimIo(this.disk, this.random);
      this.#nameOps = [];
      this.#taking = null;
      this.#waiting = false;
      try {
        this.#tidy();
        this.#openDevice(killed && !powerLost);
        return powerLost;
      } catch (error) {
        if (!(error instanceof PowerLoss)) throw error;
        powerLost = true;
        this.#shadows.clear();
        this.#io.crash('power');
        this.names.powerLoss(this.random);
      }
    }
  }

  /** What a dead daemon's record says: a snapshot was under way. */
  #tidy(): void {
    for (const { file, content } of this.#snapshots.slice(-1)) {
      if (content !== null) continue;
      if (this.names.get(file) === this.names.get(LEAF)) {
        loadLeaf(this.#flaky(LEAF)); // no longer about to be frozen
        this.names.remove(file);
      }
      if (this.names.get(file) === undefined) {
        this.#snapshots.pop();
        this.counts.undone++;
      } else this.counts.recovered++;
    }
    if (this.names.get(NEXT) !== undefined) this.names.remove(NEXT);
    this.names.sync();
  }

  /** Media whose power may fail. */
  #flaky(name: string): SimMedia {
    const media = this.#media(name);
    if (this.random.chance(0.2)) media.callsLeft = this.random.below(4);
    return media;
  }

  #openDevice(killed: boolean): void {
    const { random } = this;
    const opened = loadLeaf(this.#flaky(LEAF));
    this.#sectors = opened.superblock.sizeSectors;
    if (this.#sectors < this.#sectorsLeast) throw new Error('the device has shrunk');
    if (killed) this.#replay(opened);
    const layers = this.#layersUnder(opened.superblock, killed);
    this.#leaf = this.#serve(opened);
    this.#device = new UnionDevice({
      sizeSectors: this.#sectors,
      layers,
      leaf: this.#leaf,
      parts: new PartPool(random.pick([2, 64])),
      onFault: () => {},
    });
    this.#slots = Array.from({ length: random.between(1, 6) }, () => {
      const slot: Slot = { request: null!, busy: false, submit: 0, versions: [] };
      const completer = { complete: () => this.#complete(slot) };
      slot.request = new Request(completer, this.#io.allocate(REQUEST_SECTORS_MAX * SECTOR));
      return slot;
    });
  }

  #serve(opened: OpenedLeaf): Leaf {
    const limits = {
      recordExtents: this.random.pick([2, 64]),
      unsyncedBytes: 2 ** 25,
      dirtyPages: 100,
    };
    let shadow: MapShadow | null = null;
    if (this.#options.outlives) {
      const { uuid } = opened.superblock;
      shadow = this.#shadows.get(uuid) ?? new MapShadow();
      this.#shadows.set(uuid, shadow);
    }
    return new Leaf(this.#io, opened, limits, shadow);
  }

  /** What a dead process had answered for is the leaf's. */
  #replay(opened: OpenedLeaf): void {
    const shadow = this.#shadows.get(opened.superblock.uuid);
    if (shadow === undefined) return;
    const map = SectorMap.fromState(opened.map);
    for (let at = 0; at < this.#sectors; ) {
      const run = shadow.map.run(at, this.#sectors);
      if (run > 0) map.setRange(at, run);
      at += Math.abs(run);
    }
    opened.map = map.toState();
    opened.unwritten = true;
  }

  /** The chain and the root, as chain.ts opens them. */
  #layersUnder(leaf: Superblock, killed: boolean): Layer[] {
    const images: { media: SimMedia; superblock: Superblock; map: SectorMap }[] = [];
    for (let { parent } = leaf; parent.kind === 'leaf'; ) {
      const media = this.#media(parent.path);
      let { superblock, map } = loadImage(media);
      requireParent(parent, superblock, LEAF, parent.path);
      if (map === null) {
        if (media.names > 1) throw new Error(`${parent.path} is not frozen`);
        const flaky = this.#flaky(parent.path);
        const opened = loadLeaf(flaky, { keepFreeze: true });
        if (killed && this.#options.forget !== 'replay the shadow') this.#replay(opened);
        freezeMedia(flaky, opened);
        ({ superblock, map } = loadImage(media));
        if (map === null) throw new Error('it is frozen now');
      }
      images.push({ media, superblock, map });
      parent = superblock.parent;
    }
    const root = new SimRoot(
      this.#io,
      this.#rootFd,
      this.disk.file(this.#rootFd).sizeBytes / SECTOR,
    );
    if (images.length === 0) return [root];
    images.reverse();
    const files = images.map(({ media, superblock }, i) => ({
      name: `image ${i + 1}`,
      fd: media.fd,
      dataOffset: superblock.geometry.dataOffset,
    }));
    const owners = mergeOwners(
      null,
      images.map(({ map }) => map),
      1,
    );
    return [new FrozenLayer(this.#io, 'chain', files, owners.state), root];
  }

  // ── running ──────────────────────────────────────────────────────────────

  /** One operation of those under way. False if there is none. */
  #step(): boolean {
    const { random } = this;
    if (this.#taking !== null && !this.#waiting && random.chance(0.5)) {
      this.#goOn(0);
      return true;
    }
    if (this.#nameOps.length > 0 && (this.#io.idle || random.chance(0.3))) {
      this.#nameOps.shift()!();
      return true;
    }
    if (this.#io.step()) return true;
    if (this.#nameOps.length > 0) this.#nameOps.shift()!();
    else if (this.#taking !== null && !this.#waiting) this.#goOn(0);
    else return false;
    return true;
  }

  /** Issues requests, several at a time; a snapshot begins somewhere among them. */
  work(count: number): void {
    const begin = this.random.chance(0.7) ? this.random.below(count) : -1;
    const grow = this.random.chance(0.2) ? this.random.below(count) : -1;
    for (let issued = 0; issued < count; ) {
      if (issued === begin && this.#taking === null) this.snapshot();
      if (issued === grow && this.#taking === null) this.grow();
      const slot = this.#slots.find(entry => !entry.busy);
      if (slot !== undefined && this.random.chance(0.6)) {
        this.#issue(slot);
        issued++;
      } else if (!this.#step() && slot === undefined) throw new Error('requests hang');
    }
  }

  drain(): void {
    while (this.#step());
    if (this.#slots.some(slot => slot.busy)) throw new Error('a request never completes');
    if (this.#taking !== null) throw new Error('a snapshot never ends');
  }

  crash(kind: 'power' | 'kill'): void {
    this.counts.crashes++;
    this.#io.crash(kind);
    if (kind === 'kill') return;
    this.names.powerLoss(this.random);
    this.#shadows.clear();
  }

  close(): void {
    this.drain();
    const submit = this.#model.tick();
    let result = 1;
    this.#leaf.close({
      done: value => {
        result = value;
      },
    });
    while (this.#step());
    if (result !== 0) throw new Error(`close: ${result}`);
    this.#model.flushed(submit);
  }

  // ── growing ──────────────────────────────────────────────────────────────

  grow(): void {
    this.#taking = this.#makeLarger();
    this.#goOn(0);
  }

  /** As `makeRoom` in leaf/grow.ts, and what follows. */
  *#makeLarger(): Step {
    const { random } = this;
    const sectors = this.#sectors + random.pick([1, 30, PAGE_SECTORS]);
    const media = this.#media(LEAF);
    const file = this.disk.file(media.fd);
    const { geometry } = chooseSuperblock(readSuperblockCopies(media), LEAF);
    const dataEnd = geometry.dataOffset + sectors * SECTOR;
    const at = alignUp(Math.max(dataEnd, file.sizeBytes), REGION_ALIGN);
    file.sizeBytes = fileBytesFor(sectors, geometryBehind(sectors, geometry, at));
    const leaf = this.#leaf;
    yield op => leaf.grow(sectors, at, op);
    this.#sectors = sectors;
    this.#sectorsLeast = sectors;
    this.#device.sizeSectors = sectors;
    this.counts.grown++;
  }

  // ── a snapshot ───────────────────────────────────────────────────────────

  snapshot(): void {
    const file = `image-${this.#snapshots.length}.leaf`;
    this.#snapshots.push({ file, content: null, legal: new Map() });
    this.#taking = this.#take(file);
    this.#goOn(0);
  }

  #goOn(result: number): void {
    const next = this.#taking!.next(result);
    this.#waiting = !next.done;
    if (next.done) {
      this.#taking = null;
      return;
    }
    next.value({
      done: value => {
        this.#waiting = false;
        if (value < 0) throw new Error(`a step of the snapshot failed: ${value}`);
        this.#goOn(value);
      },
    });
  }

  /** The steps of `PlaneLiveLeaves.snapshot`. Each yield waits for an operation. */
  *#take(file: string): Step {
    const { forget } = this.#options;
    const snapshot = this.#snapshots.at(-1)!;
    const old = this.#leaf;
    const freeze: Freeze = newFreeze();
    const copies = readSuperblockCopies(this.#media(LEAF));
    const parent = parentOf(chooseSuperblock(copies, LEAF), freeze, file);
    this.#create(NEXT, parent, true);
    this.names.link(file, this.names.get(LEAF)!);
    this.names.sync();
    yield this.#pause();
    if (forget !== 'prepare') yield op => old.amend({ freeze }, op);
    yield op => old.flush(op);
    const next = this.#serve(loadLeaf(this.#media(NEXT)));
    yield op => this.#succeed(old, next, snapshot, op);
    yield this.#pause();
    yield op => old.seal({ ...freeze, done: true }, op);
    const top = readSuperblockCopies(this.#media(LEAF));
    const layers = this.#layersUnder(chooseSuperblock(top, LEAF), false);
    yield op => this.#device.change(layers, next, () => this.#nameOps.push(() => op.done(0, 0)));
    snapshot.content = this.#contentOf(file);
    this.#checkMoment(snapshot);
    this.counts.snapshots++;
  }

  /** Lets others go first. */
  #pause(): (op: IoOp) => void {
    return op => this.#nameOps.push(() => op.done(0, 0));
  }

  #succeed(old: Leaf, next: Leaf, snapshot: Snapshot, op: IoOp): void {
    const { forget } = this.#options;
    let settled = false;
    let done: number | null = null;
    const end = (): void => {
      if (settled && done !== null) op.done(done, 0);
    };
    const names = {
      rename: (renamed: IoOp): void => {
        this.#nameOps.push(() => {
          if (forget !== 'rename') this.names.rename(NEXT, LEAF);
          renamed.done(0, 0);
        });
      },
      sync: (synced: IoOp): void => {
        this.#nameOps.push(() => {
          if (forget !== 'sync names') this.names.sync();
          synced.done(0, 0);
        });
      },
    };
    const takeOver = (): void => {
      this.#leaf = next;
      const now = this.#model.tick();
      for (const sector of this.#model.touched)
        snapshot.legal.set(sector, this.#model.mayRead(sector, now));
      this.#device.change([old, ...this.#below()], next, () => {
        settled = true;
        end();
      });
      if (forget === 'flush the old leaf') next.belowIsDurable();
    };
    succeed({
      old,
      next,
      names,
      takeOver,
      done: (_, result) => {
        done = result;
        end();
      },
    });
  }

  /** Layers under the old leaf, opened anew. */
  #below(): Layer[] {
    const { file } = this.#snapshots.at(-1)!;
    return this.#layersUnder(
      chooseSuperblock(readSuperblockCopies(this.#media(file)), file),
      false,
    );
  }

  // ── what images hold ─────────────────────────────────────────────────────

  /** Reads an image and what is below it, sector by sector. */
  #contentOf(file: string): Map<number, number> {
    const images: { media: SimMedia; map: SectorMap; dataOffset: number }[] = [];
    for (let name = file; ; ) {
      const media = this.#media(name);
      const { superblock, map } = loadImage(media);
      if (map === null) throw new Error(`${name} is not frozen`);
      images.push({ media, map, dataOffset: superblock.geometry.dataOffset });
      if (superblock.parent.kind !== 'leaf') break;
      name = superblock.parent.path;
    }
    const content = new Map<number, number>();
    const bytes = new Uint8Array(SECTOR);
    for (const sector of this.#model.touched) {
      const image = images.find(
        ({ map }) => sector < map.sectors && map.run(sector, sector + 1) > 0,
      );
      if (image === undefined) {
        content.set(sector, this.#rootVersion(sector));
        continue;
      }
      image.media.read(bytes, image.dataOffset + sector * SECTOR);
      const version = versionIn(bytes, 0, sector);
      if (version === undefined) throw new Error(`${file}: sector ${sector} is garbage`);
      content.set(sector, version);
    }
    return content;
  }

  #rootVersion(sector: number): number {
    return sector * SECTOR < this.disk.file(this.#rootFd).sizeBytes ? PARENT : 0;
  }

  /** The image holds all that was done before its moment, and nothing that began after it. */
  #checkMoment({ file, content, legal }: Snapshot): void {
    for (const [sector, version] of content!) {
      const may = legal.get(sector) ?? [this.#rootVersion(sector)];
      if (!may.includes(version))
        throw new Error(`${file}: sector ${sector} holds ${version}; legal: ${may.join(', ')}`);
    }
  }

  /** What is frozen never changes. */
  checkImages(): void {
    for (const snapshot of this.#snapshots) {
      const now = this.#contentOf(snapshot.file);
      if (snapshot.content !== null)
        for (const [sector, version] of snapshot.content)
          if (now.get(sector) !== version)
            throw new Error(`${snapshot.file}: sector ${sector} was ${version} and has changed`);
      snapshot.content = now;
    }
  }

  // ── requests ─────────────────────────────────────────────────────────────

  #issue(slot: Slot): void {
    const { random } = this;
    const model = this.#model;
    const { request } = slot;
    this.counts.requests++;
    const kind = random.below(100);
    request.fua = kind < 6;
    request.keepSpace = false;
    request.start = 0;
    request.sector = random.pick([0, 20, 40, 55, this.#sectors - 30]) + random.below(25);
    request.count = Math.min(
      random.between(1, random.pick([4, 24])),
      this.#sectors - request.sector,
    );
    slot.busy = true;
    slot.versions = [];
    const { sector, count } = request;
    if (kind < 50) {
      request.op = OP.WRITE;
      const version = ++this.#version;
      fillSectors(request.memory.bytes, 0, version, sector, count);
      slot.versions = [model.begin(version, sector, count)];
    } else if (kind < 72) {
      request.op = OP.READ;
      request.memory.bytes.fill(0xee, 0, count * SECTOR);
    } else if (kind < 84) {
      request.op = OP.FLUSH;
      request.sector = 0;
      request.count = 0;
    } else {
      request.op = OP.WRITE_ZEROES;
      slot.versions = [model.begin(0, sector, count)];
    }
    slot.submit = model.tick();
    this.#device.submit(request);
  }

  #complete(slot: Slot): void {
    const { request, versions, submit } = slot;
    const model = this.#model;
    slot.busy = false;
    if (request.result < 0) throw new Error(`op ${request.op} failed: ${request.result}`);
    if (versions.length > 0) {
      for (const version of versions) model.end(version, request.result, request.fua);
      return;
    }
    if (request.count === 0) {
      model.flushed(submit);
      return;
    }
    model.tick();
    this.#check(request, sector => model.mayRead(sector, submit), 'a read');
  }

  #check(request: Request, legalOf: (sector: number) => number[], when: string): void {
    for (let i = 0; i < request.count; i++) {
      const sector = request.sector + i;
      const found = versionIn(request.memory.bytes, i * SECTOR, sector);
      const legal = legalOf(sector);
      if (found === undefined || !legal.includes(found))
        throw new Error(
          `${when}: sector ${sector} holds ${found ?? 'garbage'}; legal: ${legal.join(', ')}`,
        );
    }
  }

  /** Reads all that was touched through the device, and holds it against the model. */
  verify(after: 'power' | 'kill' | 'close'): void {
    const model = this.#model;
    const keeps = after === 'close' || (after === 'kill' && this.#options.outlives === true);
    model.tick();
    const now = model.tick();
    let done = false;
    const completer = {
      complete: () => {
        done = true;
      },
    };
    const request = new Request(completer, this.#io.allocate(SECTOR));
    for (const sector of model.touched) {
      request.sector = sector;
      request.count = 1;
      done = false;
      this.#device.submit(request);
      while (!done) if (!this.#step()) throw new Error('a read hangs');
      const legalOf = (s: number): number[] => (keeps ? model.mayRead(s, now) : model.mayLast(s));
      this.#check(request, legalOf, `after ${after}`);
      const found = versionIn(request.memory.bytes, 0, sector)!;
      if (after === 'kill') model.settleVisible(sector, found);
      else if (after === 'power') model.settle(sector, found);
      this.counts.verified++;
    }
    model.tick();
    model.tick();
  }
}

/** Lives one life; throws where a promise is broken, and says how to live it again. */
export function liveHistory(options: HistoryOptions): History {
  try {
    const history = new History(options);
    const { random } = history;
    history.open(false);
    for (let round = random.between(2, 6); round > 0; round--) {
      history.work(random.between(5, 60));
      if (random.chance(0.2)) {
        history.close();
        history.open(false);
        history.verify('close');
        history.checkImages();
        continue;
      }
      if (random.chance(0.2)) history.drain();
      const kind = random.pick(['power', 'kill'] as const);
      history.crash(kind);
      const powerLost = history.open(kind === 'kill');
      history.verify(powerLost ? 'power' : kind);
      history.checkImages();
    }
    return history;
  } catch (error) {
    throw new Error(`seed ${options.seed}: ${(error as Error).message}`, { cause: error });
  }
}
