/**
 * Several disks in one place under one daemon: the product's own code, from the daemon's snapshots
 * down to node:fs, on a simulated file system; the data plane's transports and threads are all that
 * is left out.
 *
 *     Disk       a leaf, and the model of what each of its sectors may hold
 *     image      frozen: its file never changes by a byte
 *     root       likewise
 *
 * Nothing happens by itself: time goes on in `until` and `work`.
 */
import { Chains } from '../../../src/daemon/chains.ts';
import { handOver } from '../../../src/daemon/hand-over.ts';
import { FileImages } from '../../../src/daemon/images.ts';
import { PlaneLiveLeaves } from '../../../src/daemon/life/live-leaves.ts';
import type {
  ReconcileFiles,
  SnapshotFiles,
  TransportDevice,
} from '../../../src/daemon/machine.ts';
import type { DataPlane } from '../../../src/daemon/plane-client.ts';
import type { TransportSpec } from '../../../src/daemon/plane-protocol.ts';
import { ShadowFiles } from '../../../src/daemon/shadows.ts';
import type { UnionDevice } from '../../../src/engine/union.ts';
import { createLeaf } from '../../../src/leaf/create.ts';
import { lineageOf } from '../../../src/leaf/info.ts';
import { rootParent } from '../leaf-files.ts';
import { Broken, type Content, digest, SECTOR } from '../promise.ts';
import { Random } from '../random.ts';
import { fillSectors, PARENT, SectorModel } from '../sector-model.ts';
import { SimFs } from '../sim-fs.ts';
import { SimIo } from '../sim-io.ts';
import { useSimFs } from '../sim-node-fs.ts';
import { SimPlane } from '../sim-plane.ts';
import { newSlots, type Slot } from '../sim-slots.ts';
import { complete, issueOne, REQUEST_SECTORS_MAX, readDisk } from './requests.ts';

/** Turns in which nothing moves: then what is waited for never comes. */
const IDLE_MAX = 500;

export interface Served {
  id: number;
  union: UnionDevice;
  slots: Slot[];
}

export interface Disk {
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

export class Disks {
  readonly random: Random;
  readonly fs: SimFs;
  readonly rootSectors: number;
  all: Disk[] = [];
  /** Of files that never change: path to digest. */
  readonly #fixed = new Map<string, string>();
  #number = 0;
  /** Of what was written last. */
  version = 0;
  /** How often a request was made, and a sector looked at. */
  requests = 0;
  verified = 0;
  io!: SimIo;
  plane!: SimPlane;
  images!: FileImages;
  live!: PlaneLiveLeaves;

  constructor(seed: number) {
    this.random = new Random(seed);
    this.fs = new SimFs(['r', 'a', 'b']);
    useSimFs(this.fs);
    this.rootSectors = this.random.pick([64, 90, 136]);
    const root = new Uint8Array(this.rootSectors * SECTOR);
    fillSectors(root, 0, PARENT, 0, this.rootSectors);
    this.fs.put('/sim/r/root', root);
    this.begin();
  }

  /** A new daemon. */
  begin(): void {
    const { random, fs } = this;
    this.io = new SimIo(fs, random);
    this.plane = new SimPlane({
      io: this.io,
      fs,
      parts: random.pick([2, 64]),
      onMoment: id => this.noteMoment(id),
    });
    const chains = new Chains(null);
    this.images = new FileImages(chains);
    const plane = this.plane as unknown as DataPlane;
    this.live = new PlaneLiveLeaves(plane, chains, new ShadowFiles('/nonexistent/ubd-shadows'));
  }

  // ── time ─────────────────────────────────────────────────────────────────

  /** Lets time go on until it has ended; meanwhile devices get some more requests. */
  async until<T>(promise: Promise<T>, requests = 0): Promise<T> {
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
      if (left > 0 && this.random.chance(0.5)) left -= issueOne(this) ? 1 : 0;
      if (this.stepDevices()) idle = 0;
      else if (idle > IDLE_MAX) throw new Broken('it never ends');
    }
    // Whoever still goes on meets a dead machine.
    for (let turn = 0; turn < 20 && !ended; turn++) await new Promise(setImmediate);
    throw new Error('the machine is dead');
  }

  stepDevices(): boolean {
    try {
      if (this.random.chance(0.3) && this.plane.step()) return true;
      return this.io.step() || this.plane.step();
    } catch (error) {
      if (!this.fs.dead) throw error;
      return false;
    }
  }

  async work(count: number): Promise<void> {
    for (let issued = 0, idle = 0; issued < count && idle < IDLE_MAX; idle++) {
      if (!this.all.some(({ served }) => served !== null)) return;
      if (this.random.chance(0.6) && issueOne(this)) {
        issued++;
        idle = 0;
      } else if (this.stepDevices()) idle = 0;
    }
    await new Promise(setImmediate);
  }

  drain(): void {
    while (this.stepDevices());
    for (const { served, path } of this.all)
      if (served?.slots.some(({ busy }) => busy)) throw new Broken(`${path}: a request hangs`);
  }

  // ── disks ────────────────────────────────────────────────────────────────

  path(directory: 'a' | 'b' | 'r', what: string): string {
    return `/sim/${directory}/${what}-${++this.#number}`;
  }

  async newDisk(): Promise<void> {
    const { random } = this;
    const path = this.path(random.pick(['a', 'b'] as const), 'leaf');
    const sectors = this.rootSectors + random.pick([0, 0, 24, 4000]);
    // On the first root: of another one the model would have to be known.
    const parent = await rootParent('/sim/r/root');
    createLeaf({ path, sizeBytes: sectors * SECTOR, parent, logBytes: 4096 });
    this.fix('/sim/r/root');
    this.add(path, sectors, this.newModel());
  }

  /** Of a disk on the first root, and on images later. */
  newModel(): SectorModel {
    return new SectorModel(this.rootSectors, true);
  }

  add(path: string, sectors: number, model: SectorModel): Disk {
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
    this.all.push(disk);
    return disk;
  }

  /** A disk that holds what another one held. */
  addCopy(path: string, sectors: number, content: Content): Disk {
    const model = this.newModel();
    for (const [sector, version] of content) model.settle(sector, version);
    return this.add(path, sectors, model);
  }

  drop(disk: Disk): void {
    if (disk.served !== null) return;
    this.fs.remove(disk.path);
    this.forget(disk);
  }

  forget(disk: Disk): void {
    this.all = this.all.filter(one => one !== disk);
  }

  /** Of a disk on which nothing is under way, and everything durable. */
  contentOf({ model }: Disk): Content {
    const now = model.tick();
    return new Map(
      model.touched.map(sector => {
        const [version, ...others] = model.mayRead(sector, now);
        if (others.length > 0) throw new Broken('the model is not settled');
        return [sector, version!];
      }),
    );
  }

  async attach(disk: Disk): Promise<void> {
    disk.served = await this.open(disk);
  }

  async open(disk: Disk): Promise<Served> {
    const leaf = await this.images.openLeaf(disk.path);
    const sectors = leaf.sizeBytes / SECTOR;
    if (sectors < disk.sectorsLeast) throw new Broken(`${disk.path} has shrunk`);
    disk.sectors = sectors;
    this.fix(leaf.root.path);
    const root = await this.images.openRoot(leaf.root.path);
    if (root.identity.fingerprint !== leaf.root.identity.fingerprint)
      throw new Broken(`${disk.path}: ${leaf.root.path} is another root`);
    const id = ++this.#number;
    const device = { id, name: disk.path, sizeBytes: leaf.sizeBytes, readOnly: false, root, leaf };
    const order = handOver(device as TransportDevice, {} as TransportSpec);
    const union = this.plane.open(order);
    const count = this.random.between(1, 4);
    const slots = newSlots(this.io, count, REQUEST_SECTORS_MAX, slot => complete(disk, slot));
    return { id, union, slots };
  }

  async detachSome(): Promise<void> {
    for (const disk of this.all)
      if (disk.served !== null && this.random.chance(0.5)) await this.detach(disk);
  }

  async detach(disk: Disk): Promise<void> {
    this.drain();
    const served = disk.served!;
    const content = await this.until(readDisk(this, disk, served, 'before detach'));
    await this.until(this.plane.close(served.id));
    this.live.gone(served.id);
    disk.served = null;
    if (this.random.chance(0.7)) await this.until(this.images.foldLeaf(disk.path));
    for (const [sector, version] of content) disk.model.settle(sector, version);
    disk.model.tick();
  }

  // ── what they hold ───────────────────────────────────────────────────────

  noteMoment(id: number): void {
    const disk = this.all.find(({ served }) => served?.id === id)!;
    const now = disk.model.tick();
    disk.moment = new Map(
      disk.model.touched.map(sector => [sector, disk.model.mayRead(sector, now)]),
    );
  }

  /** Opens a disk that nobody has, reads it, and closes it: what is found is what it holds. */
  async look(
    disk: Disk,
    sectors: readonly number[],
    mayHold: (sector: number) => number[],
  ): Promise<void> {
    for (const sector of sectors) disk.model.settle(sector, 0); // to be read
    const served = await this.open(disk);
    const content = await this.until(readDisk(this, disk, served, 'at first', mayHold));
    await this.until(this.plane.close(served.id));
    for (const [sector, version] of content) disk.model.settle(sector, version);
  }

  /** A disk that nobody has, and on which nothing is under way, holds what it held. */
  async lookAgain(disk: Disk, when: string): Promise<void> {
    const content = this.contentOf(disk);
    const mayHold = (sector: number): number[] => [
      content.get(sector) ?? (sector < this.rootSectors ? PARENT : 0),
    ];
    const served = await this.open(disk);
    await this.until(readDisk(this, disk, served, when, mayHold));
    await this.until(this.plane.close(served.id));
  }

  fix(path: string): void {
    if (!this.#fixed.has(path)) this.#fixed.set(path, digest(this.fs.content(path)));
  }

  checkFixed(): void {
    for (const [path, before] of this.#fixed) {
      if (!this.fs.has(path)) throw new Broken(`${path} is gone`);
      if (digest(this.fs.content(path)) !== before) throw new Broken(`${path} has changed`);
    }
  }

  /** Nothing is open but what attached devices stand on. */
  checkDescriptors(): void {
    const may = new Set<string>();
    for (const disk of this.all)
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
