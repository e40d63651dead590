/**
 * Simulated I/O that breaks one of the rules that the leaf relies on: the proof that the crash
 * tests can fail. Each lie shows the disk what it would see if the commit cycle left out or
 * misplaced a step.
 */
import {
  DIRECTORY_PAGES,
  type Geometry,
  RECORD_MAGIC,
  SUPERBLOCK_BYTES,
} from '../../src/leaf/format.ts';
import type { Random } from './random.ts';
import type { Change, SimDisk, SimFile } from './sim-disk.ts';
import { SimIo, type SimOp } from './sim-io.ts';

export const LIES = [
  'a sync does nothing',
  'the log record is written before the data are synced',
  'log records are not durable when they are done',
  'the superblock is written before the map is synced',
  'map sectors become durable with the directory, not before',
  'a sync leaves out the last write before it',
  'zeroes are not made',
] as const;
export type Lie = (typeof LIES)[number];

export class LyingIo extends SimIo {
  readonly #lie: Lie;
  readonly #geometry: Geometry;
  #owedSync: SimOp | null = null;
  /** Map sectors that one sync has left out already. */
  readonly #held = new WeakSet<Change>();

  constructor(disk: SimDisk, random: Random, lie: Lie, geometry: Geometry) {
    super(disk, random);
    this.#lie = lie;
    this.#geometry = geometry;
  }

  protected override carryOut(sim: SimOp): number {
    const file = this.disk.file(sim.fd);
    const inMap = (position: number): boolean => position < this.#geometry.dataOffset;
    switch (this.#lie) {
      case 'a sync does nothing':
        if (sim.kind === 'sync') return 0;
        break;
      case 'the log record is written before the data are synced':
        if (sim.kind === 'sync') {
          this.#owedSync = sim;
          return 0;
        }
        if (sim.kind === 'writeDurable' && this.#owedSync !== null) {
          const result = super.carryOut(sim);
          file.syncUpTo(this.#owedSync.mark);
          this.#owedSync = null;
          return result;
        }
        break;
      case 'log records are not durable when they are done':
        if (sim.kind === 'writeDurable' && isRecord(sim)) {
          file.apply(this.changeOf(sim)!);
          return sim.length;
        }
        break;
      case 'the superblock is written before the map is synced':
        if (sim.kind === 'sync') {
          file.syncUpTo(sim.mark, change => !inMap(change.position));
          return 0;
        }
        break;
      case 'map sectors become durable with the directory, not before':
        if (sim.kind === 'sync') {
          file.syncUpTo(sim.mark, change => !this.#isFresh(file, change));
          return 0;
        }
        break;
      case 'a sync leaves out the last write before it':
        if (sim.kind === 'sync') {
          file.syncUpTo(sim.mark - 1);
          return 0;
        }
        break;
      case 'zeroes are not made':
        if (sim.kind === 'punch' || sim.kind === 'zero') return 0;
        break;
    }
    return super.carryOut(sim);
  }

  /**
   * Whether a change begins with a map sector of a page that the durable directory calls empty;
   * once.
   */
  #isFresh(file: SimFile, change: Change): boolean {
    const { directoryOffset, mapOffset, dataOffset } = this.#geometry;
    if (change.position < mapOffset || change.position >= dataOffset) return false;
    if (this.#held.has(change)) return false;
    this.#held.add(change);
    const page = (change.position - mapOffset) / 512;
    const index = page % DIRECTORY_PAGES;
    const states = new Uint8Array(1);
    const sector = directoryOffset + Math.floor(page / DIRECTORY_PAGES) * 512;
    file.durable.read(states, 0, 1, sector + 16 + (index >>> 2));
    return ((states[0]! >>> ((index & 3) * 2)) & 3) === 0;
  }
}

function isRecord(sim: SimOp): boolean {
  return (
    sim.length !== SUPERBLOCK_BYTES || sim.memory!.view.getUint32(sim.start, true) === RECORD_MAGIC
  );
}
