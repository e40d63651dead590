/**
 * Goal: the index of a leaf, made from the blocks that it changed alone, tells the same as an index
 * of the whole, and `diff` tells what two walks of the mounts tell. Method: random histories of
 * real work on mounted copies of a root (seeded); the blocks that differ stand for the leaf.
 */
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { diffLeaf, type FileChange } from '../../src/fsindex/diff.ts';
import { makeLeafIndex, makeRootIndex } from '../../src/fsindex/make.ts';
import { MergedIndex } from '../../src/fsindex/merged.ts';
import type { ByteRange } from '../../src/fsindex/ranges.ts';
import { FileSource } from '../../src/fsindex/source.ts';
import { step } from '../support/file-history.ts';
import { Random } from '../support/random.ts';
import { missing, QUICK } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount');
t.setTimeout(600_000);
const IMAGE_BYTES = 64 << 20;
/** The smallest block of the file systems here: a leaf knows what was written by the sector. */
const BLOCK = 1024;
const ROUNDS = QUICK ? 4 : Number(process.env.UBD_TEST_SEEDS ?? 12);

/** Facts of one path that a diff must tell apart. */
type Walk = Map<string, { type: string; facts: string; bytes: string }>;

function walk(top: string): Walk {
  const found: Walk = new Map();
  const visit = (path: string): void => {
    const full = join(top, path);
    const stats = lstatSync(full, { bigint: true });
    const type = stats.isDirectory() ? 'directory' : stats.isSymbolicLink() ? 'link' : 'file';
    const time = type === 'directory' ? '' : stats.mtimeNs;
    const bytes =
      type === 'file'
        ? readFileSync(full).toString('base64')
        : type === 'link'
          ? readlinkSync(full)
          : '';
    found.set(path || '/', { type, facts: `${stats.mode} ${stats.uid} ${time}`, bytes });
    if (type === 'directory') for (const name of readdirSync(full)) visit(`${path}/${name}`);
  };
  visit('');
  return found;
}

/**
 * What a diff says, as two walks would tell it: a directory that was renamed takes along what was
 * in it, but for what is said to be deleted or to have gone elsewhere.
 */
function spread(changes: readonly FileChange[], before: Walk): Map<string, string> {
  const said = new Map<string, string>();
  // Where something was before, something else is now.
  const put = (path: string): void => {
    said.set(path, before.has(path) ? 'modified' : 'added');
  };
  const left = new Set<string>();
  for (const { path, change, from } of changes) {
    if (change === 'deleted') left.add(path);
    if (change === 'renamed') left.add(from!);
  }
  const leftWith = (path: string, top: string): boolean => {
    for (let at = path; at.length > top.length; at = at.slice(0, at.lastIndexOf('/')))
      if (left.has(at)) return true;
    return false;
  };
  for (const path of left) {
    said.set(path, 'deleted');
    for (const old of before.keys()) if (old.startsWith(`${path}/`)) said.set(old, 'deleted');
  }
  for (const { path, change, from } of changes) {
    if (change === 'added' || change === 'modified') put(path);
    if (change !== 'renamed') continue;
    for (const old of before.keys())
      if (old === from || (old.startsWith(`${from}/`) && !leftWith(old, from!)))
        put(path + old.slice(from!.length));
  }
  return said;
}

/** What two walks tell. */
function truth(before: Walk, after: Walk): Map<string, string> {
  const found = new Map<string, string>();
  for (const [path, then] of before) {
    const now = after.get(path);
    if (now === undefined) found.set(path, 'deleted');
    else if (now.facts !== then.facts || now.bytes !== then.bytes || now.type !== then.type)
      found.set(path, 'modified');
  }
  for (const path of after.keys()) if (!before.has(path)) found.set(path, 'added');
  return found;
}

/** The blocks in which two images differ. */
function changedBlocks(a: string, b: string): ByteRange[] {
  const [old, now] = [readFileSync(a), readFileSync(b)];
  const ranges: ByteRange[] = [];
  for (let at = 0; at < now.length; at += BLOCK)
    if (old.compare(now, at, at + BLOCK, at, at + BLOCK) !== 0)
      ranges.push({ position: at, length: BLOCK });
  return ranges;
}

/** All that an index tells, for comparison. */
function content(index: MergedIndex): unknown[] {
  const rows = (sql: string): unknown[] => index.database.prepare(sql).all();
  return [
    rows(
      `SELECT number, mode, size, links, mtime, fingerprint, target, hex(digest)
       FROM inodes ORDER BY 1`,
    ),
    rows('SELECT parent, name, inode FROM entries ORDER BY 1, 2'),
  ];
}

/** The first two get all rounds, the others some. */
const FEATURES: readonly [name: string, options: readonly string[], rounds: number][] = [
  ['ext4', ['-t', 'ext4', '-b', '4096'], ROUNDS],
  ['ext4 with inline data', ['-t', 'ext4', '-b', '4096', '-O', 'inline_data'], ROUNDS],
  ['ext4, small blocks', ['-t', 'ext4', '-b', '1024', '-O', '^64bit,^metadata_csum'], 3],
  ['ext4 with clusters', ['-t', 'ext4', '-b', '4096', '-O', 'bigalloc', '-C', '16384'], 3],
  ['ext4, meta groups', ['-t', 'ext4', '-b', '1024', '-O', 'meta_bg,^resize_inode'], 3],
  ['ext3', ['-t', 'ext3', '-b', '1024'], 3],
  ['ext2', ['-t', 'ext2', '-b', '1024', '-I', '128'], 3],
];

for (const [name, features, rounds] of FEATURES)
  t.test(`${name}: a leaf's index equals the whole, its diff two walks`, { skip }, async t => {
    const dir = mkdtempSync(join(tmpdir(), 'ubd-changes-'));
    const [root, leaf, mnt] = ['root', 'leaf', 'mnt'].map(file => join(dir, file)) as [
      string,
      string,
      string,
    ];
    mkdirSync(mnt);
    t.teardown(async () => {
      await run('umount', ['-q', mnt]).catch(() => {});
      rmSync(dir, { recursive: true, force: true });
    });
    writeFileSync(root, '');
    truncateSync(root, IMAGE_BYTES);
    await run('mke2fs', ['-q', '-F', ...features, root]);
    await run('mount', ['-o', 'loop', root, mnt]);
    for (let i = 0; i < 60; i++) step(mnt, new Random(i), i);
    await run('umount', [mnt]);
    await run('mount', ['-o', 'loop,ro', root, mnt]);
    const before = walk(mnt);
    await run('umount', [mnt]);
    const source = (path: string): FileSource =>
      new FileSource(path, openSync(path, 'r'), IMAGE_BYTES);
    const rootIndex = join(dir, 'root.index');
    const options = { digests: true, about: {} };
    makeRootIndex(source(root), 'the root', { ...options, output: rootIndex });
    const first = readFileSync(rootIndex);
    let changesSeen = 0;
    for (let seed = 0; seed < rounds; seed++) {
      const random = new Random(1000 + seed);
      copyFileSync(root, leaf);
      await run('mount', ['-o', 'loop', leaf, mnt]);
      for (let i = random.between(1, 25); i > 0; i--) step(mnt, random, 1000 * (seed + 1) + i);
      // Half of them as a device in use is found: with a journal that was not replayed.
      const inUse = !name.startsWith('ext2') && random.chance(0.5);
      if (inUse) {
        await run('sync', ['-f', mnt]);
        copyFileSync(leaf, `${leaf}.live`);
      }
      await run('umount', [mnt]);
      if (inUse) renameSync(`${leaf}.live`, leaf);
      copyFileSync(leaf, `${leaf}.replayed`);
      await run('mount', ['-o', 'loop', `${leaf}.replayed`, mnt]);
      const after = walk(mnt);
      await run('umount', [mnt]);

      const [whole, part] = [join(dir, 'whole.index'), join(dir, 'leaf.index')];
      makeRootIndex(source(leaf), 'whole', { ...options, output: whole });
      makeLeafIndex(source(leaf), changedBlocks(root, leaf), rootIndex, {
        ...options,
        output: part,
      });
      const [full, merged, old] = [
        MergedIndex.open(whole),
        MergedIndex.openLeaf(part, rootIndex),
        MergedIndex.open(rootIndex),
      ];
      t.same(content(merged), content(full), `seed ${seed}: merged as the whole`);
      const diff = diffLeaf(merged, old);
      const [said, is] = [spread(diff, before), truth(before, after)];
      changesSeen += is.size;
      t.same(
        [...said].sort(),
        [...is].sort(),
        `seed ${seed}: the diff tells what the walks tell (${is.size} changes)`,
      );
      for (const index of [full, merged, old]) index.close();
    }
    t.ok(changesSeen > rounds, 'there were changes');
    t.same(readFileSync(rootIndex), first, "the root's index was not written");
    t.notOk(
      readdirSync(dir).some(file => file.endsWith('.new')),
      'nothing is left behind',
    );
    t.ok(existsSync(rootIndex));
  });
