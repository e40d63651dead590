/**
 * Lives of many disks in one place: attached, written, discarded, snapshotted, forked, grown,
 * reconciled, rebased, exported (also in use), sent, received, detached, in any order; and crashes
 * at any step of all that. The product's own code does it, from the daemon's snapshots down to
 * node:fs, on a simulated file system; the data plane's transports and threads are all that is left
 * out.
 *
 *     Disk       a leaf, and the model of what each of its sectors may hold
 *     image      frozen: its file never changes by a byte
 *     root       likewise
 *
 * Everything follows from the seed; a broken promise throws. After a crash a new daemon opens every
 * disk, and reads it; what it finds is what goes on.
 */
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import type { Workshop } from '../../src/daemon/attach.ts';
import { Chains } from '../../src/daemon/chains.ts';
import { handOver } from '../../src/daemon/hand-over.ts';
import { FileImages } from '../../src/daemon/images.ts';
import { forkDevice, forkFile } from '../../src/daemon/life/fork.ts';
import { PlaneLiveLeaves } from '../../src/daemon/life/live-leaves.ts';
import {
  LiveReconciler,
  type ReconcilerRegistry,
  removeLeaving,
  settleReconcile,
} from '../../src/daemon/life/reconcile.ts';
import { takeSnapshot, type Writable } from '../../src/daemon/life/snapshot.ts';
import type { ReconcileFiles, SnapshotFiles, TransportDevice } from '../../src/daemon/machine.ts';
import type { DataPlane } from '../../src/daemon/plane-client.ts';
import type { TransportSpec } from '../../src/daemon/plane-protocol.ts';
import { ShadowFiles } from '../../src/daemon/shadows.ts';
import { OP, Request } from '../../src/engine/request.ts';
import type { UnionDevice } from '../../src/engine/union.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { createLeaf } from '../../src/leaf/create.ts';
import { growLeaf } from '../../src/leaf/grow.ts';
import { lineageOf } from '../../src/leaf/info.ts';
import { isStill, isStillOf, stillPath } from '../../src/leaf/still.ts';
import { abandonSuccessor } from '../../src/leaf/successor.ts';
import { exportLeaf } from '../../src/life/export.ts';
import { rebaseLeaf } from '../../src/life/rebase.ts';
import { receiveLeaf } from '../../src/life/receive.ts';
import { reconcile } from '../../src/life/reconcile.ts';
import { repairLeaf } from '../../src/life/repair.ts';
import { sendLeaf } from '../../src/life/send.ts';
import { rootParent } from './leaf-files.ts';
import { Random } from './random.ts';
import { fillSectors, PARENT, SectorModel, type Version, versionIn } from './sector-model.ts';
import { SimFs, useSimFs } from './sim-fs.ts';
import { SimIo } from './sim-io.ts';
import { SimPlane } from './sim-plane.ts';

const SECTOR = 512;
const REQUEST_SECTORS_MAX = 48;
const DISKS_MAX = 6;
/** Turns in which nothing moves: then what is waited for never comes. */
const IDLE_MAX = 500;

interface Slot {
  request: Request;
  busy: boolean;
  submit: number;
  versions: Version[];
}

interface Served {
  id: number;
  union: UnionDevice;
  slots: Slot[];
}

interface Disk {
  path: string;
  model: SectorModel;
  sectors: number;
  /** What a grow was answered for. */
  sectorsLeast: number;
  served: Served | null;
  /** The daemon's durable record of a snapshot under way. */
  snapshot: SnapshotFiles | null;
  /** The same of a new root that is made of it, and of stills that go. */
  reconcile: ReconcileFiles | null;
  leaving: string[] | null;
  /** What it may hold as of the moment of the last snapshot. */
  moment: Map<number, number[]> | null;
}

/** Sector to version: what a disk held at a moment when nothing was under way. */
type Content = Map<number, number>;

const OFFLINE = ['fork', 'reconcile', 'rebase', 'export', 'send', 'grow', 'check'] as const;
const LIVE = ['snapshot', 'still', 'fork device', 'grow device', 'reconcile device'] as const;
type Operation = (typeof OFFLINE)[number] | (typeof LIVE)[number];

export type Counts = Record<
  Operation | 'requests' | 'power' | 'kill' | 'cut off' | 'verified',
  number
>;

/** A broken promise, and not what an operation may refuse. */
class Broken extends Error {}

export class MixedHistory {
  readonly random: Random;
  readonly fs: SimFs;
  readonly counts: Counts = {
    ...(Object.fromEntries([...OFFLINE, ...LIVE].map(name => [name, 0])) as Record<
      Operation,
      number
    >),
    requests: 0,
    power: 0,
    kill: 0,
    'cut off': 0,
    verified: 0,
  };
  readonly #rootSectors: number;
  #disks: Disk[] = [];
  /** Of files that never change: path to digest. */
  readonly #fixed = new Map<string, string>();
  #number = 0;
  #version = 0;
  #io!: SimIo;
  #plane!: SimPlane;
  #images!: FileImages;
  #live!: PlaneLiveLeaves;

  constructor(seed: number) {
    this.random = new Random(seed);
    this.fs = new SimFs(['r', 'a', 'b']);
    useSimFs(this.fs);
    this.#rootSectors = this.random.pick([64, 90, 136]);
    const root = new Uint8Array(this.#rootSectors * SECTOR);
    fillSectors(root, 0, PARENT, 0, this.#rootSectors);
    this.fs.put('/sim/r/root', root);
    this.#begin();
  }

  /** A new daemon. */
  #begin(): void {
    const { random, fs } = this;
    this.#io = new SimIo(fs, random);
    this.#plane = new SimPlane({
      io: this.#io,
      fs,
      parts: random.pick([2, 64]),
      onMoment: id => this.#noteMoment(id),
    });
    const chains = new Chains(null);
    this.#images = new FileImages(chains);
    const plane = this.#plane as unknown as DataPlane;
    this.#live = new PlaneLiveLeaves(plane, chains, new ShadowFiles('/nonexistent/ubd-shadows'));
  }

  async live(): Promise<void> {
    await this.#newDisk();
    for (let round = this.random.between(4, 12); round > 0; round--) {
      await this.#round();
      this.#checkFixed();
    }
    await this.#end();
  }

  // ── a round ──────────────────────────────────────────────────────────────

  async #round(): Promise<void> {
    const { random } = this;
    if (this.#disks.length < 2 || random.chance(0.15)) await this.#newDisk();
    while (this.#disks.length > DISKS_MAX) this.#drop(random.pick(this.#disks));
    for (const disk of this.#disks)
      if (disk.served === null && random.chance(0.6)) await this.#attach(disk);
    await this.#work(random.between(0, 40));
    const operation = random.pick([...OFFLINE, ...LIVE]);
    const action = this.#actionOf(operation);
    if (action !== null) {
      // Cut off at one of its steps, or by chance while others are served.
      if (random.chance(0.4)) this.fs.stepsLeft = random.below(random.pick([4, 30, 120]));
      await this.#attempt(operation, action);
      this.fs.stepsLeft = Number.POSITIVE_INFINITY;
    }
    if (!this.fs.dead) {
      await this.#work(random.between(0, 20));
      if (random.chance(0.25)) this.fs.die();
      else if (random.chance(0.5)) await this.#detachSome();
    }
    if (this.fs.dead) await this.#crash();
    else this.#checkDescriptors();
  }

  /** What is to be done, and what is to hold afterwards; null where it cannot be done now. */
  #actionOf(operation: Operation): (() => Promise<() => Promise<void>>) | null {
    const { random } = this;
    const idle = this.#disks.filter(({ served }) => served === null);
    const served = this.#disks.filter(disk => disk.served !== null);
    const isLive = (LIVE as readonly string[]).includes(operation);
    const among = isLive ? served : idle;
    if (among.length === 0) return null;
    const disk = random.pick(among);
    switch (operation) {
      case 'fork':
        return () => this.#fork(disk);
      case 'reconcile':
        return () => this.#reconcile(disk, idle);
      case 'rebase':
        return () => this.#rebase(disk);
      case 'still':
        return () => this.#still(disk);
      case 'export':
        return () => this.#export(disk);
      case 'send':
        return () => this.#send(disk);
      case 'grow':
        return () => this.#grow(disk);
      case 'check':
        return () => this.#check(disk);
      case 'snapshot':
        return () => this.#snapshot(disk);
      case 'fork device':
        return () => this.#forkDevice(disk);
      case 'grow device':
        return () => this.#growDevice(disk);
      case 'reconcile device':
        return () => this.#reconcileDevice(disk);
    }
  }

  async #attempt(operation: Operation, action: () => Promise<() => Promise<void>>): Promise<void> {
    let then: () => Promise<void>;
    try {
      then = await this.#until(action(), this.random.pick([0, 0, 10, 60]));
    } catch (error) {
      if (!this.fs.dead)
        throw new Broken(`${operation}: ${(error as Error).message}`, { cause: error });
      this.counts['cut off']++;
      return;
    }
    this.counts[operation]++;
    this.fs.stepsLeft = Number.POSITIVE_INFINITY;
    await then();
  }

  // ── time ─────────────────────────────────────────────────────────────────

  /** Lets time go on until it has ended; meanwhile devices get some more requests. */
  async #until<T>(promise: Promise<T>, requests = 0): Promise<T> {
    let ended = false;
    const end = (): void => {
      ended = true;
    };
    promise.then(end, end);
    let left = requests;
    for (let idle = 0; ; idle++) {
      await new Promise(setImmediate);
      if (ended) return promise;
      if (this.fs.dead) break;
      if (left > 0 && this.random.chance(0.5)) left -= this.#issueOne() ? 1 : 0;
      if (this.#stepDevices()) idle = 0;
      else if (idle > IDLE_MAX) throw new Broken('it never ends');
    }
    // Whoever still goes on meets a dead machine.
    for (let turn = 0; turn < 20 && !ended; turn++) await new Promise(setImmediate);
    throw new Error('the machine is dead');
  }

  #stepDevices(): boolean {
    try {
      if (this.random.chance(0.3) && this.#plane.step()) return true;
      return this.#io.step() || this.#plane.step();
    } catch (error) {
      if (!this.fs.dead) throw error;
      return false;
    }
  }

  async #work(count: number): Promise<void> {
    for (let issued = 0, idle = 0; issued < count && idle < IDLE_MAX; idle++) {
      if (!this.#disks.some(({ served }) => served !== null)) return;
      if (this.random.chance(0.6) && this.#issueOne()) {
        issued++;
        idle = 0;
      } else if (this.#stepDevices()) idle = 0;
    }
    await new Promise(setImmediate);
  }

  #drain(): void {
    while (this.#stepDevices());
    for (const { served, path } of this.#disks)
      if (served?.slots.some(({ busy }) => busy)) throw new Broken(`${path}: a request hangs`);
  }

  // ── disks ────────────────────────────────────────────────────────────────

  #path(directory: 'a' | 'b' | 'r', what: string): string {
    return `/sim/${directory}/${what}-${++this.#number}`;
  }

  async #newDisk(): Promise<void> {
    const { random } = this;
    const path = this.#path(random.pick(['a', 'b'] as const), 'leaf');
    const sectors = this.#rootSectors + random.pick([0, 0, 24, 4000]);
    // On the first root: of another one the model would have to be known.
    const parent = await rootParent('/sim/r/root');
    createLeaf({ path, sizeBytes: sectors * SECTOR, parent, logBytes: 4096 });
    this.#fix('/sim/r/root');
    this.#add(path, sectors, new SectorModel(this.#rootSectors));
  }

  #add(path: string, sectors: number, model: SectorModel): Disk {
    const disk: Disk = {
      path,
      model,
      sectors,
      sectorsLeast: sectors,
      served: null,
      snapshot: null,
      reconcile: null,
      leaving: null,
      moment: null,
    };
    this.#disks.push(disk);
    return disk;
  }

  /** A disk that holds what another one held. */
  #addCopy(path: string, sectors: number, content: Content): Disk {
    const model = new SectorModel(this.#rootSectors);
    for (const [sector, version] of content) model.settle(sector, version);
    return this.#add(path, sectors, model);
  }

  #drop(disk: Disk): void {
    if (disk.served !== null) return;
    this.fs.remove(disk.path);
    this.#forget(disk);
  }

  #forget(disk: Disk): void {
    this.#disks = this.#disks.filter(one => one !== disk);
  }

  /** Of a disk on which nothing is under way, and everything durable. */
  #contentOf({ model }: Disk): Content {
    const now = model.tick();
    return new Map(
      model.touched.map(sector => {
        const [version, ...others] = model.mayRead(sector, now);
        if (others.length > 0) throw new Broken('the model is not settled');
        return [sector, version!];
      }),
    );
  }

  async #attach(disk: Disk): Promise<void> {
    disk.served = await this.#open(disk);
  }

  async #open(disk: Disk): Promise<Served> {
    const leaf = await this.#images.openLeaf(disk.path);
    const sectors = leaf.sizeBytes / SECTOR;
    if (sectors < disk.sectorsLeast) throw new Broken(`${disk.path} has shrunk`);
    disk.sectors = sectors;
    this.#fix(leaf.root.path);
    const root = await this.#images.openRoot(leaf.root.path);
    if (root.identity.fingerprint !== leaf.root.identity.fingerprint)
      throw new Broken(`${disk.path}: ${leaf.root.path} is another root`);
    const id = ++this.#number;
    const device = { id, name: disk.path, sizeBytes: leaf.sizeBytes, readOnly: false, root, leaf };
    const order = handOver(device as TransportDevice, {} as TransportSpec);
    const union = this.#plane.open(order);
    const slots = Array.from({ length: this.random.between(1, 4) }, () => {
      const slot: Slot = { request: null!, busy: false, submit: 0, versions: [] };
      const completer = { complete: () => this.#complete(disk, slot) };
      const memory = this.#io.allocate(REQUEST_SECTORS_MAX * SECTOR);
      slot.request = new Request(completer, memory);
      return slot;
    });
    return { id, union, slots };
  }

  async #detachSome(): Promise<void> {
    for (const disk of this.#disks)
      if (disk.served !== null && this.random.chance(0.5)) await this.#detach(disk);
  }

  async #detach(disk: Disk): Promise<void> {
    this.#drain();
    const served = disk.served!;
    const content = await this.#until(this.#read(disk, served, 'before detach'));
    await this.#until(this.#plane.close(served.id));
    this.#live.gone(served.id);
    disk.served = null;
    if (this.random.chance(0.7)) await this.#until(this.#images.foldLeaf(disk.path));
    for (const [sector, version] of content) disk.model.settle(sector, version);
    disk.model.tick();
  }

  // ── requests ─────────────────────────────────────────────────────────────

  #issueOne(): boolean {
    const { random } = this;
    const disks = this.#disks.filter(({ served }) => served?.slots.some(({ busy }) => !busy));
    if (disks.length === 0) return false;
    const disk = random.pick(disks);
    const slot = disk.served!.slots.find(({ busy }) => !busy)!;
    const { request } = slot;
    const { model } = disk;
    const sectors = disk.served!.union.sizeSectors;
    const kind = random.below(100);
    request.fua = kind < 5;
    request.keepSpace = random.chance(0.3);
    request.start = 0;
    request.sector = random.pick([0, 20, 40, sectors - 40]) + random.below(20);
    request.count = random.between(1, random.pick([4, 24]));
    request.count = Math.min(request.count, sectors - request.sector);
    slot.versions = [];
    const { sector, count } = request;
    if (kind < 45) {
      request.op = OP.WRITE;
      const version = ++this.#version;
      fillSectors(request.memory.bytes, 0, version, sector, count);
      slot.versions = [model.begin(version, sector, count)];
    } else if (kind < 70) {
      request.op = OP.READ;
      request.memory.bytes.fill(0xee, 0, count * SECTOR);
    } else if (kind < 82) {
      request.op = OP.FLUSH;
      request.fua = false;
      request.sector = 0;
      request.count = 0;
    } else if (kind < 92) {
      request.op = OP.WRITE_ZEROES;
      slot.versions = [model.begin(0, sector, count)];
    } else {
      // What it leaves is the old content or zeroes: it ends nothing.
      request.op = OP.DISCARD;
      request.fua = false;
      slot.versions = [model.begin(0, sector, count)];
      slot.versions[0]!.supersedes = false;
    }
    slot.busy = true;
    slot.submit = model.tick();
    this.counts.requests++;
    disk.served!.union.submit(request);
    return true;
  }

  #complete({ model, path }: Disk, slot: Slot): void {
    const { request, versions, submit } = slot;
    slot.busy = false;
    if (request.result < 0) throw new Broken(`${path}: op ${request.op}: ${request.result}`);
    if (request.op === OP.FLUSH) model.flushed(submit);
    else if (request.op === OP.READ) {
      model.tick();
      const legal = (sector: number): number[] => model.mayRead(sector, submit);
      for (let i = 0; i < request.count; i++)
        versionAt(request.memory.bytes, i, request.sector + i, legal, `${path}: a read`);
    } else
      for (const version of versions) {
        const { supersedes } = version;
        model.end(version, request.result, request.fua);
        version.supersedes = supersedes;
      }
  }

  /** Reads all that was touched, and some that was not; what each sector holds. */
  async #read(
    disk: Disk,
    { union }: Served,
    when: string,
    mayHold?: (sector: number) => number[],
  ): Promise<Content> {
    const { model, path } = disk;
    const content: Content = new Map();
    model.tick();
    const now = model.tick();
    const legal = mayHold ?? ((sector: number): number[] => model.mayRead(sector, now));
    const sectors = new Set(model.touched);
    for (let i = 0; i < 8; i++) sectors.add(this.random.below(union.sizeSectors));
    let done: (() => void) | null = null;
    const complete = (): void => done!();
    const request = new Request({ complete }, this.#io.allocate(SECTOR));
    for (const sector of sectors) {
      request.sector = sector;
      request.count = 1;
      await new Promise<void>(resolve => {
        done = resolve;
        union.submit(request);
      });
      if (request.result < 0) throw new Broken(`${path} ${when}: ${request.result}`);
      content.set(sector, versionAt(request.memory.bytes, 0, sector, legal, `${path} ${when}`));
      this.counts.verified++;
    }
    return content;
  }

  // ── live operations ──────────────────────────────────────────────────────

  #entry(disk: Disk): Writable {
    const { fs } = this;
    return {
      id: disk.served!.id,
      name: disk.path,
      node: '/dev/null',
      link: 0,
      leaf: { path: disk.path, ephemeral: false },
      transport: { name: 'loop' },
      root: '',
      identity: null,
      sizeBytes: disk.sectors * SECTOR,
      attachedAt: 0,
      readOnly: false,
      get snapshot(): SnapshotFiles | null {
        return disk.snapshot;
      },
      set snapshot(files: SnapshotFiles | null) {
        if (!fs.dead) disk.snapshot = files; // the record is durable when that is answered
      },
      get reconcile(): ReconcileFiles | null {
        return disk.reconcile;
      },
      set reconcile(files: ReconcileFiles | null) {
        if (!fs.dead) disk.reconcile = files;
      },
      get leaving(): string[] | null {
        return disk.leaving;
      },
      set leaving(files: string[] | null) {
        if (!fs.dead) disk.leaving = files;
      },
      state: 'attached',
    } as unknown as Writable;
  }

  get #shop(): Workshop {
    const log = { info: () => {}, warning: () => {} };
    const checkGoingOn = (): void => {};
    const records = { write: async () => {} };
    return { records, log, checkGoingOn, images: this.#images } as unknown as Workshop;
  }

  #noteMoment(id: number): void {
    const disk = this.#disks.find(({ served }) => served?.id === id)!;
    const now = disk.model.tick();
    disk.moment = new Map(
      disk.model.touched.map(sector => [sector, disk.model.mayRead(sector, now)]),
    );
  }

  async #snapshot(disk: Disk): Promise<() => Promise<void>> {
    const file = this.#path(this.random.pick(['a', 'b'] as const), 'image');
    await takeSnapshot(this.#shop, this.#live, this.#entry(disk), { file, freeze: false });
    return async () => this.#fix(file);
  }

  /** Exports of a disk in use; stills that stand on each other become one. */
  async #still(disk: Disk): Promise<() => Promise<void>> {
    for (let count = this.random.between(1, 4); count > 0; count--) await this.#exportLive(disk);
    return async () => {};
  }

  async #exportLive(disk: Disk): Promise<void> {
    const file = stillPath(disk.path);
    const entry = this.#entry(disk);
    await takeSnapshot(this.#shop, this.#live, entry, { file, freeze: false });
    const moment = disk.moment!;
    const target = this.#path('a', 'export');
    await exportLeaf({ leaf: file, target });
    const bytes = this.fs.content(target);
    this.fs.remove(target);
    for (const [sector, legal] of moment)
      versionAt(bytes, sector, sector, () => legal, `${disk.path}: exported in use`);
    const { id, name, leaf } = entry;
    const left = await this.#live.fold({ id, name, leaf, outlives: false }, async files => {
      entry.leaving = files;
    });
    if (left > 1) throw new Broken(`${disk.path} stands on ${left} stills`);
  }

  async #forkDevice(disk: Disk): Promise<() => Promise<void>> {
    const leaves = [1, 2].map(() => this.#path('b', 'fork'));
    const stay = disk.sectors;
    const spec = { source: disk.path, leaves, freeze: false };
    const fork = await forkDevice(this.#shop, this.#live, this.#entry(disk), spec, 1);
    const legal = disk.moment!;
    return async () => {
      this.#fix(fork.parent);
      for (const path of leaves) {
        const copy = this.#add(path, stay, new SectorModel(this.#rootSectors));
        const mayHold = (sector: number): number[] =>
          legal.get(sector) ?? copy.model.mayRead(sector, copy.model.tick());
        await this.#look(copy, [...legal.keys()], mayHold);
      }
    };
  }

  /** Opens a disk that nobody has, reads it, and closes it: what is found is what it holds. */
  async #look(
    disk: Disk,
    sectors: readonly number[],
    mayHold: (sector: number) => number[],
  ): Promise<void> {
    for (const sector of sectors) disk.model.settle(sector, 0); // to be read
    const served = await this.#open(disk);
    const content = await this.#until(this.#read(disk, served, 'at first', mayHold));
    await this.#until(this.#plane.close(served.id));
    for (const [sector, version] of content) disk.model.settle(sector, version);
  }

  /** A disk that nobody has, and on which nothing is under way, holds what it held. */
  async #lookAgain(disk: Disk, when: string): Promise<void> {
    const content = this.#contentOf(disk);
    const mayHold = (sector: number): number[] => [
      content.get(sector) ?? (sector < this.#rootSectors ? PARENT : 0),
    ];
    const served = await this.#open(disk);
    await this.#until(this.#read(disk, served, when, mayHold));
    await this.#until(this.#plane.close(served.id));
  }

  async #growDevice(disk: Disk): Promise<() => Promise<void>> {
    const sectors = disk.sectors + this.random.pick([8, 30, 4000]);
    const { id, name, leaf } = this.#entry(disk);
    await this.#live.grow({ id, name, leaf, outlives: false }, sectors * SECTOR);
    disk.sectors = sectors;
    disk.sectorsLeast = sectors;
    return async () => {};
  }

  /** All that it holds becomes a new root, while it is used. */
  async #reconcileDevice(disk: Disk): Promise<() => Promise<void>> {
    const entry = this.#entry(disk);
    const registry: ReconcilerRegistry = {
      work: (_target, _what, action) => action(entry, this.#shop),
      track: action => action(),
      entries: [entry],
    };
    const output = this.#path(this.random.pick(['a', 'r'] as const), 'root');
    await new LiveReconciler(registry, this.#live).run(disk.path, { output, freeze: false });
    const { images, base } = lineageOf(disk.path);
    if (images.length > 0 || base!.path !== output)
      throw new Broken(`${disk.path} stands on ${images.length} images and ${base!.path}`);
    return async () => this.#fix(output);
  }

  // ── offline operations ───────────────────────────────────────────────────

  async #fork(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#contentOf(disk);
    const leaves = [1, 2].map(() => this.#path('b', 'fork'));
    this.#expect(leaves, disk.sectors, content);
    const { parent } = await forkFile(disk.path, { source: disk.path, leaves });
    return async () => {
      this.#expected.clear();
      for (const path of leaves) this.#addCopy(path, disk.sectors, content);
      if (parent.includes('frozen')) this.#fix(parent);
    };
  }

  async #reconcile(disk: Disk, idle: readonly Disk[]): Promise<() => Promise<void>> {
    const { random } = this;
    const rootOf = ({ path }: Disk): string => lineageOf(path).base!.path;
    const root = rootOf(disk);
    const members = idle.filter(
      one => one === disk || (random.chance(0.7) && rootOf(one) === root),
    );
    for (const { path } of members) this.#letStay(path);
    const output = this.#path('r', 'root');
    const minShare = random.chance(0.5) ? { minShare: 1 + random.below(members.length) } : {};
    await reconcile({ leaves: members.map(({ path }) => path), output, ...minShare });
    for (const member of members)
      if (rootOf(member) !== output) throw new Broken(`${member.path} stands on ${rootOf(member)}`);
    return async () => {
      this.#fix(output);
      for (const member of members) await this.#lookAgain(member, 'reconciled');
    };
  }

  #letStay(path: string): void {
    for (const image of lineageOf(path).images) this.#mayStay.add(image.path);
  }

  /** To a root of the same content that is another one: longer. */
  async #rebase(disk: Disk): Promise<() => Promise<void>> {
    const old = this.fs.content(lineageOf(disk.path).base!.path);
    const root = this.#path('r', 'refreshed');
    const bytes = new Uint8Array(old.length + SECTOR * this.random.between(1, 9));
    bytes.set(old);
    this.fs.put(root, bytes);
    this.#letStay(disk.path);
    const { way } = await rebaseLeaf({ leaf: disk.path, root });
    if (way !== 'fast-forward' && way !== 'disjoint') throw new Broken(`${disk.path}: ${way}`);
    disk.sectors = Math.max(disk.sectors, bytes.length / SECTOR);
    disk.sectorsLeast = disk.sectors;
    return async () => {
      this.#fix(root);
      await this.#lookAgain(disk, 'rebased');
    };
  }

  async #export(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#contentOf(disk);
    const target = this.#path('a', 'export');
    this.#expectedImages.set(target, { sectors: disk.sectors, content });
    await exportLeaf({ leaf: disk.path, target, digest: true });
    return async () => this.#checkImages(true);
  }

  async #send(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#contentOf(disk);
    const stream = this.#path('a', 'stream');
    const leaf = this.#path('b', 'received');
    this.#expect([leaf], disk.sectors, content);
    const { images } = lineageOf(disk.path);
    const lasting = images.map(({ path }) => path).filter(path => !isStill(path));
    const since = this.random.pick([undefined, ...lasting]);
    await sendLeaf({ leaf: disk.path, target: stream, ...(since && { since }) });
    const base = since ?? lineageOf(disk.path).base!.path;
    await receiveLeaf({ source: stream, leaf, base });
    return async () => {
      this.#expected.clear();
      this.fs.remove(stream);
      this.#addCopy(leaf, disk.sectors, content);
    };
  }

  async #grow(disk: Disk): Promise<() => Promise<void>> {
    const sectors = disk.sectors + this.random.pick([8, 30, 4000]);
    growLeaf(disk.path, sectors * SECTOR);
    disk.sectors = sectors;
    disk.sectorsLeast = sectors;
    return async () => {};
  }

  async #check(disk: Disk): Promise<() => Promise<void>> {
    const { findings } = checkLeaf(disk.path, { readData: true });
    const damage = findings.filter(({ severity }) => severity === 'damage');
    if (damage.length > 0) throw new Broken(`${disk.path}: ${JSON.stringify(damage)}`);
    const { items } = await repairLeaf({ leaf: disk.path });
    // A superblock that was torn is written anew when its turn comes: the other one counts.
    if (items.some(({ kind }) => kind !== 'proved'))
      throw new Broken(`${disk.path}: repaired ${JSON.stringify(items)}`);
    return async () => {};
  }

  // ── what an operation that was cut off may have left ─────────────────────

  readonly #expected = new Map<string, { sectors: number; content: Content }>();
  readonly #expectedImages = new Map<string, { sectors: number; content: Content }>();

  #expect(paths: readonly string[], sectors: number, content: Content): void {
    for (const path of paths) this.#expected.set(path, { sectors, content });
  }

  /** An image that has its name is whole. */
  #checkImages(must: boolean): void {
    for (const [path, { sectors, content }] of this.#expectedImages) {
      if (!this.fs.has(path)) {
        if (must) throw new Broken(`${path} is missing`);
        continue;
      }
      const bytes = this.fs.content(path);
      if (bytes.length !== sectors * SECTOR) throw new Broken(`${path}: ${bytes.length} bytes`);
      for (let sector = 0; sector < sectors; sector++) {
        const untouched = sector < this.#rootSectors ? PARENT : 0;
        versionAt(bytes, sector, sector, () => [content.get(sector) ?? untouched], path);
      }
      this.fs.remove(path);
    }
    this.#expectedImages.clear();
  }

  // ── the end of a daemon ──────────────────────────────────────────────────

  async #crash(): Promise<void> {
    const { random, fs } = this;
    let kind = random.pick(['power', 'kill'] as const);
    this.counts[kind]++;
    for (let attempt = 0; ; attempt++) {
      this.#io.crash(kind);
      fs.restart(kind === 'power' ? random : undefined);
      for (const disk of this.#disks) disk.served = null;
      this.#begin();
      // The next one may die as well, while it puts things right.
      if (attempt < 3 && random.chance(0.3)) fs.stepsLeft = random.below(20);
      try {
        await this.#recover(kind);
        break;
      } catch (error) {
        if (!fs.dead) throw error;
        kind = random.pick([kind, 'power'] as const);
      }
    }
    fs.stepsLeft = Number.POSITIVE_INFINITY;
  }

  async #recover(kind: 'power' | 'kill'): Promise<void> {
    this.#checkImages(false);
    for (const disk of this.#disks) {
      const { snapshot, path } = disk;
      if (snapshot !== null)
        abandonSuccessor({ leafPath: path, file: snapshot.file, path: snapshot.successor });
      disk.snapshot = null;
      this.#tidy(disk);
    }
    for (const disk of this.#disks) {
      const { model } = disk;
      const served = await this.#open(disk);
      const mayLast = (sector: number): number[] => model.mayLast(sector);
      const content = await this.#until(this.#read(disk, served, `after ${kind}`, mayLast));
      for (const [sector, version] of content)
        if (kind === 'kill') model.settleVisible(sector, version);
        else model.settle(sector, version);
      await this.#until(this.#plane.close(served.id));
      for (const [sector, version] of content) model.settle(sector, version);
      model.tick();
    }
    for (const [path, { sectors, content }] of this.#expected)
      if (this.fs.has(path)) {
        const disk = this.#addCopy(path, sectors, content);
        await this.#lookAgain(disk, 'half-made').finally(() => this.#forget(disk));
        // Its name need not be durable: nobody was told that it is there.
        this.fs.remove(path);
      }
    this.#expected.clear();
  }

  /** Stills under leaves that others were to take the place of: a crash may leave them. */
  readonly #mayStay = new Set<string>();

  /** What a new daemon does for a device on record; then nothing is left that nobody needs. */
  #tidy(disk: Disk): void {
    const { path, reconcile: files, leaving } = disk;
    if (files !== null) {
      const moved = settleReconcile(path, files);
      if ((moved === null) === (lineageOf(path).base!.path === files.output))
        throw new Broken(`${path} does not stand on ${moved}`);
    }
    removeLeaving(path, leaving ?? []);
    disk.reconcile = null;
    disk.leaving = null;
    const needed = new Set(lineageOf(path).images.map(image => image.path));
    for (const name of this.fs.readdir(dirname(path))) {
      const file = join(dirname(path), name);
      if (isStillOf(path, file) && !needed.has(file) && !this.#mayStay.has(file))
        throw new Broken(`${file} is of no use`);
    }
    for (const directory of ['a', 'r'])
      for (const name of this.fs.readdir(`/sim/${directory}`))
        if (files !== null && name.includes('.ubd-root-')) throw new Broken(`${name} is left`);
  }

  async #end(): Promise<void> {
    for (const disk of this.#disks) if (disk.served !== null) await this.#detach(disk);
    for (const disk of this.#disks) {
      await this.#lookAgain(disk, 'at the end');
      await this.#check(disk);
    }
    this.#checkFixed();
    this.#checkDescriptors();
  }

  // ── what never changes ───────────────────────────────────────────────────

  #fix(path: string): void {
    if (!this.#fixed.has(path)) this.#fixed.set(path, digest(this.fs.content(path)));
  }

  #checkFixed(): void {
    for (const [path, before] of this.#fixed) {
      if (!this.fs.has(path)) throw new Broken(`${path} is gone`);
      if (digest(this.fs.content(path)) !== before) throw new Broken(`${path} has changed`);
    }
  }

  /** Nothing is open but what attached devices stand on. */
  #checkDescriptors(): void {
    const may = new Set<string>();
    for (const disk of this.#disks)
      if (disk.served !== null) {
        may.add(disk.path);
        const { images, base } = lineageOf(disk.path);
        for (const { path } of images) may.add(path);
        may.add(base!.path);
      }
    // A still that became an image may have both names after a crash.
    const known = (path: string): boolean =>
      may.has(path) || [...may].some(one => this.fs.isSame(one, path));
    const left = this.fs.openFiles.filter(path => !known(path));
    if (left.length > 0) throw new Broken(`left open: ${left.join(', ')}`);
  }
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function versionAt(
  bytes: Uint8Array,
  index: number,
  sector: number,
  legalOf: (sector: number) => number[],
  where: string,
): number {
  const found = versionIn(bytes, index * SECTOR, sector);
  const legal = legalOf(sector);
  if (found === undefined || !legal.includes(found))
    throw new Broken(
      `${where}: sector ${sector} holds ${found ?? 'garbage'}; legal: ${legal.join(', ')}`,
    );
  return found;
}

/** Lives one life; throws where a promise is broken, and says how to live it again. */
export async function liveMixedHistory(seed: number): Promise<MixedHistory> {
  const history = new MixedHistory(seed);
  try {
    await history.live();
    return history;
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error });
  }
}
