/**
 * The union block device: takes requests, finds out per sector which layer has the data, and joins
 * the parts to one answer. Knows nothing of transports, files or the kernel.
 *
 *     request ──submit──▶ READ   per run of sectors: leaf │ intermediate … │ root │ zeroes
 *                         WRITE, DISCARD, WRITE_ZEROES, FLUSH   one operation on the leaf
 *                              └─▶ every part done ──▶ FUA? flush ──▶ completer.complete
 *
 * Overlapping requests need no ordering here. No request is turned into a read-modify-write: a
 * write goes to the leaf as it is, its sectors change owner only when its data are there, and
 * neighbouring sectors are never touched. So of two requests in flight together each sector gets
 * one or the other's data, which is all that a disk promises; and a read sees, per sector, the data
 * of before or after.
 *
 * Nothing is allocated per request: a part is a pooled `Part`. A read that would need more parts
 * than are free waits in line, keeping its place (`cursor`); every part that comes back lets the
 * line move on.
 */
import { assert } from '../base/assert.ts';
import { EIO, ENOBUFS, ENODATA, EROFS } from '../base/errno.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { Extents } from '../store/extents.ts';
import type { Layer, WritableLayer } from '../store/store.ts';
import type { IoOp } from '../uring/io.ts';
import { OP, type Request } from './request.ts';

/** One operation of a store on behalf of a request. */
class Part implements IoOp {
  readonly #pool: PartPool;
  union!: UnionDevice;
  request!: Request;
  layer!: Layer;
  sector = 0;
  count = 0;
  next: Part | null = null;

  constructor(pool: PartPool) {
    this.#pool = pool;
  }

  done(result: number): void {
    const { union, request, layer, sector, count } = this;
    this.#pool.put(this);
    union.partDone(request, layer, sector, count, result);
  }
}

/**
 * The parts of all devices of one data-plane thread. So that a device whose root hangs cannot keep
 * the others from going on, a device takes no more than it leaves free, and one that has none
 * always gets one: the pool grows for it.
 */
export class PartPool {
  #free: Part | null = null;
  #freeCount = 0;
  #waitingHead: UnionDevice | null = null;
  #waitingTail: UnionDevice | null = null;
  #waitingCount = 0;
  /** Requests that all devices have been given so far (wraps at 2^31). */
  requests = 0;

  constructor(count: number) {
    for (let i = 0; i < count; i++) this.#add(new Part(this));
  }

  /** A part for the device; null if it has its share: then it may `wait`. */
  take(union: UnionDevice): Part | null {
    if (!this.#mayTake(union)) return null;
    return this.#take(union);
  }

  /** Takes again what this turn of the device's has just put back. */
  retake(union: UnionDevice): Part {
    assert(this.#free !== null, 'the part that has just come back is free');
    return this.#take(union);
  }

  put(part: Part): void {
    part.union.partsHeld--;
    this.#add(part);
  }

  #mayTake({ partsHeld }: UnionDevice): boolean {
    return partsHeld === 0 || partsHeld < this.#freeCount;
  }

  #take(union: UnionDevice): Part {
    const part = this.#free ?? new Part(this);
    if (this.#free !== null) {
      this.#free = part.next;
      this.#freeCount--;
    }
    part.union = union;
    union.partsHeld++;
    return part;
  }

  #add(part: Part): void {
    part.next = this.#free;
    this.#free = part;
    this.#freeCount++;
  }

  /** A device with reads in line; devices take turns. */
  wait(device: UnionDevice): void {
    if (device.inLine) return;
    device.inLine = true;
    device.nextInLine = null;
    if (this.#waitingTail === null) this.#waitingHead = device;
    else this.#waitingTail.nextInLine = device;
    this.#waitingTail = device;
    this.#waitingCount++;
  }

  /** Called when parts may have come back: everyone in line is asked once. */
  moveOn(): void {
    for (let left = this.#waitingCount; left > 0 && this.#waitingHead !== null; left--) {
      const device = this.#waitingHead;
      this.#waitingHead = device.nextInLine;
      if (this.#waitingHead === null) this.#waitingTail = null;
      this.#waitingCount--;
      device.inLine = false;
      if (this.#mayTake(device)) device.resume();
      else this.wait(device);
    }
  }
}

/** What went wrong on the data path; for the log and for the device's counters. */
export interface Fault {
  op: number;
  layer: string;
  sector: number;
  count: number;
  errno: number;
}

export interface UnionOptions {
  sizeSectors: number;
  /** Topmost first; the leaf, if there is one, is `leaf` and not in this list. */
  layers: readonly Layer[];
  /** Takes the writes; null for a device that is read-only. */
  leaf: WritableLayer | null;
  parts: PartPool;
  onFault: (fault: Fault) => void;
}

export class UnionDevice {
  /** Only grows. */
  sizeSectors: number;
  #layers: readonly Layer[];
  #leaf: WritableLayer | null;
  readonly #parts: PartPool;
  readonly #onFault: (fault: Fault) => void;
  #lineHead: Request | null = null;
  #lineTail: Request | null = null;

  /** For PartPool. */
  partsHeld = 0;
  inLine = false;
  nextInLine: UnionDevice | null = null;

  /** Requests submitted and not completed. */
  inFlight = 0;
  /** Requests that may still use the layers of before, by the parity of their time. */
  readonly #inFlightIn: [number, number] = [0, 0];
  #time: 0 | 1 = 0;
  #onChanged: (() => void) | null = null;
  readonly counters = {
    reads: 0,
    readSectors: 0,
    writes: 0,
    writtenSectors: 0,
    flushes: 0,
    faults: 0,
  };

  constructor(options: UnionOptions) {
    this.sizeSectors = options.sizeSectors;
    this.#leaf = options.leaf;
    this.#layers = options.leaf === null ? options.layers : [options.leaf, ...options.layers];
    this.#parts = options.parts;
    this.#onFault = options.onFault;
  }

  get readOnly(): boolean {
    return this.#leaf === null;
  }

  /**
   * Other layers from now on: parts that are under way end where they began. A new leaf gets the
   * changes that are still to come.
   * @param onUnused nobody uses any more what is left out; called once, also from inside
   */
  change(layers: readonly Layer[], leaf: WritableLayer, onUnused: () => void): void {
    assert(this.#onChanged === null && this.#leaf !== null, 'one change at a time');
    this.#layers = [leaf, ...layers];
    this.#leaf = leaf;
    this.#time ^= 1;
    if (this.#inFlightIn[this.#time ^ 1] === 0) onUnused();
    else this.#onChanged = onUnused;
  }

  /** What `locate` has found: 1 the leaf, 2 and more the layers below it, 0 none. */
  located = 0;

  /**
   * Tells, in `located`, which layer has `sector`; returns for how many sectors that holds: at
   * least one, none of them beyond `end` (exclusive).
   */
  locate(sector: number, end: number): number {
    const first = this.#leaf === null ? 2 : 1;
    let limit = end;
    for (let i = 0; i < this.#layers.length; i++) {
      const run = this.#layers[i]!.run(sector, limit);
      if (run > 0) {
        this.located = first + i;
        return run;
      }
      limit = sector - run;
    }
    this.located = 0;
    return limit - sector;
  }

  /** What `locateExtent` has found: zeroes, or what may be data. */
  locatedZeroes = false;
  /** Where `locateExtent` could not tell: who finds out. */
  untold: Extents | null = null;

  /**
   * As `locate`, and says whether it is zeroes all through, or data. Returns 0 where that is not
   * known yet: `untold` finds out.
   */
  locateExtent(sector: number, end: number): number {
    const count = this.locate(sector, end);
    this.untold = null;
    this.locatedZeroes = this.located === 0;
    if (this.located === 0) return count;
    const { extents } = this.#layers[this.located - (this.#leaf === null ? 2 : 1)]!;
    if (extents === undefined) return count;
    const run = extents.run(sector, sector + count);
    if (run === 0) this.untold = extents;
    this.locatedZeroes = run < 0;
    return Math.abs(run);
  }

  /** Takes a request whose range the transport has checked against `sizeSectors`. */
  submit(request: Request): void {
    request.result = 0;
    request.pending = 0;
    request.flushing = false;
    request.cursor = request.sector;
    this.#parts.requests = (this.#parts.requests + 1) | 0;
    this.inFlight++;
    request.time = this.#time;
    this.#inFlightIn[this.#time]++;
    if (request.op === OP.READ) {
      this.counters.reads++;
      this.counters.readSectors += request.count;
      if (this.#lineHead === null) this.#read(request);
      else this.#queue(request);
      return;
    }
    if (this.#leaf === null && request.op !== OP.FLUSH) {
      request.result = -EROFS;
      this.#finish(request);
      return;
    }
    // The part that a change needs cannot be missing for long, yet it may be: then it waits like a
    // read.
    if (this.#lineHead === null) this.#change(request);
    else this.#queue(request);
  }

  /** For the pool: goes on with the requests in line. */
  resume(): void {
    for (let request = this.#lineHead; request !== null; request = this.#lineHead) {
      this.#lineHead = request.next;
      if (this.#lineHead === null) this.#lineTail = null;
      request.next = null;
      request.inLine = false;
      const done = request.op === OP.READ ? this.#read(request) : this.#change(request);
      if (!done) return;
    }
  }

  /**
   * Hands out what is left of a read. False if it had to wait for parts: it is in line then, in
   * front.
   */
  #read(request: Request): boolean {
    const end = request.sector + request.count;
    request.pending++; // our own share: it must not complete while we still hand out
    while (request.cursor < end && request.result === 0) {
      const handed = this.#readRun(request, request.cursor, end, 0);
      if (handed === 0) {
        request.pending--;
        this.#queueInFront(request);
        return false;
      }
      request.cursor += handed;
    }
    this.#shareDone(request);
    return true;
  }

  /**
   * Serves the run at `sector` from the first layer that has it.
   * Returns how many sectors are taken care of; 0 if no part is free.
   */
  #readRun(request: Request, sector: number, end: number, from: number): number {
    let limit = end;
    for (let i = from; i < this.#layers.length; i++) {
      const layer = this.#layers[i]!;
      const run = layer.run(sector, limit);
      if (run > 0) {
        const { loan } = request;
        if (loan !== null && layer.lend !== undefined) {
          const lent = layer.lend(sector, run, loan);
          if (lent > 0) return lent;
        }
        const part = this.#parts.take(this);
        if (part === null) return 0;
        part.request = request;
        part.layer = layer;
        part.sector = sector;
        part.count = run;
        request.pending++;
        const start = request.start + (sector - request.sector) * SECTOR_BYTES;
        loan?.own(request.memory, start, run * SECTOR_BYTES);
        layer.read(sector, run, request.memory, start, part);
        return run;
      }
      // None of the next -run sectors: a lower layer answers for no more than those.
      limit = sector - run;
    }
    const start = request.start + (sector - request.sector) * SECTOR_BYTES;
    const bytes = (limit - sector) * SECTOR_BYTES;
    if (request.memory.fixed >= 0) {
      if (!request.loan!.lendZeroes(bytes)) request.result = -ENOBUFS;
    } else {
      request.memory.bytes.fill(0, start, start + bytes);
      request.loan?.own(request.memory, start, bytes);
    }
    return limit - sector;
  }

  /** Starts a change or a flush: one operation of the leaf. False if it had to wait for a part. */
  #change(request: Request): boolean {
    const leaf = this.#leaf;
    if (leaf === null) {
      this.#finish(request); // a flush of a read-only device: nothing is volatile
      return true;
    }
    const part = this.#parts.take(this);
    if (part === null) {
      this.#queueInFront(request);
      return false;
    }
    part.request = request;
    part.layer = leaf;
    part.sector = request.sector;
    part.count = request.count;
    request.pending = 1;
    const { sector, count } = request;
    switch (request.op) {
      case OP.WRITE:
        this.counters.writes++;
        this.counters.writtenSectors += count;
        leaf.write(sector, count, request.memory, request.start, part);
        return true;
      case OP.DISCARD:
        leaf.discard(sector, count, part);
        return true;
      case OP.WRITE_ZEROES:
        leaf.writeZeroes(sector, count, request.keepSpace, part);
        return true;
      default:
        this.counters.flushes++;
        leaf.flush(part);
        return true;
    }
  }

  partDone(request: Request, layer: Layer, sector: number, count: number, result: number): void {
    if (result < 0) {
      this.counters.faults++;
      const name = layer.nameAt?.(sector) ?? layer.name;
      this.#onFault({ op: request.op, layer: name, sector, count, errno: -result });
      // A store that became shorter is an I/O error to the file system; the message has the true
      // cause.
      if (request.result === 0) request.result = result === -ENODATA ? -EIO : result;
    }
    this.#shareDone(request);
    this.#parts.moveOn();
  }

  #shareDone(request: Request): void {
    if (--request.pending > 0) return;
    if (request.inLine) return; // a read that is not handed out whole: `resume` goes on with it
    const changes = request.op !== OP.READ && request.op !== OP.FLUSH;
    if (request.fua && changes && !request.flushing && request.result === 0) {
      // The data are in the leaf: make them durable, by the same road as a flush.
      request.flushing = true;
      const part = this.#parts.retake(this);
      part.request = request;
      part.layer = this.#leaf!;
      part.sector = request.sector;
      part.count = request.count;
      request.pending = 1;
      this.#leaf!.flush(part);
      return;
    }
    this.#finish(request);
  }

  #finish(request: Request): void {
    const { loan } = request;
    if (loan !== null && (request.result < 0 || !loan.lends)) loan.giveBack();
    this.inFlight--;
    if (--this.#inFlightIn[request.time] === 0 && request.time !== this.#time) this.#changed();
    request.completer.complete(request);
  }

  #changed(): void {
    const onChanged = this.#onChanged;
    this.#onChanged = null;
    onChanged?.();
  }

  #queue(request: Request): void {
    request.next = null;
    request.inLine = true;
    if (this.#lineTail === null) this.#lineHead = request;
    else this.#lineTail.next = request;
    this.#lineTail = request;
    this.#parts.wait(this);
  }

  #queueInFront(request: Request): void {
    request.next = this.#lineHead;
    request.inLine = true;
    this.#lineHead = request;
    if (this.#lineTail === null) this.#lineTail = request;
    this.#parts.wait(this);
  }
}
