/**
 * Partition tables: which parts of a device hold what. GPT (UEFI 2.10, chapter 5) and MBR with its
 * logical partitions. All that they say is checked: a table may be hostile.
 *
 *     GPT   sector 1: header │ entries   its copy at the end counts where the first is damaged, or
 *                                        gone from behind the MBR that protects it
 *     MBR   sector 0: four entries at 446; one may begin a chain of further tables (logical ones)
 *
 * A sector is 512 bytes; a GPT may count in 4096.
 */
import { crc32 } from 'node:zlib';
import { corrupt } from '../base/errors.ts';
import type { BlockSource } from './source.ts';

export interface Partition {
  /** As in /dev/sda1: of a GPT, the place in the table; logical ones of an MBR begin at 5. */
  number: number;
  positionBytes: number;
  sizeBytes: number;
}

const SECTOR = 512;
const GPT_MAGIC = 'EFI PART';
const GPT_HEADER_MIN = 92;
/** The kernel's CONFIG and sgdisk stay far below. */
const GPT_ENTRIES_MAX = 1024;
const GPT_ENTRY_BYTES = [128, 256, 512, 1024, 2048, 4096];
const MBR_TABLE_AT = 446;
const MBR_ENTRY_BYTES = 16;
const MBR_SIGNATURE = 0xaa55;
const MBR_EXTENDED = [0x05, 0x0f, 0x85];
const MBR_PROTECTIVE = 0xee;
const LOGICAL_FIRST = 5;
/** The kernel reads no more (256 minors of a disk). */
const LOGICAL_MAX = 251;
const NEXT = 'look at the table: sgdisk -v on a copy';

/** The partitions, in the order of the table; null where there is no table. */
export function readPartitions(source: BlockSource): Partition[] | null {
  for (const unit of [512, 4096]) {
    const primary = gptHeader(source, unit, unit);
    if (primary === null) continue;
    const found = gpt(source, unit, primary) ?? gptCopy(source, unit);
    if (found !== null) return found;
    throw corrupt(source.name, unit, 'GPT: its header or its entries fail their checksum', NEXT);
  }
  if (isProtective(source))
    for (const unit of [512, 4096]) {
      const found = gptCopy(source, unit);
      if (found !== null) return found;
    }
  return mbr(source);
}

/** Is there an MBR that says that a GPT has the device? */
function isProtective(source: BlockSource): boolean {
  return mbrEntries(source, 0)?.some(({ type }) => type === MBR_PROTECTIVE) ?? false;
}

/** The sector with the magic of a header; null: there is none. */
function gptHeader(source: BlockSource, position: number, unit: number): Buffer | null {
  if (position < 0 || position + unit > source.sizeBytes) return null;
  const header = Buffer.alloc(unit);
  source.read(header, 0, unit, position);
  return header.toString('latin1', 0, GPT_MAGIC.length) === GPT_MAGIC ? header : null;
}

function gptCopy(source: BlockSource, unit: number): Partition[] | null {
  const last = Math.floor(source.sizeBytes / unit) - 1;
  const header = gptHeader(source, last * unit, unit);
  return header && gpt(source, unit, header);
}

/** Null where a checksum fails. Throws `corrupt` where the numbers make no sense all the same. */
function gpt(source: BlockSource, unit: number, header: Buffer): Partition[] | null {
  const bytes = header.readUInt32LE(12);
  if (bytes < GPT_HEADER_MIN || bytes > unit) return null;
  const checked = Buffer.from(header.subarray(0, bytes));
  checked.writeUInt32LE(0, 16);
  if (crc32(checked) !== header.readUInt32LE(16)) return null;
  const count = header.readUInt32LE(80);
  const entryBytes = header.readUInt32LE(84);
  const tableAt = Number(header.readBigUInt64LE(72)) * unit;
  const bad = (what: string): Error => corrupt(source.name, tableAt, `GPT: ${what}`, NEXT);
  if (count > GPT_ENTRIES_MAX) throw bad(`${count} entries`);
  if (!GPT_ENTRY_BYTES.includes(entryBytes)) throw bad(`entries of ${entryBytes} bytes`);
  if (tableAt + count * entryBytes > source.sizeBytes) throw bad('its entries lie beyond the end');
  const table = Buffer.alloc(count * entryBytes);
  source.read(table, 0, table.length, tableAt);
  if (crc32(table) !== header.readUInt32LE(88)) return null;
  const found: Partition[] = [];
  for (let i = 0; i < count; i++) {
    const entry = table.subarray(i * entryBytes, (i + 1) * entryBytes);
    if (entry.subarray(0, 16).every(byte => byte === 0)) continue; // not in use
    const first = Number(entry.readBigUInt64LE(32));
    const last = Number(entry.readBigUInt64LE(40));
    if (first > last || (last + 1) * unit > source.sizeBytes)
      throw bad(`partition ${i + 1} goes from sector ${first} to ${last}`);
    found.push({
      number: i + 1,
      positionBytes: first * unit,
      sizeBytes: (last - first + 1) * unit,
    });
  }
  return found;
}

interface MbrEntry {
  type: number;
  first: number;
  sectors: number;
}

function mbrEntries(source: BlockSource, position: number): MbrEntry[] | null {
  if (position + SECTOR > source.sizeBytes) return null;
  const sector = Buffer.alloc(SECTOR);
  source.read(sector, 0, SECTOR, position);
  if (sector.readUInt16LE(510) !== MBR_SIGNATURE) return null;
  return [0, 1, 2, 3].map(i => {
    const at = MBR_TABLE_AT + i * MBR_ENTRY_BYTES;
    return {
      type: sector[at + 4]!,
      first: sector.readUInt32LE(at + 8),
      sectors: sector.readUInt32LE(at + 12),
    };
  });
}

function mbr(source: BlockSource): Partition[] | null {
  const entries = mbrEntries(source, 0);
  if (entries === null) return null;
  const found: Partition[] = [];
  const take = (number: number, base: number, { first, sectors }: MbrEntry, at: number): void => {
    const part = {
      number,
      positionBytes: (base + first) * SECTOR,
      sizeBytes: sectors * SECTOR,
    };
    if (part.positionBytes + part.sizeBytes > source.sizeBytes || base + first === 0)
      throw corrupt(
        source.name,
        at * SECTOR,
        `MBR: partition ${number} has ${sectors} sectors from ${base + first} on`,
        NEXT,
      );
    found.push(part);
  };
  for (const [i, entry] of entries.entries()) {
    if (entry.type === 0 || entry.sectors === 0 || entry.type === MBR_PROTECTIVE) continue;
    if (!MBR_EXTENDED.includes(entry.type)) take(i + 1, 0, entry, 0);
  }
  const extended = entries.find(({ type, sectors }) => MBR_EXTENDED.includes(type) && sectors > 0);
  if (extended !== undefined) logical(source, extended.first, take);
  return found;
}

/** The tables in an extended partition: each has a partition, and where the next one is. */
function logical(
  source: BlockSource,
  start: number,
  take: (number: number, base: number, entry: MbrEntry, at: number) => void,
): void {
  let at = start;
  for (let i = 0; i < LOGICAL_MAX; i++) {
    const entries = mbrEntries(source, at * SECTOR);
    if (entries === null)
      throw corrupt(source.name, at * SECTOR, 'MBR: the chain of logical partitions breaks', NEXT);
    const [own, next] = entries as [MbrEntry, MbrEntry];
    if (own.type !== 0 && own.sectors > 0 && !MBR_EXTENDED.includes(own.type))
      take(LOGICAL_FIRST + i, at, own, at);
    if (next.type === 0 || next.sectors === 0) return;
    at = start + next.first;
  }
  throw corrupt(
    source.name,
    start * SECTOR,
    'MBR: the chain of logical partitions does not end',
    NEXT,
  );
}
