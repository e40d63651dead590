/**
 * Directory blocks. A tree of hashes (htree) needs no care: its index blocks look like blocks with
 * empty entries, which is what old kernels rely on, too.
 *
 *     inode u32 │ length u16 │ name length u8 │ type u8 │ name …      length up to the next entry
 */

import { BLOCK_AREA_BYTES, ENTRY_HEADER_BYTES } from './format.ts';
import { damaged, type Ext4Geometry } from './geometry.ts';

/** @param name a view into a buffer that is reused: copy what must outlive the call */
export type OnEntry = (name: Buffer, inode: number) => void;

const DOT = 0x2e;
/** A length of 65536 does not fit 16 bits (blocks of 64 KiB): these stand for it. */
const WHOLE_BLOCK = [0, 65535] as const;

/**
 * Calls `onEntry` for the entries of one block, but for `.`, `..` and what is deleted.
 * @param block number on the device, for messages
 */
export function readEntries(
  fs: Ext4Geometry,
  directory: number,
  bytes: Buffer,
  block: number,
  onEntry: OnEntry,
): void {
  const fail = (at: number, why: string): never => {
    throw damaged(fs, block, `directory inode ${directory}: entry at ${at} ${why}`);
  };
  const end = bytes.length;
  for (let at = 0; at + ENTRY_HEADER_BYTES <= end; ) {
    const inode = bytes.readUInt32LE(at);
    let length = bytes.readUInt16LE(at + 4);
    if (end === 65536 && WHOLE_BLOCK.includes(length as 0 | 65535)) length = 65536 - at;
    const nameLength = fs.entriesHaveTypes ? bytes[at + 6]! : bytes.readUInt16LE(at + 6);
    if (length < ENTRY_HEADER_BYTES || length % 4 !== 0 || at + length > end)
      fail(at, `is ${length} bytes long`);
    if (inode !== 0) {
      const from = at + ENTRY_HEADER_BYTES;
      if (nameLength === 0 || nameLength > 255 || ENTRY_HEADER_BYTES + nameLength > length)
        fail(at, `has a name of ${nameLength} bytes`);
      if (inode > fs.inodesCount) fail(at, `refers to inode ${inode}`);
      const dots =
        bytes[from] === DOT && (nameLength === 1 || (nameLength === 2 && bytes[from + 1] === DOT));
      if (!dots) {
        const name = bytes.subarray(from, from + nameLength);
        if (name.includes(0x2f) || name.includes(0)) fail(at, 'has a name with a slash or a zero');
        onEntry(name, inode);
      }
    }
    at += length;
  }
}

/** A small directory within its inode: the parent's number (u32), entries; the rest of them in an
 * attribute. */
export function readInlineEntries(
  fs: Ext4Geometry,
  directory: number,
  area: Buffer,
  rest: Buffer,
  onEntry: OnEntry,
): void {
  readEntries(fs, directory, area.subarray(4, BLOCK_AREA_BYTES), 0, onEntry);
  if (rest.length > 0) readEntries(fs, directory, rest, 0, onEntry);
}
