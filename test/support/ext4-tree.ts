/**
 * Two views of one file system for comparison: as our reader sees its blocks, and as the kernel
 * shows it under a mount point. A tree is a map from path to everything that an index knows.
 */
import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { type Ext4, isDirectory } from '../../src/fsindex/ext4/filesystem.ts';
import { TYPE } from '../../src/fsindex/ext4/format.ts';
import { typeOf } from '../../src/fsindex/ext4/inode.ts';

export type Tree = Map<string, string>;

const sha = (bytes: Buffer): string =>
  createHash('sha256').update(bytes).digest('hex').slice(0, 16);

interface Facts {
  ino: number;
  mode: number;
  uid: number;
  gid: number;
  links: number;
  mtime: bigint;
  content: string;
}

const line = ({ ino, mode, uid, gid, links, mtime, content }: Facts): string =>
  `${ino} ${mode.toString(8)} ${uid}:${gid} ${links} ${mtime} ${content}`;

/** As the reader sees it. */
export function readTree(fs: Ext4): Tree {
  const tree: Tree = new Map();
  const visit = (number: number, path: string): void => {
    const inode = fs.inode(number);
    const type = typeOf(inode);
    const content =
      type === TYPE.FILE
        ? `${inode.sizeBytes} ${sha(fs.content(inode, 0, inode.sizeBytes))}`
        : type === TYPE.LINK
          ? fs.linkTarget(inode).toString('latin1')
          : '';
    const mtime =
      BigInt(inode.modified.seconds) * 1_000_000_000n + BigInt(inode.modified.nanoseconds);
    tree.set(path, line({ ...inode, ino: number, mtime, content }));
    if (!isDirectory(inode)) return;
    const entries: [string, number][] = [];
    fs.eachEntry(inode, (name, entry) => entries.push([name.toString('latin1'), entry]));
    for (const [name, entry] of entries) visit(entry, `${path}/${name}`);
  };
  visit(fs.root, '');
  return tree;
}

/** As the kernel shows it. */
export function walkTree(mountPoint: string): Tree {
  const tree: Tree = new Map();
  const visit = (path: string): void => {
    const full = Buffer.from(join(mountPoint, path), 'latin1');
    const stats = lstatSync(full, { bigint: true });
    const content = stats.isFile()
      ? `${stats.size} ${sha(readFileSync(full))}`
      : stats.isSymbolicLink()
        ? readlinkSync(full, 'buffer').toString('latin1')
        : '';
    tree.set(
      path,
      line({
        ino: Number(stats.ino),
        mode: Number(stats.mode),
        uid: Number(stats.uid),
        gid: Number(stats.gid),
        links: Number(stats.nlink),
        mtime: stats.mtimeNs,
        content,
      }),
    );
    if (!stats.isDirectory()) return;
    for (const name of readdirSync(full, 'buffer')) visit(`${path}/${name.toString('latin1')}`);
  };
  visit('');
  return tree;
}

/** What differs, one line each. */
export function differences(a: Tree, b: Tree): string[] {
  const found: string[] = [];
  for (const [path, facts] of a)
    if (b.get(path) !== facts) found.push(`${path}: ${facts} | ${b.get(path) ?? 'is not there'}`);
  for (const path of b.keys()) if (!a.has(path)) found.push(`${path}: only in the second`);
  return found;
}
