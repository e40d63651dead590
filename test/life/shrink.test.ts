/**
 * Goal: what is given back is what the file system has freed and nothing else; no file changes,
 * e2fsck finds nothing, the leaf takes less; and a file system that cannot be trusted with what it
 * calls free gives nothing back. Method: file systems of several kinds that the kernel has worked
 * in; images whose bitmaps lie; a simulated machine that dies at every step.
 */
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Ext4 } from '../../src/fsindex/ext4/filesystem.ts';
import { exportLeaf } from '../../src/life/export.ts';
import { shrinkLeaf } from '../../src/life/shrink.ts';
import { openStack } from '../../src/life/stack.ts';
import { stackSource } from '../../src/life/stack-source.ts';
import { diskWorld, type World } from '../../src/life/world.ts';
import { differences, readTree, type Tree, walkTree } from '../support/ext4-tree.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(600_000);

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount');
const skipImages = await missing('mkfs.ext4', 'debugfs');

const FEATURES: Readonly<Record<string, readonly string[]>> = {
  ext2: ['-t', 'ext2'],
  'ext3, small blocks': ['-t', 'ext3', '-b', '1024'],
  'ext4, as made today': ['-t', 'ext4'],
  'ext4, big clusters': ['-t', 'ext4', '-O', 'bigalloc'],
  'ext4, meta groups, no journal': ['-t', 'ext4', '-O', 'meta_bg,^resize_inode,^has_journal'],
};

function directory(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-shrink-'));
  t.teardown(async () => {
    await run('umount', ['-q', join(dir, 'mnt')]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  return dir;
}

/** A leaf that makes `root` read as `image`. */
async function leafOf(world: World, path: string, root: string, image: Buffer, old: Buffer) {
  const leaf = await ModelLeaf.make(world, path, root, undefined, { logBytes: 4096 });
  for (let at = 0; at < image.length; at += 4096) {
    const block = image.subarray(at, at + 4096);
    if (block.equals(old.subarray(at, at + 4096))) continue;
    if (block.every(byte => byte === 0)) leaf.zero(at / 512, block.length / 512);
    else leaf.write(at / 512, block);
  }
  return leaf.end();
}

async function treeOf(world: World, leaf: string): Promise<Tree> {
  const stack = await openStack(world, leaf);
  const tree = readTree(Ext4.open(stackSource(stack)));
  stack.close();
  return tree;
}

for (const [name, features] of Object.entries(FEATURES))
  t.test(`${name}: freed blocks go, files stay`, { skip }, async t => {
    const dir = directory(t);
    const [root, image, leaf] = ['root', 'image', 'leaf'].map(file => join(dir, file)) as [
      string,
      string,
      string,
    ];
    writeFileSync(root, '');
    truncateSync(root, 64 << 20);
    await run('mke2fs', ['-q', '-F', ...features, root]);
    copyFileSync(root, image);
    const top = join(dir, 'mnt');
    mkdirSync(top);
    await run('mount', ['-o', 'loop', image, top]);
    const random = new Random(5);
    for (let i = 0; i < 200; i++) writeFileSync(join(top, `${i}`), noise(random, 90_000));
    await run('sync', ['-f', top]);
    for (let i = 0; i < 200; i++) if (i % 3 > 0) unlinkSync(join(top, `${i}`));
    mkdirSync(join(top, 'more'));
    for (let i = 0; i < 300; i++) writeFileSync(join(top, `more/${i}`), noise(random, 100 + 4 * i));
    await run('umount', [top]);
    await leafOf(diskWorld, leaf, root, readFileSync(image), readFileSync(root));
    const before = await treeOf(diskWorld, leaf);
    const used = (): number => statSync(leaf).blocks * 512;
    const usedBefore = used();
    const dry = await shrinkLeaf({ leaf, dryRun: true });
    t.equal(used(), usedBefore, 'a dry run changes nothing');
    const report = await shrinkLeaf({ leaf });
    t.equal(report.freedBytes, dry.freedBytes, 'a dry run says what will be');
    t.ok(report.freedBytes > 10e6 && report.usedBytes > 6e6, JSON.stringify(report));
    t.ok(report.checkedInodes > 300);
    t.ok(usedBefore - used() > 0.95 * report.freedBytes, `${usedBefore} -> ${used()}`);
    t.equal(report.allocatedAfter, used());
    t.same(differences(before, await treeOf(diskWorld, leaf)), [], 'for our reader');
    const out = join(dir, 'out');
    await exportLeaf({ leaf, target: out });
    await run('e2fsck', ['-fn', out]);
    await run('mount', ['-o', 'loop,ro', out, top]);
    const truth = walkTree(top);
    await run('umount', [top]);
    await run('mount', ['-o', 'loop,ro', image, top]);
    t.same(differences(walkTree(top), truth), [], 'for the kernel');
    t.equal((await shrinkLeaf({ leaf })).freedBytes, 0, 'and nothing is left to give');
  });

/** A small file system with files that were removed, made without a mount. */
async function smallImages(t: Test): Promise<{ old: Buffer; image: Buffer; file: string }> {
  const dir = directory(t);
  const file = join(dir, 'image');
  mkdirSync(join(dir, 'top'));
  writeFileSync(file, '');
  truncateSync(file, 4 << 20);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-O', '^metadata_csum,uninit_bg', file]);
  const old = readFileSync(file);
  const script: string[] = [];
  for (let i = 0; i < 20; i++) {
    const source = join(dir, 'top', `${i}`);
    writeFileSync(source, noise(new Random(i), 20_000 + 1000 * i));
    script.push(`write ${source} ${i}`);
  }
  for (let i = 0; i < 20; i += 2) script.push(`rm ${i}`);
  writeFileSync(join(dir, 'script'), `${script.join('\n')}\n`);
  await run('debugfs', ['-w', '-f', join(dir, 'script'), file]);
  t.equal((await tryRun('e2fsck', ['-fn', file])).status, 0);
  return { old, image: readFileSync(file), file };
}

async function simLeaf({ old, image }: { old: Buffer; image: Buffer }): Promise<SimMachine> {
  const world = new SimMachine();
  world.put('/r/root', old);
  await leafOf(world, '/a/leaf', '/r/root', image, old);
  return world;
}

t.test('a death at any step changes no file', { skip: skipImages }, async t => {
  const images = await smallImages(t);
  const truth = await treeOf(await simLeaf(images), '/a/leaf');
  let deaths = 0;
  for (let step = 0, ended = false; !ended; step++)
    for (const power of [false, true]) {
      const world = await simLeaf(images);
      world.stepsLeft = step;
      ended = await shrinkLeaf({ leaf: '/a/leaf' }, { world }).then(
        () => true,
        () => false,
      );
      world.restart(power ? new Random(step) : undefined);
      if (!ended) deaths++;
      t.same(differences(truth, await treeOf(world, '/a/leaf')), [], `step ${step}`);
      await shrinkLeaf({ leaf: '/a/leaf' }, { world });
      t.same(differences(truth, await treeOf(world, '/a/leaf')), [], 'and again');
      t.equal(world.openFiles, 0);
    }
  t.ok(deaths > 4, `${deaths} deaths`);
});

/** Where things are in an image with one group: see src/fsindex/ext4/format.ts. */
const DESCRIPTOR = 2048;
const SUPERBLOCK = 1024;

t.test('a file system that cannot be trusted gives nothing back', { skip: skipImages }, async t => {
  const images = await smallImages(t);
  const fails = async (what: string, code: string, spoil: (image: Buffer) => void) => {
    const image = Buffer.from(images.image);
    spoil(image);
    const world = await simLeaf({ old: images.old, image });
    const before = world.content('/a/leaf');
    await t.rejects(shrinkLeaf({ leaf: '/a/leaf' }, { world }), { code }, what);
    t.ok(Buffer.from(world.content('/a/leaf')).equals(before), `${what}: nothing was changed`);
    t.equal(world.openFiles, 0);
  };
  const bitmapAt = images.image.readUInt32LE(DESCRIPTOR) * 1024;
  const countOneMore = (image: Buffer): void => {
    image.writeUInt16LE(image.readUInt16LE(DESCRIPTOR + 12) + 1, DESCRIPTOR + 12);
  };
  /** Calls the first block that a file has free, and all counts know of it. */
  const lie = (image: Buffer): void => {
    const stack = Ext4.open({
      name: 'image',
      sizeBytes: image.length,
      read: (target, start, length, position) => {
        image.copy(target, start, position, position + length);
      },
    });
    let block = 0;
    stack.eachInode(inode => {
      if (inode.number > 11 && block === 0) block = stack.blocks(inode).extents[0]!.physical;
    });
    const bit = block - 1; // blocks of 1 KiB begin at 1
    image[bitmapAt + (bit >> 3)]! &= ~(1 << (bit & 7));
    countOneMore(image);
  };
  await fails('a bitmap against its count', 'corrupt', countOneMore);
  await fails('a bitmap against a file', 'corrupt', lie);
  await fails('errors were found', 'unsupported', image => image.writeUInt16LE(3, SUPERBLOCK + 58));
  await fails('not unmounted', 'unsupported', image => {
    image.writeUInt32LE(image.readUInt32LE(SUPERBLOCK + 96) | 4, SUPERBLOCK + 96);
  });
  await fails('no file system', 'unsupported', image => image.fill(0, SUPERBLOCK, 2048));
});

t.test('images under a leaf are never written', { skip: skipImages }, async t => {
  const { old, image } = await smallImages(t);
  const world = new SimMachine();
  world.put('/r/root', old);
  const leaf = await leafOf(world, '/a/image', '/r/root', image, old);
  leaf.fork('/a/leaf').end();
  const before = Buffer.from(world.content('/a/image'));
  t.match(await shrinkLeaf({ leaf: '/a/leaf' }, { world }), { freedBytes: 0, usedBytes: 0 });
  t.ok(before.equals(world.content('/a/image')));
  await t.rejects(shrinkLeaf({ leaf: '/a/image' }, { world }), { code: 'frozen' });
});
