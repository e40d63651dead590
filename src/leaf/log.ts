/**
 * The modification log: which sectors became mapped since the last checkpoint.
 *
 *     logOffset                                              head
 *     ├─ record start ─┼─ record start+1 ─┼ … ┼─ record n ─┤▒ a torn record, older ones, nothing ▒│
 *
 * Records follow each other without gaps, each in whole sectors, numbered one by one. A record
 * says: the data of these sectors are in the leaf, durably; so it is written after the sync of the
 * data, and is durable itself before the flush is answered. There is never more than one record
 * that is not durable yet. So what follows the last whole record is at most one torn record, which
 * no flush has answered for; a whole record found anywhere behind it proves that durable records
 * were lost, and is damage.
 */
import { crc32 } from 'node:zlib';
import { corrupt } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { EXTENT, extentsIn, type Owner, RECORD, RECORD_MAGIC, recordSectors } from './format.ts';

/** Writes a record at `offset`; returns its length in bytes. */
export function encodeRecord(
  target: Uint8Array,
  view: DataView,
  offset: number,
  owner: Owner,
  sequence: number,
  starts: Float64Array,
  counts: Uint32Array,
  extents: number,
): number {
  const length = recordSectors(extents) * SECTOR_BYTES;
  target.fill(0, offset, offset + length);
  RECORD.write(view, offset, {
    magic: RECORD_MAGIC,
    ownerLow: owner.low,
    ownerHigh: owner.high,
    sequence,
    sectors: length / SECTOR_BYTES,
    extents,
  });
  let at = offset + RECORD.size;
  for (let i = 0; i < extents; i++) {
    EXTENT.fields.start.write(view, at + EXTENT.at.start, starts[i]!);
    view.setUint32(at + EXTENT.at.count, counts[i]!, true);
    at += EXTENT.size;
  }
  view.setUint32(offset + RECORD.at.crc, recordCrc(target, offset, length), true);
  return length;
}

/** Of everything behind the CRC itself. */
function recordCrc(source: Uint8Array, offset: number, length: number): number {
  return crc32(source.subarray(offset + RECORD.at.ownerLow, offset + length));
}

export interface LogScan {
  /**
   * The first record that counts: as the superblock says, or later (see LogSource.superblockLost).
   */
  logStart: number;
  /** Where the next record goes, in bytes from the start of the log. */
  head: number;
  /** The number of the next record. */
  nextSequence: number;
  records: number;
  extents: number;
  /** The beginning of a record that was never whole lies at the head: dropped. */
  torn: boolean;
}

export interface LogSource {
  /** The whole log region. */
  bytes: Uint8Array;
  owner: Owner;
  /**
   * From the superblock: the first record that counts, and the one up to which all must be there.
   */
  logStart: number;
  logEnd: number;
  sizeSectors: number;
  /**
   * The other superblock is damaged, so it may have been the newer one. Then a newer record at the
   * log's start shows what it said: the log begins anew only when a superblock with that `logStart`
   * is durable.
   */
  superblockLost: boolean;
  /** For messages. */
  file: string;
  logOffset: number;
}

/**
 * Goes through the records that count, in order. Throws `corrupt` where durable records are
 * missing.
 */
export function scanLog(source: LogSource, visit: (start: number, count: number) => void): LogScan {
  const { bytes, owner, sizeSectors, file, logOffset } = source;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const oldest = source.superblockLost ? (sequenceAt(bytes, view, 0, owner) ?? 0) : 0;
  const logStart = Math.max(source.logStart, oldest);
  const logEnd = Math.max(source.logEnd, logStart);
  let head = 0;
  let sequence = logStart;
  let extents = 0;
  while (sequenceAt(bytes, view, head, owner) === sequence) {
    const length = view.getUint32(head + RECORD.at.extents, true);
    for (let i = 0; i < length; i++) {
      const at = head + RECORD.size + i * EXTENT.size;
      const start = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
      const count = view.getUint32(at + EXTENT.at.count, true);
      if (count === 0 || start + count > sizeSectors)
        throw corrupt(file, logOffset + at, `log record ${sequence}: an extent beyond the device`);
      visit(start, count);
    }
    extents += length;
    head += view.getUint32(head + RECORD.at.sectors, true) * SECTOR_BYTES;
    sequence++;
  }
  const lost = `log record ${sequence} is missing or damaged`;
  const next =
    'Records behind it were durable: restore the leaf from a backup, or see `ubd check`.';
  if (sequence < logEnd)
    throw corrupt(
      file,
      logOffset + head,
      `${lost}; records up to ${logEnd - 1} must be there`,
      next,
    );
  for (let at = head; at < bytes.length; at += SECTOR_BYTES) {
    const found = sequenceAt(bytes, view, at, owner);
    if (found !== null && found >= logStart)
      throw corrupt(
        file,
        logOffset + head,
        `${lost}, yet there is record ${found} at offset ${logOffset + at}`,
        next,
      );
  }
  return {
    logStart,
    head,
    nextSequence: sequence,
    records: sequence - logStart,
    extents,
    torn: claims(view, head, owner, sequence),
  };
}

/** The number of the whole, undamaged record of this leaf at `at`; null if there is none. */
export function sequenceAt(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  owner: Owner,
): number | null {
  if (at + SECTOR_BYTES > bytes.length) return null;
  if (view.getUint32(at + RECORD.at.magic, true) !== RECORD_MAGIC) return null;
  if (view.getUint32(at + RECORD.at.ownerLow, true) !== owner.low) return null;
  if (view.getUint32(at + RECORD.at.ownerHigh, true) !== owner.high) return null;
  const sectors = view.getUint32(at + RECORD.at.sectors, true);
  const length = sectors * SECTOR_BYTES;
  if (sectors === 0 || at + length > bytes.length) return null;
  if (view.getUint32(at + RECORD.at.extents, true) > extentsIn(sectors)) return null;
  if (view.getUint32(at + RECORD.at.crc, true) !== recordCrc(bytes, at, length)) return null;
  if (view.getUint32(at + RECORD.at.sequence + 4, true) >= 2 ** 21) return null;
  return RECORD.fields.sequence.read(view, at + RECORD.at.sequence);
}

/** Whether the sector at `at` says that it begins record `sequence` (which is not whole, then). */
function claims(view: DataView, at: number, owner: Owner, sequence: number): boolean {
  if (at + SECTOR_BYTES > view.byteLength) return false;
  return (
    view.getUint32(at + RECORD.at.magic, true) === RECORD_MAGIC &&
    view.getUint32(at + RECORD.at.ownerLow, true) === owner.low &&
    view.getUint32(at + RECORD.at.sequence, true) === sequence % 2 ** 32
  );
}
