/**
 * A checkpoint's sectors: copies of every changed map page and directory sector, staged at the
 * moment when the commit cycle begins, and written later. Copies, because writes go on meanwhile
 * and set bits whose data are not durable yet.
 *
 *     memory:  │ fresh pages │ other pages │ directory sectors │   each group sorted by index
 *                 before        after the data are durable
 *                the sync
 *
 * A *fresh* page is one that the directory on disk calls empty. Nothing refers to its map sector
 * yet, so it may be written together with the data and become durable by the same sync. Only then
 * may a directory sector call it partial. Hence the rule that opening relies on: a page that the
 * directory calls partial has a valid map sector, always.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import { DIRECTORY_MAGIC, MAP_MAGIC, SECTOR_HEADER, sealSector } from './format.ts';
import type { SectorMap } from './sector-map.ts';

/** Where the sectors go. */
export interface CheckpointTarget {
  io: Io;
  fd: number;
  owner: number;
  directoryOffset: number;
  mapOffset: number;
  /** To another place, where nothing of them is yet: all pages and directory sectors. */
  everything?: boolean;
}

/**
 * Sectors written in one piece, and pieces under way at the same time: others want the disk as
 * well.
 */
const RUN_SECTORS_MAX = 512;
const IN_FLIGHT_MAX = 8;

export class Checkpoint {
  readonly #target: CheckpointTarget;
  readonly #map: SectorMap;
  readonly #pages: number[];
  readonly #directories: number[];
  /** How many of `#pages`, from the front, are fresh. */
  readonly #fresh: number;
  readonly #memory: Memory | null;
  /** How many sectors the map has with what is staged. */
  readonly mappedSectors: number;
  readonly #free: StagedWrite[] = [];
  /** Next staged sector to write, and the end of the group being written. */
  #next = 0;
  #end = 0;
  #inFlight = 0;
  #result = 0;
  #then!: IoOp;

  constructor(map: SectorMap, target: CheckpointTarget) {
    this.#target = target;
    this.#map = map;
    this.mappedSectors = map.mapped;
    const dirty = { pages: map.takeDirtyPages(), directories: map.takeDirtyDirectories() };
    if (target.everything) {
      // Nothing refers to any of them there.
      this.#pages = map.partialPages();
      this.#fresh = this.#pages.length;
      this.#directories = map.usedDirectories();
    } else {
      const fresh = dirty.pages.filter(page => map.isFresh(page));
      this.#pages = fresh.concat(dirty.pages.filter(page => !map.isFresh(page)));
      this.#fresh = fresh.length;
      this.#directories = dirty.directories;
    }
    const count = this.#pages.length + this.#directories.length;
    this.#memory = count === 0 ? null : target.io.allocate(count * SECTOR_BYTES);
    if (this.#memory === null) return;
    const { bytes } = this.#memory;
    let offset = SECTOR_HEADER.size;
    for (const page of this.#pages) {
      map.copyPage(page, bytes, offset);
      offset += SECTOR_BYTES;
    }
    for (const directory of this.#directories) {
      map.copyDirectory(directory, bytes, offset);
      offset += SECTOR_BYTES;
    }
    for (let i = 0; i < IN_FLIGHT_MAX; i++) this.#free.push(new StagedWrite(this));
  }

  get hasFresh(): boolean {
    return this.#fresh > 0;
  }

  get hasRest(): boolean {
    return this.#pages.length + this.#directories.length > this.#fresh;
  }

  /** Writes the map sectors to which nothing refers yet; `then` gets 0 or -errno. */
  writeFresh(then: IoOp): void {
    this.#write(0, this.#fresh, then);
  }

  /** Fresh pages are durable: the directory may refer to them. */
  settleFresh(): void {
    for (let i = 0; i < this.#fresh; i++) this.#map.settle(this.#pages[i]!);
  }

  /** Writes everything else. */
  writeRest(then: IoOp): void {
    this.#write(this.#fresh, this.#pages.length + this.#directories.length, then);
  }

  /** Nothing of it counts: all of it is to be written again some other time. */
  giveBack(): void {
    for (const page of this.#pages) this.#map.markPage(page);
    for (const directory of this.#directories) this.#map.markDirectory(directory);
  }

  free(): void {
    this.#memory?.free();
  }

  #write(from: number, end: number, then: IoOp): void {
    this.#next = from;
    this.#end = end;
    this.#result = 0;
    this.#then = then;
    this.#goOn();
  }

  #goOn(): void {
    const { io, fd, owner } = this.#target;
    while (this.#next < this.#end && this.#free.length > 0 && this.#result === 0) {
      const first = this.#next;
      let count = 1;
      while (
        first + count < this.#end &&
        count < RUN_SECTORS_MAX &&
        this.#position(first + count) === this.#position(first) + count * SECTOR_BYTES
      )
        count++;
      const memory = this.#memory!;
      for (let i = first; i < first + count; i++) {
        const isPage = i < this.#pages.length;
        const index = isPage ? this.#pages[i]! : this.#directories[i - this.#pages.length]!;
        const magic = isPage ? MAP_MAGIC : DIRECTORY_MAGIC;
        sealSector(memory.bytes, memory.view, i * SECTOR_BYTES, magic, owner, index);
      }
      this.#next = first + count;
      this.#inFlight++;
      const position = this.#position(first);
      const write = this.#free.pop()!;
      io.write(fd, memory, first * SECTOR_BYTES, count * SECTOR_BYTES, position, write);
    }
  }

  /** Where staged sector `i` belongs in the leaf. */
  #position(i: number): number {
    const { mapOffset, directoryOffset } = this.#target;
    return i < this.#pages.length
      ? mapOffset + this.#pages[i]! * SECTOR_BYTES
      : directoryOffset + this.#directories[i - this.#pages.length]! * SECTOR_BYTES;
  }

  writeDone(write: StagedWrite, result: number): void {
    this.#free.push(write);
    this.#inFlight--;
    if (result < 0 && this.#result === 0) this.#result = result;
    this.#goOn();
    if (this.#inFlight === 0) this.#then.done(this.#result, 0);
  }
}

class StagedWrite implements IoOp {
  readonly #checkpoint: Checkpoint;

  constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint;
  }

  done(result: number): void {
    this.#checkpoint.writeDone(this, result);
  }
}
