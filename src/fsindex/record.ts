/**
 * What an index knows of a file system, whatever kind it is and however it was read: inodes, the
 * names that lead to them, and the blocks that hold them. A reader (ext4/) makes these; the
 * database (database.ts) keeps them.
 */

/** As in stat(2). Sizes in bytes. */
export interface InodeRecord {
  number: number;
  mode: number;
  uid: number;
  gid: number;
  sizeBytes: number;
  links: number;
  modifiedSeconds: number;
  modifiedNanoseconds: number;
  changedSeconds: number;
  changedNanoseconds: number;
  allocatedBytes: number;
  /** Tells two files apart that had the same number one after the other. */
  generation: number;
  /** CRC-32 of everything that the file system keeps for the inode, but for its access time. */
  fingerprint: number;
  /** Target of a symbolic link; as it is, or with U+FFFD where it is not UTF-8. */
  target: string | null;
  /** SHA-256 of the content of a regular file, where it was asked for. */
  digest: Buffer | null;
}

/** A name in a directory. */
export interface EntryRecord {
  parent: number;
  /** With U+FFFD where it is not UTF-8. */
  name: string;
  /** The bytes of a name that is not UTF-8. */
  raw: Buffer | null;
  inode: number;
}

/** What a run of blocks holds. */
export const USE = {
  /** Content of a file or directory. */
  CONTENT: 0,
  /** The map of a file's blocks, or its attributes. */
  MAP: 1,
} as const;
export type Use = (typeof USE)[keyof typeof USE];

/** Bytes of the device that belong to an inode. */
export interface ExtentRecord {
  positionBytes: number;
  lengthBytes: number;
  inode: number;
  /** Byte offset in the file; of a map, 0. */
  offsetBytes: number;
  use: Use;
}

/** The file system itself. */
export interface FileSystemRecord {
  kind: string;
  uuid: string;
  label: string;
  blockBytes: number;
  /** Inode of the top directory. */
  rootInode: number;
}

const decoder = new TextDecoder('utf-8', { fatal: true });

/** A name as text, and its bytes where the text cannot stand for them. */
export function decodeName(bytes: Buffer): { name: string; raw: Buffer | null } {
  try {
    return { name: decoder.decode(bytes), raw: null };
  } catch {
    return { name: bytes.toString('utf8'), raw: Buffer.from(bytes) };
  }
}
