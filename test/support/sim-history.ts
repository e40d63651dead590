/**
 * The life of a simulated device that is snapshotted while it is written: requests, snapshots,
 * closes and crashes in any order, and the model that says what each sector may hold.
 *
 * A snapshot does the steps of the daemon, one after the other, while requests go on; a crash may
 * come between any two. Everything follows from the seed; a broken promise throws.
 */

import { alignUp } from '../../src/base/units.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { NO_PARENT } from '../../src/leaf/blank.ts';
import { fileBytesFor, geometryBehind, PAGE_SECTORS, REGION_ALIGN } from '../../src/leaf/format.ts';
import { newFreeze } from '../../src/leaf/freeze.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { parentOf } from '../../src/leaf/lineage.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import type { OpenedLeaf } from '../../src/leaf/opened.ts';
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
import { SectorModel } from './sector-model.ts';
import { PowerLoss } from './sim-disk.ts';
import { SimImages, type Snapshot } from './sim-images.ts';
import { SimIo } from './sim-io.ts';
import { SimLeaves } from './sim-leaves.ts';
import { SimRequests } from './sim-requests.ts';
import { SimShadows } from './sim-shadows.ts';
import { type Step, Steps } from './sim-steps.ts';

const SECTOR = 512;
const LEAF = 'web.leaf';
const NEXT = 'web.next';

export interface HistoryOptions {
  seed: number;
  /** The device outlives the process: a kill loses nothing that was answered. */
  outlives?: boolean;
  /** For mutations: what the daemon might forget. */
  forget?: 'prepare' | 'sync names' | 'flush the old leaf' | 'replay the shadow' | 'rename';
}

export type Counts = Record<
  'requests' | 'snapshots' | 'crashes' | 'recovered' | 'undone' | 'grown' | 'verified',
  number
>;

export class History {
  readonly random: Random;
  readonly #done = {
    snapshots: 0,
    crashes: 0,
    recovered: 0,
    undone: 0,
    grown: 0,
  };
  readonly #options: HistoryOptions;
  #sectors: number;
  /** What a grow was answered for. */
  #sectorsLeast = 0;
  readonly #leaves: SimLeaves;
  readonly #requests: SimRequests;
  readonly #shadows = new SimShadows();
  readonly #images: SimImages;
  #io!: SimIo;
  #leaf!: Leaf;
  #device!: UnionDevice;
  /** Namespace operations under way. */
  #nameOps: (() => void)[] = [];
  /** The snapshot or growing under way. */
  #steps = new Steps();

  constructor(options: HistoryOptions) {
    this.#options = options;
    this.random = new Random(options.seed);
    const { random } = this;
    this.#sectors = random.pick([90, PAGE_SECTORS + 40]);
    const rootSectors = random.pick([this.#sectors, 60]);
    this.#requests = new SimRequests(random, new SectorModel(rootSectors));
    this.#leaves = new SimLeaves(random, rootSectors);
    this.#images = new SimImages(this.#leaves, this.#model);
    this.#leaves.create(LEAF, this.#sectors, NO_PARENT, true);
    this.#leaves.names.sync();
  }

  get counts(): Counts {
    const { issued: requests, verified } = this.#requests;
    return { ...this.#done, requests, verified };
  }

  get #model(): SectorModel {
    return this.#requests.model;
  }

  // ── opening, as a new daemon does ────────────────────────────────────────

  /** @param killed the process died, and nothing else; true if the power fails meanwhile */
  open(killed: boolean): boolean {
    let powerLost = false;
    for (;;) {
      this.#io = new SimIo(this.#leaves.disk, this.random);
      this.#nameOps = [];
      this.#steps = new Steps();
      try {
        this.#tidy();
        this.#openDevice(killed && !powerLost);
        return powerLost;
      } catch (error) {
        if (!(error instanceof PowerLoss)) throw error;
        powerLost = true;
        this.#shadows.clear();
        this.#io.crash('power');
        this.#leaves.names.powerLoss(this.random);
      }
    }
  }

  /** What a dead daemon's record says: a snapshot was under way. */
  #tidy(): void {
    for (const { file, content } of this.#images.all.slice(-1)) {
      if (content !== null) continue;
      if (this.#leaves.names.get(file) === this.#leaves.names.get(LEAF)) {
        loadLeaf(this.#leaves.flaky(LEAF)); // no longer about to be frozen
        this.#leaves.names.remove(file);
      }
      if (this.#leaves.names.get(file) === undefined) {
        this.#images.all.pop();
        this.#done.undone++;
      } else this.#done.recovered++;
    }
    if (this.#leaves.names.get(NEXT) !== undefined) this.#leaves.names.remove(NEXT);
    this.#leaves.names.sync();
  }

  #openDevice(killed: boolean): void {
    const { random } = this;
    const opened = loadLeaf(this.#leaves.flaky(LEAF));
    this.#sectors = opened.superblock.sizeSectors;
    if (this.#sectors < this.#sectorsLeast) throw new Error('the device has shrunk');
    if (killed) this.#shadows.replay(opened, this.#sectors);
    const layers = this.#layersUnder(opened.superblock, killed);
    this.#leaf = this.#serve(opened);
    this.#device = new UnionDevice({
      sizeSectors: this.#sectors,
      layers,
      leaf: this.#leaf,
      parts: new PartPool(random.pick([2, 64])),
      onFault: () => {},
    });
    this.#requests.serveBy(this.#device, this.#io);
  }

  #serve(opened: OpenedLeaf): Leaf {
    const limits = {
      recordExtents: this.random.pick([2, 64]),
      unsyncedBytes: 2 ** 25,
      dirtyPages: 100,
    };
    const { uuid } = opened.superblock;
    const shadow = this.#options.outlives ? this.#shadows.of(uuid) : null;
    return new Leaf(this.#io, opened, limits, shadow);
  }

  /** The chain and the root, as chain.ts opens them. */
  #layersUnder(leaf: Superblock, killed: boolean): Layer[] {
    const replays = killed && this.#options.forget !== 'replay the shadow';
    return this.#leaves.layersUnder(this.#io, leaf, opened => {
      if (replays) this.#shadows.replay(opened, this.#sectors);
    });
  }

  // ── running ──────────────────────────────────────────────────────────────

  /** One operation of those under way. False if there is none. */
  #step(): boolean {
    const { random } = this;
    if (this.#steps.canGoOn && random.chance(0.5)) {
      this.#steps.goOn();
      return true;
    }
    if (this.#nameOps.length > 0 && (this.#io.idle || random.chance(0.3))) {
      this.#nameOps.shift()!();
      return true;
    }
    if (this.#io.step()) return true;
    if (this.#nameOps.length > 0) this.#nameOps.shift()!();
    else if (this.#steps.canGoOn) this.#steps.goOn();
    else return false;
    return true;
  }

  /** Issues requests, several at a time; a snapshot begins somewhere among them. */
  work(count: number): void {
    const begin = this.random.chance(0.7) ? this.random.below(count) : -1;
    const grow = this.random.chance(0.2) ? this.random.below(count) : -1;
    for (let issued = 0; issued < count; ) {
      if (issued === begin && !this.#steps.areUnderWay) this.snapshot();
      if (issued === grow && !this.#steps.areUnderWay) this.grow();
      const slot = this.#requests.free;
      if (slot !== undefined && this.random.chance(0.6)) {
        this.#requests.issue(slot);
        issued++;
      } else if (!this.#step() && slot === undefined) throw new Error('requests hang');
    }
  }

  drain(): void {
    while (this.#step());
    if (this.#requests.underWay) throw new Error('a request never completes');
    if (this.#steps.areUnderWay) throw new Error('a snapshot never ends');
  }

  crash(kind: 'power' | 'kill'): void {
    this.#done.crashes++;
    this.#io.crash(kind);
    if (kind === 'kill') return;
    this.#leaves.names.powerLoss(this.random);
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
    this.#steps.begin(this.#makeLarger());
  }

  /** As `makeRoom` in leaf/grow.ts, and what follows. */
  *#makeLarger(): Step {
    const { random } = this;
    const sectors = this.#sectors + random.pick([1, 30, PAGE_SECTORS]);
    const media = this.#leaves.media(LEAF);
    const file = this.#leaves.disk.file(media.fd);
    const { geometry } = chooseSuperblock(readSuperblockCopies(media), LEAF);
    const dataEnd = geometry.dataOffset + sectors * SECTOR;
    const at = alignUp(Math.max(dataEnd, file.sizeBytes), REGION_ALIGN);
    file.sizeBytes = fileBytesFor(sectors, geometryBehind(sectors, geometry, at));
    const leaf = this.#leaf;
    yield op => leaf.grow(sectors, at, op);
    this.#sectors = sectors;
    this.#sectorsLeast = sectors;
    this.#device.sizeSectors = sectors;
    this.#done.grown++;
  }

  // ── a snapshot ───────────────────────────────────────────────────────────

  snapshot(): void {
    const file = `image-${this.#images.all.length}.leaf`;
    this.#images.begin(file);
    this.#steps.begin(this.#take(file));
  }

  /** The steps of `PlaneLiveLeaves.snapshot`. Each yield waits for an operation. */
  *#take(file: string): Step {
    const { forget } = this.#options;
    const snapshot = this.#images.all.at(-1)!;
    const old = this.#leaf;
    const freeze: Freeze = newFreeze();
    const copies = readSuperblockCopies(this.#leaves.media(LEAF));
    const parent = parentOf(chooseSuperblock(copies, LEAF), freeze, file);
    this.#leaves.create(NEXT, this.#sectors, parent, true);
    this.#leaves.names.link(file, this.#leaves.names.get(LEAF)!);
    this.#leaves.names.sync();
    yield this.#pause();
    if (forget !== 'prepare') yield op => old.amend({ freeze }, op);
    yield op => old.flush(op);
    const next = this.#serve(loadLeaf(this.#leaves.media(NEXT)));
    yield op => this.#succeed(old, next, snapshot, op);
    yield this.#pause();
    yield op => old.seal({ ...freeze, done: true }, op);
    const top = readSuperblockCopies(this.#leaves.media(LEAF));
    const layers = this.#layersUnder(chooseSuperblock(top, LEAF), false);
    yield op => this.#device.change(layers, next, () => this.#nameOps.push(() => op.done(0, 0)));
    this.#images.frozen(snapshot);
    this.#done.snapshots++;
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
          if (forget !== 'rename') this.#leaves.names.rename(NEXT, LEAF);
          renamed.done(0, 0);
        });
      },
      sync: (synced: IoOp): void => {
        this.#nameOps.push(() => {
          if (forget !== 'sync names') this.#leaves.names.sync();
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
    const { file } = this.#images.all.at(-1)!;
    return this.#layersUnder(
      chooseSuperblock(readSuperblockCopies(this.#leaves.media(file)), file),
      false,
    );
  }

  // ── what images hold ─────────────────────────────────────────────────────

  checkImages(): void {
    this.#images.check();
  }

  // ── requests ─────────────────────────────────────────────────────────────

  /** Reads all that was touched, and holds it against the model. */
  verify(after: 'power' | 'kill' | 'close'): void {
    const keeps = after === 'close' || (after === 'kill' && this.#options.outlives === true);
    this.#requests.verify(after, keeps, () => this.#step());
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
