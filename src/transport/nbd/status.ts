/**
 * The answer to BLOCK_STATUS: for each metadata context that the client has chosen, one chunk of
 * descriptors, extent after extent from the request's offset on.
 *
 * It may end before the request does (the client asks again from there): descriptors are limited,
 * and so is the work, since the runs of a fragmented leaf can be as short as a sector. It also ends
 * where a layer has to find out first what lies there.
 */
import { assert } from '../../base/assert.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { writeChunk } from './replies.ts';
import type { Slot } from './slots.ts';
import {
  ALLOCATION,
  CHUNK,
  CMD_FLAG,
  DESCRIPTOR,
  EXTENDED_DESCRIPTOR,
  EXTENDED_REPLY,
  EXTENDED_STATUS_CHUNK,
  REPLY_FLAG,
  STATUS_CHUNK,
  STRUCTURED_REPLY,
} from './wire.ts';

const HALF = 2 ** 32;
const HOLE: number = ALLOCATION.HOLE | ALLOCATION.ZERO;

/** The contexts that a client has chosen, by the number that the handshake gave each. */
export interface Contexts {
  /** `base:allocation` */
  allocation?: number;
  /** `x-ubd:layer` */
  layer?: number;
}

const DESCRIPTORS_MAX = 250;
/** How often the layers are asked for one context of one request. */
const RUNS_MAX = 8192;

/** What an answer takes, at most. */
export function statusBytes(contexts: number): number {
  return (
    contexts *
    (EXTENDED_REPLY.size + EXTENDED_STATUS_CHUNK.size + DESCRIPTORS_MAX * EXTENDED_DESCRIPTOR.size)
  );
}

/**
 * Writes all chunks at byte `at` of `view`; returns their length. 0: nothing is known yet of the
 * very beginning of the range; `device.untold` finds out.
 */
export function writeStatus(
  view: DataView,
  at: number,
  slot: Slot,
  extended: boolean,
  contexts: Contexts,
  device: UnionDevice,
): number {
  const { allocation, layer } = contexts;
  let bytes = 0;
  if (allocation !== undefined) {
    const flags = layer === undefined ? REPLY_FLAG.DONE : 0;
    bytes += writeContext(view, at, slot, extended, flags, allocation, false, device);
    if (bytes === 0) return 0;
  }
  if (layer !== undefined)
    bytes += writeContext(view, at + bytes, slot, extended, REPLY_FLAG.DONE, layer, true, device);
  return bytes;
}

function writeContext(
  view: DataView,
  at: number,
  slot: Slot,
  extended: boolean,
  flags: number,
  context: number,
  ofLayers: boolean,
  device: UnionDevice,
): number {
  const header = extended ? EXTENDED_REPLY.size : STRUCTURED_REPLY.size;
  const chunk = extended ? EXTENDED_STATUS_CHUNK.size : STATUS_CHUNK.size;
  const descriptor = extended ? EXTENDED_DESCRIPTOR.size : DESCRIPTOR.size;
  const descriptorsMax = (slot.flags & CMD_FLAG.REQ_ONE) === 0 ? DESCRIPTORS_MAX : 1;
  const end = (slot.position + slot.pieceBytes) / SECTOR_BYTES;
  let sector = slot.position / SECTOR_BYTES;
  let count = 0;
  let put = at + header + chunk;
  let sectors = 0;
  let status = 0;
  for (let runs = 0; sector < end && runs < RUNS_MAX; runs++) {
    const run = ofLayers ? device.locate(sector, end) : device.locateExtent(sector, end);
    if (run === 0) break; // what is known is an answer, too
    const found = ofLayers ? device.located : device.locatedZeroes ? HOLE : 0;
    if (sectors > 0 && found !== status) {
      writeDescriptor(view, put, extended, sectors * SECTOR_BYTES, status);
      put += descriptor;
      count++;
      sectors = 0;
      if (count === descriptorsMax) break;
    }
    status = found;
    sectors += run;
    sector += run;
  }
  if (sectors > 0) {
    writeDescriptor(view, put, extended, sectors * SECTOR_BYTES, status);
    put += descriptor;
    count++;
  }
  if (count === 0) return 0;
  assert(count <= DESCRIPTORS_MAX, 'an answer has descriptors');
  const type = extended ? CHUNK.BLOCK_STATUS_EXT : CHUNK.BLOCK_STATUS;
  writeChunk(view, at, slot, extended, flags, type, put - at - header);
  view.setUint32(at + header + STATUS_CHUNK.at.context, context);
  if (extended) view.setUint32(at + header + EXTENDED_STATUS_CHUNK.at.count, count);
  return put - at;
}

function writeDescriptor(
  view: DataView,
  at: number,
  extended: boolean,
  length: number,
  status: number,
): void {
  if (extended) {
    view.setUint32(at + EXTENDED_DESCRIPTOR.at.lengthHigh, length / HALF);
    view.setUint32(at + EXTENDED_DESCRIPTOR.at.lengthLow, length % HALF);
    view.setUint32(at + EXTENDED_DESCRIPTOR.at.statusHigh, 0);
    view.setUint32(at + EXTENDED_DESCRIPTOR.at.statusLow, status);
  } else {
    view.setUint32(at + DESCRIPTOR.at.length, length);
    view.setUint32(at + DESCRIPTOR.at.status, status);
  }
}
