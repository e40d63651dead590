/**
 * One file with everything that a copy must keep, as the kernel would show it: attributes have the
 * names and values of getxattr(2), whatever form they have on the disk.
 */
import type { FileBlocks } from './extents.ts';
import type { Ext4 } from './filesystem.ts';
import { INODE, INODE_BYTES_OLD, INODE_FLAG, TYPE } from './format.ts';
import { damaged } from './geometry.ts';
import { type Inode, type Moment, typeOf } from './inode.ts';

/** FS_*_FL of <linux/fs.h> that chattr(1) sets and that mean the same on every ext file system. */
const FLAGS_KEPT = 0x08 | 0x10 | 0x20 | 0x40 | 0x80 | 0x1_0000; // S i a d A D
/** struct ext4_inode: time of the last access. */
const ACCESSED_AT = 0x08;
const ACCESSED_AT_EXTRA = 0x8c;

export interface ByteRun {
  position: number;
  length: number;
}

export class Ext4File {
  readonly inode: Inode;
  readonly #fs: Ext4;
  #blocks: FileBlocks | undefined;

  constructor(fs: Ext4, number: number) {
    this.#fs = fs;
    this.inode = fs.inode(number);
  }

  get type(): number {
    return typeOf(this.inode);
  }

  get sizeBytes(): number {
    return this.inode.sizeBytes;
  }

  get accessed(): Moment {
    const { bytes } = this.inode;
    const seconds = bytes.readInt32LE(ACCESSED_AT);
    const extraBytes = bytes.length > INODE_BYTES_OLD ? bytes.readUInt16LE(INODE.EXTRA_BYTES) : 0;
    if (INODE_BYTES_OLD + extraBytes < ACCESSED_AT_EXTRA + 4) return { seconds, nanoseconds: 0 };
    const more = bytes.readUInt32LE(ACCESSED_AT_EXTRA);
    return { seconds: seconds + (more & 3) * 2 ** 32, nanoseconds: more >>> 2 };
  }

  /** As FS_IOC_SETFLAGS takes them: immutable, append-only and their kin. */
  get flags(): number {
    return this.inode.flags & FLAGS_KEPT;
  }

  /** Is it encrypted by the file system? Then its content means nothing elsewhere. */
  get isEncrypted(): boolean {
    return (this.inode.flags & INODE_FLAG.ENCRYPTED) !== 0;
  }

  /** Of a device node, as old_decode_dev and new_decode_dev of the kernel read it. */
  get device(): { major: number; minor: number } {
    const old = this.inode.blockArea.readUInt32LE(0);
    if (old !== 0) return { major: (old >>> 8) & 0xff, minor: old & 0xff };
    const wide = this.inode.blockArea.readUInt32LE(4);
    return { major: (wide >>> 8) & 0xfff, minor: (wide & 0xff) | ((wide >>> 12) & 0xfff00) };
  }

  get target(): Buffer {
    return this.#fs.linkTarget(this.inode);
  }

  /** By name, in the order of the names. */
  attributes(): Map<string, Buffer> {
    const found = this.#fs
      .attributes(this.inode)
      .filter(({ name }) => name !== 'system.data')
      .map(({ name, value }) => [name, this.#valueOf(name, value)] as const)
      .sort(([a], [b]) => (a < b ? -1 : 1));
    return new Map(found);
  }

  /** Where it has data, in order; all else up to its size is holes. */
  runs(): ByteRun[] {
    const { sizeBytes, flags } = this.inode;
    if (this.type !== TYPE.FILE || sizeBytes === 0) return [];
    if ((flags & INODE_FLAG.INLINE_DATA) !== 0) return [{ position: 0, length: sizeBytes }];
    const { blockBytes } = this.#fs.geometry;
    const runs: ByteRun[] = [];
    for (const { logical, count, unwritten } of this.#map().extents) {
      const position = logical * blockBytes;
      const length = Math.min(sizeBytes, position + count * blockBytes) - position;
      if (unwritten || length <= 0) continue;
      const last = runs.at(-1);
      if (last !== undefined && last.position + last.length === position) last.length += length;
      else runs.push({ position, length });
    }
    return runs;
  }

  /** Holes read as zeroes; fewer bytes at the end. */
  read(position: number, length: number): Buffer {
    const inline = (this.inode.flags & INODE_FLAG.INLINE_DATA) !== 0;
    return this.#fs.content(this.inode, position, length, inline ? undefined : this.#map());
  }

  #map(): FileBlocks {
    this.#blocks ??= this.#fs.blocks(this.inode);
    return this.#blocks;
  }

  #valueOf(name: string, value: Buffer): Buffer {
    if (name !== 'system.posix_acl_access' && name !== 'system.posix_acl_default') return value;
    const { number } = this.inode;
    const acl = toPosixAcl(value);
    if (acl === null) throw damaged(this.#fs.geometry, 0, `inode ${number}: ${name} is no ACL`);
    return acl;
  }
}

const ACL_USER = 0x02;
const ACL_GROUP = 0x08;
const ACL_VERSION_DISK = 1;
const ACL_VERSION = 2;
/** ACL_UNDEFINED_ID of <linux/posix_acl.h> */
const NO_ID = 0xffff_ffff;

/**
 * An access control list as system calls have it, from that of the disk; null where it is none.
 *
 *     disk (fs/ext4/acl.h)              version u32 │ tag u16, permissions u16 [, id u32] …
 *     call (linux/posix_acl_xattr.h)    version u32 │ tag u16, permissions u16, id u32 …
 */
export function toPosixAcl(disk: Buffer): Buffer | null {
  if (disk.length < 4 || disk.readUInt32LE(0) !== ACL_VERSION_DISK) return null;
  const head = Buffer.alloc(4);
  head.writeUInt32LE(ACL_VERSION);
  const parts = [head];
  for (let at = 4; at < disk.length; ) {
    if (at + 4 > disk.length) return null;
    const tag = disk.readUInt16LE(at);
    const hasId = tag === ACL_USER || tag === ACL_GROUP;
    if (hasId && at + 8 > disk.length) return null;
    const entry = Buffer.alloc(8);
    disk.copy(entry, 0, at, at + 4);
    entry.writeUInt32LE(hasId ? disk.readUInt32LE(at + 4) : NO_ID, 4);
    parts.push(entry);
    at += hasId ? 8 : 4;
  }
  return Buffer.concat(parts);
}
