/**
 * One of the three trees of a rebase: what its index says, and the files themselves, read from
 * their blocks.
 */
import { Ext4File } from '../fsindex/ext4/file.ts';
import type { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { TYPE } from '../fsindex/ext4/format.ts';
import type { MergedIndex } from '../fsindex/merged.ts';
import { PathTree } from '../fsindex/path-tree.ts';

const PIECE_BYTES = 1 << 20;
const PERMISSIONS = 0o7777;

export class Side {
  readonly tree: PathTree;
  readonly fs: Ext4;
  readonly #index: MergedIndex;

  constructor(index: MergedIndex, fs: Ext4) {
    this.#index = index;
    this.tree = new PathTree(index);
    this.fs = fs;
  }

  file(number: number): Ext4File {
    return new Ext4File(this.fs, number);
  }

  /** Names of a file that is not a directory: those share it (hard links). */
  names(number: number): string[] {
    return this.tree.isDirectory(number) ? [] : this.tree.paths(number);
  }

  close(): void {
    this.#index.close();
  }
}

/** A file on one side. */
export interface Version {
  side: Side;
  number: number;
}

/** What differs between two versions of one path. Times are not looked at. */
export interface Difference {
  /** Another kind of thing, another link target, another device. */
  kind: boolean;
  /** The bytes of a regular file. */
  content: boolean;
  /** Mode, owner, flags, extended attributes, access control lists. */
  metadata: boolean;
  /** With which other names it shares one file. */
  names: boolean;
}

export function isSame({ kind, content, metadata, names }: Difference): boolean {
  return !kind && !content && !metadata && !names;
}

export function compareVersions(a: Version, b: Version): Difference {
  const x = a.side.file(a.number);
  const y = b.side.file(b.number);
  const kind = x.type !== y.type || kindDiffers(x, y);
  return {
    kind,
    content: !kind && x.type === TYPE.FILE && contentDiffers(x, y),
    metadata: metadataDiffers(x, y),
    names: namesDiffer(a, b),
  };
}

function kindDiffers(x: Ext4File, y: Ext4File): boolean {
  if (x.type === TYPE.LINK) return !x.target.equals(y.target);
  if (x.type !== TYPE.CHARACTER && x.type !== TYPE.BLOCK) return false;
  return x.device.major !== y.device.major || x.device.minor !== y.device.minor;
}

function contentDiffers(x: Ext4File, y: Ext4File): boolean {
  if (x.sizeBytes !== y.sizeBytes) return true;
  // What is a hole in both need not be read.
  const starts = [...x.runs(), ...y.runs()].sort((a, b) => a.position - b.position);
  let at = 0;
  for (const { position, length } of starts)
    for (at = Math.max(at, position); at < position + length; at += PIECE_BYTES)
      if (!x.read(at, PIECE_BYTES).equals(y.read(at, PIECE_BYTES))) return true;
  return false;
}

function metadataDiffers(x: Ext4File, y: Ext4File): boolean {
  const [a, b] = [x.inode, y.inode];
  if (a.uid !== b.uid || a.gid !== b.gid || x.flags !== y.flags) return true;
  // The mode of a link means nothing.
  if (x.type !== TYPE.LINK && (a.mode & PERMISSIONS) !== (b.mode & PERMISSIONS)) return true;
  const [attributes, others] = [x.attributes(), y.attributes()];
  if (attributes.size !== others.size) return true;
  for (const [name, value] of attributes) if (!others.get(name)?.equals(value)) return true;
  return false;
}

function namesDiffer(a: Version, b: Version): boolean {
  const [names, others] = [a.side.names(a.number), b.side.names(b.number)];
  return names.length !== others.length || names.some((name, i) => name !== others[i]);
}
