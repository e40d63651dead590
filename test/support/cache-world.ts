/**
 * A cache over simulated roots: several contents, several devices on each, random reads (many at a
 * time, some that take loans), faults of the media, and whatever an administrator may do meanwhile.
 * Every byte that comes back is held against what the content has there; after each act the cache's
 * own books are checked.
 *
 * Everything follows from the seed. What is wrong throws.
 */
import { EIO } from '../../src/base/errno.ts';
import { Cache } from '../../src/cache/cache.ts';
import { CachedLayer, type Tuning } from '../../src/cache/cached-layer.ts';
import { CHUNK_BLOCKS } from '../../src/cache/chunks.ts';
import { Fetch } from '../../src/cache/fetch.ts';
import type { PolicyName } from '../../src/cache/policy.ts';
import { EXTENT_BYTES, EXTENT_FRAMES, FRAME_BYTES } from '../../src/cache/slab.ts';
import { OP, Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { Loan } from '../../src/store/loan.ts';
import { Random } from './random.ts';
import { fillSectors, versionIn } from './sector-model.ts';
import { SimDisk } from './sim-disk.ts';
import { SimIo } from './sim-io.ts';
import { SimMemories } from './sim-memory.ts';
import { ScatteringSimRoot, SimRoot } from './sim-root.ts';
import { SimSlabIo } from './sim-slab.ts';

const SECTOR = 512;
const REQUEST_SECTORS_MAX = 2048;

/** A root: by which descriptors it is read, and what it holds. */
export interface SimContent {
  version: number;
  sectors: number;
  /** Of fills, and of reads past the cache. */
  sourceFd: number;
  plainFd: number;
  /** Sectors that cannot be read. */
  bad: Set<number>;
  lasting: boolean;
}

export interface SimDevice {
  content: SimContent;
  layer: CachedLayer;
  union: UnionDevice;
  closing: boolean;
}

interface Slot {
  request: Request;
  device: SimDevice | null;
  /** Set when a loan is being "sent". */
  sending: boolean;
}

export interface CacheWorldOptions {
  seed: number;
  policy: PolicyName;
  capacityBytes: number;
  /** Media with bad sectors, and reads that fail once. */
  faults: boolean;
}

export class CacheWorld {
  readonly random: Random;
  readonly disk: SimDisk = new SimDisk();
  readonly io: SimIo;
  readonly slabIo: SimSlabIo;
  readonly cache: Cache;
  readonly contents: SimContent[] = [];
  readonly devices: SimDevice[] = [];
  readonly #slots: Slot[] = [];
  readonly #faults: boolean;
  readonly #parts = new PartPool(20);
  #contentOf = new Map<number, SimContent>();
  fetches = 0;
  readonly counts = { reads: 0, failed: 0, lent: 0, copied: 0, resizes: 0, drops: 0, fetches: 0 };

  constructor({ seed, policy, capacityBytes, faults }: CacheWorldOptions) {
    this.random = new Random(seed);
    const memories = new SimMemories();
    this.io = new SimIo(this.disk, this.random, memories);
    this.slabIo = new SimSlabIo(this.random, memories);
    if (this.random.chance(0.1)) this.slabIo.errno = EIO;
    this.#faults = faults;
    this.cache = new Cache({ io: this.slabIo, capacityBytes, policy });
    this.io.fault = ({ fd, position, length }) => {
      const content = this.#contentOf.get(fd)!;
      const end = (position + length) / SECTOR;
      for (let sector = position / SECTOR; sector < end; sector++)
        if (content.bad.has(sector)) return -EIO;
      // A fill may fail where another try succeeds: nobody but the counters notices.
      return faults && fd === content.sourceFd && this.random.chance(0.05) ? -EIO : 0;
    };
    for (let i = 0; i < 12; i++) {
      const memory = this.io.allocate(REQUEST_SECTORS_MAX * SECTOR);
      const slot: Slot = { request: null!, device: null, sending: false };
      slot.request = new Request({ complete: () => this.#complete(slot) }, memory);
      if (i % 2 === 0) slot.request.loan = new Loan();
      this.#slots.push(slot);
    }
  }

  addContent(sectors: number, lasting = true): SimContent {
    const version = this.contents.length + 1;
    const fds = [this.disk.add(sectors * SECTOR), this.disk.add(sectors * SECTOR)] as const;
    for (const fd of fds)
      this.disk.file(fd).content = (target, start, length, position) =>
        fillSectors(target, start, version, position / SECTOR, length / SECTOR);
    const bad = new Set<number>();
    if (this.#faults)
      for (let i = this.random.below(4); i > 0; i--) bad.add(this.random.below(sectors));
    const content = { version, sectors, sourceFd: fds[0], plainFd: fds[1], bad, lasting };
    for (const fd of fds) this.#contentOf.set(fd, content);
    this.contents.push(content);
    return content;
  }

  attach(content: SimContent, tuning: Tuning): SimDevice {
    const Source = this.random.chance(0.5) ? SimRoot : ScatteringSimRoot;
    const layer = new CachedLayer(this.cache, {
      content: {
        key: `content ${content.version}`,
        name: `root ${content.version}`,
        sizeSectors: content.sectors,
        lasting: content.lasting,
      },
      plain: new SimRoot(this.io, content.plainFd, content.sectors),
      source: new Source(this.io, content.sourceFd, content.sectors),
      tuning,
    });
    const union = new UnionDevice({
      sizeSectors: content.sectors + 64,
      layers: [layer],
      leaf: null,
      parts: this.#parts,
      onFault: () => {},
    });
    const device = { content, layer, union, closing: false };
    this.devices.push(device);
    return device;
  }

  /** Some act, whatever is possible now. */
  act(): void {
    const { random } = this;
    const kind = random.below(1000);
    if (kind < 450) this.#issue();
    else if (kind < 900) this.step();
    else if (kind < 960) this.#sendOne();
    else if (kind < 975) this.#fetch();
    else if (kind < 985) this.#drop();
    else if (kind < 993) this.#resize();
    else this.#reattach();
  }

  /** Lets something that is under way end. False if there is nothing. */
  step(): boolean {
    if (this.random.chance(0.2) && this.slabIo.step()) return true;
    return this.io.step() || this.slabIo.step() || this.#sendOne();
  }

  drain(): void {
    while (this.step());
    if (this.#slots.some(({ device }) => device !== null)) throw new Error('a read never ends');
    if (this.fetches > 0) throw new Error('a fetch never ends');
    this.audit();
    const { chunks } = this.cache;
    for (let chunk = 0; chunk < chunks.end; chunk++) {
      if (chunks.contents[chunk] === null) continue;
      if (chunks.pins[chunk] !== 0) throw new Error('a chunk stays pinned');
      if (chunks.flight[chunk] !== 0) throw new Error('a block stays in flight');
      if (chunks.dropped[chunk] === 1) throw new Error('a dropped chunk stays');
    }
    if (this.cache.slab.inUse * FRAME_BYTES !== this.cache.usedBytes)
      throw new Error('frames are lost');
    const { slab } = this.cache;
    if (slab.memoryBytes > Math.ceil(slab.budget / EXTENT_FRAMES) * EXTENT_BYTES)
      throw new Error('memory is not given back');
    if (this.slabIo.mappedBytes !== slab.memoryBytes) throw new Error('memory is counted wrongly');
  }

  // ── Acts ──────────────────────────────────────────────────────────────────────────────────────

  #issue(): void {
    const { random } = this;
    const slot = this.#slots.find(({ device }) => device === null);
    const open = this.devices.filter(({ closing }) => !closing);
    if (slot === undefined || open.length === 0) return;
    const device = random.pick(open);
    const size = device.union.sizeSectors;
    const { request } = slot;
    const most = random.chance(0.1) ? REQUEST_SECTORS_MAX : random.chance(0.5) ? 64 : 300;
    // Near places that many readers like, at the ends, or where the last one stopped.
    const hot = random.pick([0, 256, 1000, Math.floor(size / 2), size - 80]);
    request.sector = random.chance(0.3)
      ? Math.min(request.sector + request.count, size - 1)
      : Math.max(0, Math.min(size - 1, hot + random.between(-100, 100)));
    request.count = Math.min(random.between(1, most), size - request.sector);
    request.op = OP.READ;
    request.start = 0;
    request.memory.bytes.fill(0xee, 0, request.count * SECTOR);
    slot.device = device;
    this.counts.reads++;
    device.union.submit(request);
  }

  #complete(slot: Slot): void {
    const { request } = slot;
    if (slot.device === null || slot.sending) throw new Error('a read ends twice');
    if (request.loan !== null && request.loan.count > 0) {
      if (request.result < 0) throw new Error('a failed read has a loan');
      slot.sending = true; // its pieces are looked at later: they must stay as they are
      return;
    }
    this.#check(slot);
  }

  /** A reply with lent data is sent. */
  #sendOne(): boolean {
    const sending = this.#slots.filter(slot => slot.sending);
    if (sending.length === 0) return false;
    const slot = this.random.pick(sending);
    const loan = slot.request.loan!;
    const { bytes } = slot.request.memory;
    const length = slot.request.count * SECTOR;
    const whole = new Uint8Array(length);
    let at = 0;
    for (let i = 0; i < loan.count; i++) {
      whole.set(this.io.memories.at(loan.addresses[i]!, loan.lengths[i]!), at);
      at += loan.lengths[i]!;
    }
    if (at !== length) throw new Error(`pieces have ${at} bytes of ${length}`);
    bytes.set(whole);
    loan.giveBack();
    slot.sending = false;
    this.counts.lent++;
    this.#check(slot);
    return true;
  }

  #check(slot: Slot): void {
    const { request } = slot;
    const { content } = slot.device!;
    slot.device = null;
    let bad = false;
    for (let i = 0; i < request.count; i++) bad ||= content.bad.has(request.sector + i);
    if (bad !== request.result < 0)
      throw new Error(`${request.count} sectors at ${request.sector} end with ${request.result}`);
    if (bad) {
      this.counts.failed++;
      return;
    }
    for (let i = 0; i < request.count; i++) {
      const sector = request.sector + i;
      const found = versionIn(request.memory.bytes, i * SECTOR, sector);
      const wanted = sector < content.sectors ? content.version : 0;
      if (found !== wanted)
        throw new Error(`sector ${sector} of content ${wanted} reads as of ${found ?? 'none'}`);
    }
  }

  #fetch(): void {
    const { random } = this;
    const open = this.devices.filter(({ closing }) => !closing);
    if (open.length === 0 || this.fetches > 0) return;
    const { layer, content } = random.pick(open);
    const blocks = Math.ceil(content.sectors / 8);
    const ranges: number[] = [];
    for (let i = random.between(1, 5); i > 0; i--) {
      const first = random.below(blocks);
      ranges.push(first, random.between(1, blocks - first));
    }
    this.fetches++;
    this.counts.fetches++;
    const fetch = new Fetch(layer, Float64Array.from(ranges), () => {
      this.fetches--;
    });
    fetch.start();
    if (random.chance(0.2)) fetch.cancel();
  }

  #drop(): void {
    this.counts.drops++;
    const { contents } = this.cache;
    const all = contents.all;
    this.cache.drop(all.length > 0 && this.random.chance(0.7) ? this.random.pick(all) : null);
  }

  #resize(): void {
    this.counts.resizes++;
    const frames = this.random.pick([0, 1, 3, 20, 64, 200, 1000, 4000]);
    this.cache.resize(frames * FRAME_BYTES + this.random.below(FRAME_BYTES));
  }

  /** A device goes, and another one comes. */
  #reattach(): void {
    const { random } = this;
    const busy = new Set(this.#slots.map(({ device }) => device));
    const at = this.devices.findIndex(device => !busy.has(device) && !device.closing);
    if (at < 0 || this.fetches > 0) return;
    const device = this.devices[at]!;
    device.closing = true;
    device.layer.close(() => this.devices.splice(this.devices.indexOf(device), 1));
    this.attach(random.pick(this.contents), randomTuning(random));
  }

  // ── The books ─────────────────────────────────────────────────────────────────────────────────

  audit(): void {
    const { cache } = this;
    const { chunks, slab } = cache;
    const frames = new Set<number>();
    let kept = 0;
    let count = 0;
    for (let chunk = 0; chunk < chunks.end; chunk++) {
      const content = chunks.contents[chunk] ?? null;
      if (content === null) continue;
      let bytes = 0;
      for (let i = 0; i < CHUNK_BLOCKS; i++) {
        const frame = chunks.frames[chunk * CHUNK_BLOCKS + i]! - 1;
        if (frame < 0) continue;
        if (frames.has(frame)) throw new Error('a frame has two owners');
        frames.add(frame);
        bytes += FRAME_BYTES;
      }
      if (chunks.bytesOf(chunk) !== bytes) throw new Error('a chunk counts its frames wrongly');
      if ((chunks.valid[chunk]! & chunks.flight[chunk]!) !== 0)
        throw new Error('a block is there, and read again');
      if (chunks.dropped[chunk] === 1) continue;
      kept += bytes;
      count++;
      const key = chunks.keys[chunk]!;
      if (cache.peek(key) !== chunk) throw new Error('a chunk is not found by its key');
      if (key < content.firstKey || key >= content.firstKey + content.keyCount)
        throw new Error('a chunk has the key of another content');
      if (cache.contents.get(content.key) !== content)
        throw new Error('a chunk of a content that is forgotten');
    }
    if (kept !== cache.usedBytes || count !== cache.chunkCount)
      throw new Error('the policy knows other chunks');
    if (frames.size !== slab.inUse) throw new Error('frames are counted wrongly');
    if (cache.usedBytes > cache.capacityBytes) throw new Error('the cache is over its capacity');
  }
}

export function randomTuning(random: Random): Tuning {
  return {
    fillBlocks: random.pick([1, 4, 32, 64]),
    aheadBlocksMin: random.pick([8, 32]),
    aheadBlocksMax: random.pick([0, 64, 256]),
  };
}
