/**
 * Goal: the index of a leaf, made from the blocks that it changed alone, tells the same as an index
 * of the whole, and `diff` tells what `rsync -n -a -c -A -X --delete` tells of both mounts. Method:
 * random histories of real work on mounted copies of a root (seeded); the blocks that differ stand
 * for the leaf. Work goes on then, and an index that goes on from the first one is compared, row by
 * row, with one that was made from nothing.
 */
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { diffLeaf } from '../../src/fsindex/diff.ts';
import { makeLeafIndex, makeRootIndex } from '../../src/fsindex/make.ts';
import { MergedIndex } from '../../src/fsindex/merged.ts';
import { openIndex } from '../../src/fsindex/open.ts';
import type { ByteRange } from '../../src/fsindex/ranges.ts';
import { FileSource } from '../../src/fsindex/source.ts';
import { openDatabase } from '../../src/fsindex/sqlite.ts';
import { BlockContents } from '../../src/life/contents.ts';
import { blocksCloser } from '../../src/life/same-files.ts';
import { step } from '../support/file-history.ts';
import { Random } from '../support/random.ts';
import { missing, QUICK } from '../support/requires.ts';
import { paths, quarrels, rsync, spread } from '../support/rsync-truth.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount', 'rsync');
t.setTimeout(600_000);
type Four = [string, string, string, string];
const IMAGE_BYTES = 32 << 20;
/** In memory, where there is such a place: half of the time would be waits for a disk. */
const PLACE = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
/** The smallest block of the file systems here: a leaf knows what was written by the sector. */
const BLOCK = 1024;
const ROUNDS = QUICK ? 4 : Number(process.env.UBD_TEST_SEEDS ?? 12);

/** Holes stay holes: an image is mostly that, and this is what a round would wait for. */
function copyImage(from: string, to: string): Promise<string> {
  return run('cp', ['--sparse=auto', '--reflink=auto', from, to]);
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

/** All rows of a leaf's index, but for the numbers of the entries. */
function rows(path: string): unknown[] {
  const index = openIndex(path);
  const all = [
    'SELECT * FROM inode ORDER BY 1',
    'SELECT * FROM extent ORDER BY 1',
    'SELECT parent, name, raw, inode FROM entry ORDER BY 1, 2, 4',
    'SELECT * FROM touched_inode ORDER BY 1',
    'SELECT number, hex(digest) FROM touched_directory ORDER BY 1',
  ].map(sql => index.prepare(sql).all());
  index.close();
  return all;
}

/** The first two get all rounds, the others some. */
const FEATURES: readonly [name: string, options: readonly string[], rounds: number][] = [
  ['ext4', ['-t', 'ext4', '-b', '4096', '-O', '64bit,dir_index,huge_file'], ROUNDS],
  ['ext4 with inline data', ['-t', 'ext4', '-b', '4096', '-O', 'inline_data'], ROUNDS],
  ['ext4, small blocks', ['-t', 'ext4', '-b', '1024', '-O', '^64bit,^metadata_csum'], 3],
  ['ext4 with clusters', ['-t', 'ext4', '-b', '4096', '-O', 'bigalloc', '-C', '16384'], 3],
  ['ext4, meta groups', ['-t', 'ext4', '-b', '1024', '-O', 'meta_bg,^resize_inode'], 3],
  ['ext3', ['-t', 'ext3', '-b', '1024'], 3],
  ['ext2', ['-t', 'ext2', '-b', '1024', '-I', '128'], 3],
];

for (const [name, features, rounds] of FEATURES)
  t.test(
    `${name}: a leaf's index equals the whole, its diff is what rsync says`,
    { skip },
    async t => {
      const dir = mkdtempSync(join(PLACE, 'ubd-changes-'));
      const names = ['root', 'leaf', 'mnt', 'old'] as const;
      const [root, leaf, mnt, old] = names.map(file => join(dir, file)) as Four;
      for (const place of [mnt, old]) mkdirSync(place);
      t.teardown(async () => {
        for (const place of [mnt, old]) await run('umount', ['-q', place]).catch(() => {});
        rmSync(dir, { recursive: true, force: true });
      });
      writeFileSync(root, '');
      truncateSync(root, IMAGE_BYTES);
      await run('mke2fs', ['-q', '-F', ...features, root]);
      await run('mount', ['-o', 'loop', root, mnt]);
      for (let i = 0; i < 60; i++) step(mnt, new Random(i), i);
      await run('umount', [mnt]);
      await run('mount', ['-o', 'loop,ro', root, old]);
      const before = paths(old);
      const source = (path: string): FileSource =>
        new FileSource(path, openSync(path, 'r'), IMAGE_BYTES);
      const rootIndex = join(dir, 'root.index');
      const options = { digests: true, about: {} };
      await makeRootIndex(source(root), 'the root', { ...options, output: rootIndex });
      const first = readFileSync(rootIndex);
      let changesSeen = 0;
      for (let seed = 0; seed < rounds; seed++) {
        const random = new Random(1000 + seed);
        await copyImage(root, leaf);
        await run('mount', ['-o', 'loop', leaf, mnt]);
        for (let i = random.between(1, 25); i > 0; i--) step(mnt, random, 1000 * (seed + 1) + i);
        // Half of them as a device in use is found: with a journal that was not replayed.
        const inUse = !name.startsWith('ext2') && random.chance(0.5);
        if (inUse) {
          await run('sync', ['-f', mnt]);
          await copyImage(leaf, `${leaf}.live`);
        }
        await run('umount', [mnt]);
        if (inUse) renameSync(`${leaf}.live`, leaf);
        await copyImage(leaf, `${leaf}.replayed`);
        await run('mount', ['-o', 'loop', `${leaf}.replayed`, mnt]);
        const is = await rsync(old, mnt, before);
        await run('umount', [mnt]);

        const [whole, part] = [join(dir, 'whole.index'), join(dir, 'leaf.index')];
        await makeRootIndex(source(leaf), 'whole', { ...options, output: whole });
        const changed = changedBlocks(root, leaf);
        makeLeafIndex(source(leaf), changed, rootIndex, { ...options, output: part });
        const [full, merged, below] = [
          MergedIndex.open(whole),
          MergedIndex.openLeaf(part, rootIndex),
          MergedIndex.open(rootIndex),
        ];
        t.same(content(merged), content(full), `seed ${seed}: merged as the whole`);
        const closer = blocksCloser(
          new BlockContents({ source: source(root) }),
          new BlockContents({ source: source(leaf) }),
          changed,
        );
        const said = spread(diffLeaf(merged, below, closer), before);
        changesSeen += is.size;
        t.same(quarrels(said, is), [], `seed ${seed}: as rsync says (${is.size} changes)`);
        for (const index of [full, merged, below]) index.close();

        const bare = { digests: false, about: { digests: 0 } };
        const first = { ...bare, output: part };
        makeLeafIndex(source(leaf), changed, rootIndex, first);
        await run('mount', ['-o', 'loop', leaf, mnt]);
        for (let i = random.between(1, 6); i > 0; i--)
          step(mnt, random, 1000 * (seed + 1) + 50 + i);
        await run('sync', ['-f', mnt]);
        if (inUse) await copyImage(leaf, `${leaf}.live`);
        await run('umount', [mnt]);
        if (inUse) renameSync(`${leaf}.live`, leaf);
        const now = [...changed, ...changedBlocks(root, leaf)];
        const [again, anew] = [join(dir, 'again.index'), join(dir, 'anew.index')];
        makeLeafIndex(source(leaf), now, rootIndex, { ...bare, output: again, previous: part });
        makeLeafIndex(source(leaf), now, rootIndex, { ...bare, output: anew });
        t.same(rows(again), rows(anew), `seed ${seed}: gone on as made anew`);
      }
      t.ok(changesSeen > rounds, 'there were changes');
      t.same(readFileSync(rootIndex), first, "the root's index was not written");
      t.notOk(
        readdirSync(dir).some(file => file.endsWith('.new')),
        'nothing is left behind',
      );
      t.ok(existsSync(rootIndex));
    },
  );

t.test('an index that goes on takes up what changed since, and no more', { skip }, async t => {
  const dir = mkdtempSync(join(PLACE, 'ubd-changes-'));
  const [root, leaf, mnt] = ['root', 'leaf', 'mnt'].map(name => join(dir, name)) as [
    string,
    string,
    string,
  ];
  mkdirSync(mnt);
  t.teardown(async () => {
    await run('umount', ['-q', mnt]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  const source = (path: string): FileSource =>
    new FileSource(path, openSync(path, 'r'), IMAGE_BYTES);
  const index = (name: string): string => join(dir, `${name}.index`);
  writeFileSync(root, '');
  truncateSync(root, IMAGE_BYTES);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', root]);
  await run('mount', ['-o', 'loop', root, mnt]);
  writeFileSync(join(mnt, 'plain'), 'as it was');
  await run('umount', [mnt]);
  const about = { digests: 0 };
  await makeRootIndex(source(root), 'key', { digests: false, about, output: index('root') });
  await copyImage(root, leaf);
  const work = async (what: () => void): Promise<void> => {
    await run('mount', ['-o', 'loop', leaf, mnt]);
    what();
    await run('umount', [mnt]);
  };
  const make = (output: string, previous?: string): number => {
    const options = { digests: false, about, output, ...(previous && { previous }) };
    const changed = changedBlocks(root, leaf);
    return makeLeafIndex(source(leaf), changed, index('root'), options).inodes;
  };
  await work(() => {
    mkdirSync(join(mnt, 'many'));
    for (let i = 0; i < 300; i++) writeFileSync(join(mnt, 'many', `f${i}`), `${i}`);
  });
  t.ok(make(index('first')) > 300);
  await work(() => {
    writeFileSync(join(mnt, 'one'), 'more');
    writeFileSync(join(mnt, 'many/f7'), 'changed');
    rmSync(join(mnt, 'many/f8'));
  });
  const inodes = make(index('second'), index('first'));
  t.ok(inodes <= 5, `the new file, the changed one, two directories: ${inodes}`);
  make(index('anew'));
  t.same(rows(index('second')), rows(index('anew')));
  t.equal(make(index('third'), index('second')), 0, 'nothing changed');
  t.same(rows(index('third')), rows(index('anew')));

  // Blocks that change while their inode does not: nothing but the blocks tells.
  await work(() => {
    chmodSync(join(mnt, 'plain'), 0o600);
    const fd = openSync(join(mnt, 'parts'), 'w');
    for (let i = 0; i < 12; i++) writeSync(fd, 'x', 9000 * i);
    closeSync(fd);
  });
  make(index('second'), index('first'));
  const database = openIndex(index('second'));
  const below = openIndex(index('root'));
  const [{ at }] = below
    .prepare("SELECT position AS at FROM extent JOIN entry USING (inode) WHERE name = 'plain'")
    .all() as [{ at: number }];
  const [{ map }] = database
    .prepare(
      "SELECT position AS map FROM extent JOIN entry USING (inode) WHERE name = 'parts' AND use = 1",
    )
    .all() as [{ map: number }];
  for (const one of [database, below]) one.close();
  const fd = openSync(leaf, 'r+');
  writeSync(fd, 'other', at);
  const entry = Buffer.alloc(4);
  readSync(fd, entry, 0, 4, map + 20);
  entry.writeUInt32LE(entry.readUInt32LE() + 1000);
  writeSync(fd, entry, 0, 4, map + 20);
  closeSync(fd);
  t.equal(make(index('third'), index('second')), 2, 'content that was written, a map that changed');
  make(index('anew'));
  t.same(rows(index('third')), rows(index('anew')));

  // What cannot be gone on from is left alone.
  const other = { digests: false, about, output: index('other') };
  await makeRootIndex(source(root), 'another key', { ...other, output: index('other-root') });
  makeLeafIndex(source(leaf), [], index('other-root'), other);
  t.ok(make(index('fourth'), index('other')) > 300, "another root's");
  writeFileSync(index('damaged'), readFileSync(index('second')).fill(0x5a, 8192 * 3));
  t.ok(make(index('fifth'), index('damaged')) > 300, 'a damaged one');
  t.same(rows(index('fifth')), rows(index('anew')));
  t.ok(make(index('sixth'), index('nowhere')) > 300, 'none');
  copyFileSync(index('second'), index('old'));
  const before = openDatabase(index('old'));
  before.exec('ALTER TABLE touched_directory DROP COLUMN digest');
  before.close();
  t.ok(make(index('seventh'), index('old')) > 300, 'of a time before it told digests');
  t.ok(make(index('eighth'), index('root')) > 300, "a root's");
  t.notOk(
    readdirSync(dir).some(file => file.endsWith('.new')),
    'nothing is left behind',
  );
});
