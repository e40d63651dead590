/**
 * The contents of files of a view, however its file system is read: from the blocks by the number
 * of the inode, or below the mount by the path. Links are not followed.
 */
import { closeSync, readSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { native } from '../native/binding.ts';
import type { View, Views } from './files.ts';
import type { Volume } from './volumes.ts';

const PIECE_BYTES = 1 << 20;
/** <fcntl.h>: of what is no directory, no link and no pipe. */
const O_NOFOLLOW_NONBLOCK = 0o400000 | 0o4000;

export interface Contents {
  /** Calls `onPiece` with the content of a regular file, in order. The piece is used up then. */
  read(file: FileOf, onPiece: (piece: Buffer) => void): void;
}

/** A regular file of an index. */
export interface FileOf {
  inode: number;
  sizeBytes: number;
  /** From the top directory on, as the bytes of the names, without a slash in front. */
  path: Buffer;
}

/** Of the present state of a view; of a leaf, with `before`, of its root's. */
export async function contentsOf(
  view: View,
  { mounts }: Views,
  before: boolean = false,
): Promise<Contents> {
  const volume = before && view.root !== null ? view.root.volume : view.volume;
  if (volume.content.how === 'blocks') return blockContents(volume);
  const use = before ? mounts.root : mounts.image;
  return mountContents(await use.open(volume), volume.source.name);
}

function blockContents({ source }: Volume): Contents {
  const fs = Ext4.open(source);
  return {
    read({ inode: number }, onPiece) {
      const inode = fs.inode(number);
      const blocks = fs.blocks(inode);
      for (let at = 0; at < inode.sizeBytes; at += PIECE_BYTES)
        onPiece(fs.content(inode, at, PIECE_BYTES, blocks));
    },
  };
}

function mountContents(top: number, name: string): Contents {
  return {
    read({ path }, onPiece) {
      const fd = native.openBelow(top, path, O_NOFOLLOW_NONBLOCK);
      if (fd < 0)
        throw new UbdError('io', `${name}: /${path.toString()} cannot be opened (errno ${-fd})`, {
          place: { file: name },
        });
      try {
        const piece = Buffer.allocUnsafe(PIECE_BYTES);
        for (let at = 0; ; ) {
          const count = readSync(fd, piece, 0, piece.length, at);
          if (count === 0) return;
          onPiece(piece.subarray(0, count));
          at += count;
        }
      } finally {
        closeSync(fd);
      }
    },
  };
}

/** A whole file of at most `bytesMax`; null where it is longer. */
export function wholeFile(contents: Contents, file: FileOf, bytesMax: number): Buffer | null {
  if (file.sizeBytes > bytesMax) return null;
  const pieces: Buffer[] = [];
  contents.read(file, piece => pieces.push(Buffer.from(piece)));
  return Buffer.concat(pieces);
}
