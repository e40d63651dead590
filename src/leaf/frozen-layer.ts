/**
 * A whole frozen chain as one layer of a device: whichever image has a sector, finding out takes
 * one lookup (owner-map.ts).
 *
 * The descriptors stay whoever opened them; they are lent for the layer's life. So devices over the
 * same chain share them, as they share the map.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import type { Layer } from '../store/store.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import { OwnerMap, type OwnerMapState } from './owner-map.ts';

/** One image, for the data path. */
export interface FrozenFile {
  /** Its path, for messages. */
  name: string;
  fd: number;
  dataOffset: number;
}

export class FrozenLayer implements Layer {
  readonly name: string;
  readonly #io: Io;
  readonly #names: readonly string[];
  /** By owner: the lowest image is 1. */
  readonly #fds: readonly number[];
  readonly #dataOffsets: readonly number[];
  readonly #owners: OwnerMap;

  /**
   * @param name of the topmost image, for messages
   * @param files the lowest image first
   */
  constructor(io: Io, name: string, files: readonly FrozenFile[], owners: OwnerMapState) {
    this.#io = io;
    this.name = name;
    this.#names = [name, ...files.map(file => file.name)];
    this.#fds = [-1, ...files.map(({ fd }) => fd)];
    this.#dataOffsets = [0, ...files.map(({ dataOffset }) => dataOffset)];
    this.#owners = new OwnerMap(owners);
  }

  run(sector: number, end: number): number {
    const count = this.#owners.find(sector, end);
    return this.#owners.owner > 0 ? count : -count;
  }

  /** The image that has the sector, or else the topmost one. */
  nameAt(sector: number): string {
    this.#owners.find(sector, sector + 1);
    return this.#names[this.#owners.owner]!;
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#owners.find(sector, sector + 1);
    const { owner } = this.#owners;
    const position = this.#dataOffsets[owner]! + sector * SECTOR_BYTES;
    this.#io.read(this.#fds[owner]!, memory, start, count * SECTOR_BYTES, position, op);
  }
}
