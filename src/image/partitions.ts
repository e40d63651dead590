/**
 * Where partitions start, as far as the first 128 KiB of a root tell: GPT at sector 1, else the
 * four entries of an MBR. For the fingerprint alone, so anything odd is left out instead of
 * refused.
 */
import { layout, u32, u64, zero } from '../base/layout.ts';
import { SECTOR_BYTES } from '../base/units.ts';

const GPT_MAGIC = 'EFI PART';

/** The fields of the GPT header that matter here (UEFI 2.10, table 5.5), from byte 72 on. */
const GPT_TABLE = layout('gpt header, from 72', { entriesLba: u64, count: u32, entryBytes: u32 });
const GPT_TABLE_AT = SECTOR_BYTES + 72;
/**
 * Bytes of a GPT entry before its first sector: type and own GUID. A type of zero is an unused
 * entry.
 */
const GPT_GUID = zero(16);
const GPT_START_AT = 32;

const MBR_TABLE_AT = 446;
const MBR_ENTRY_BYTES = 16;
const MBR_SIGNATURE = 0xaa55;
const MBR_PROTECTIVE = 0xee;

/**
 * Byte positions of the partitions, in the order of the table; those outside of the root are left
 * out.
 */
export function partitionStarts(head: Buffer, sizeBytes: number): number[] {
  const sectors = gptStarts(head) ?? mbrStarts(head);
  return sectors
    .map(sector => sector * SECTOR_BYTES)
    .filter(position => position > 0 && position < sizeBytes);
}

function gptStarts(head: Buffer): number[] | undefined {
  if (head.length < 2 * SECTOR_BYTES) return undefined;
  if (head.toString('latin1', SECTOR_BYTES, SECTOR_BYTES + 8) !== GPT_MAGIC) return undefined;
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  try {
    const { entriesLba, count, entryBytes } = GPT_TABLE.read(view, GPT_TABLE_AT);
    const starts: number[] = [];
    if (entryBytes < 128) return starts;
    for (let i = 0; i < count; i++) {
      const at = entriesLba * SECTOR_BYTES + i * entryBytes;
      if (at + entryBytes > head.length) break;
      if (!GPT_GUID.read(view, at)) starts.push(u64.read(view, at + GPT_START_AT));
    }
    return starts;
  } catch {
    return []; // numbers beyond 2^53: not a table that anyone wrote on purpose
  }
}

function mbrStarts(head: Buffer): number[] {
  if (head.length < SECTOR_BYTES || head.readUInt16LE(510) !== MBR_SIGNATURE) return [];
  const starts: number[] = [];
  for (let i = 0; i < 4; i++) {
    const at = MBR_TABLE_AT + i * MBR_ENTRY_BYTES;
    const type = head[at + 4];
    if (type !== 0 && type !== MBR_PROTECTIVE) starts.push(head.readUInt32LE(at + 8));
  }
  return starts;
}
