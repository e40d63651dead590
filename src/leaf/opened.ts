/** A leaf that the control plane has opened: plain data, as it travels to the data-plane thread. */
import type { SectorMapState } from './sector-map.ts';
import type { Superblock } from './superblock.ts';

export interface OpenedLeaf {
  /** For messages: the path. */
  name: string;
  /**
   * The locked descriptor. Whoever holds the OpenedLeaf owns it; the lock goes when it is closed.
   */
  fd: number;
  readOnly: boolean;
  superblock: Superblock;
  map: SectorMapState;
  /** Bytes of the log in use, and the number of the next record. */
  logHead: number;
  nextSequence: number;
  /** The map holds what neither it on disk nor the log does: see shadow.ts. Default false. */
  unwritten?: boolean;
  /**
   * What opening found and put right, for the log: a superblock copy that is damaged, a torn
   * record.
   */
  notes: string[];
}

/**
 * The buffers to hand over, instead of copying them, in `postMessage(opened,
 * transferList(opened))`.
 */
export function transferList(opened: OpenedLeaf): ArrayBuffer[] {
  const { chunks, slabs, counts, flags } = opened.map;
  return [...chunks, ...slabs, ...counts, ...flags].map(array => array.buffer as ArrayBuffer);
}
