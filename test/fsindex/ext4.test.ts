/**
 * Goal: the reader sees what the kernel sees, on every common set of features, also of a file
 * system that was not unmounted; and no image, however broken, makes it crash, run without end or
 * leave the image. Method: real images made by mke2fs, filled through a mount by work of many
 * kinds, and compared inode by inode with a walk of the mount; then the same images with bytes of
 * their metadata changed at random (seeded).
 */
import {
  closeSync,
  copyFileSync,
  fstatSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { Ext4 } from '../../src/fsindex/ext4/filesystem.ts';
import { type BlockSource, checkRange, FileSource } from '../../src/fsindex/source.ts';
import { differences, readTree, walkTree } from '../support/ext4-tree.ts';
import { Random } from '../support/random.ts';
import { missing, QUICK } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount');
/** For the whole file: others may keep the machine busy. */
t.setTimeout(600_000);
const IMAGE_BYTES = 96 << 20;
const SEEDS = QUICK ? 150 : Number(process.env.UBD_TEST_SEEDS ?? 600);

const FEATURES: Readonly<Record<string, readonly string[]>> = {
  ext2: ['-t', 'ext2'],
  ext3: ['-t', 'ext3', '-b', '1024'],
  'ext4, as made today': ['-t', 'ext4'],
  'ext4, small blocks, meta groups': ['-t', 'ext4', '-b', '1024', '-O', 'meta_bg,^resize_inode'],
  'ext4, inline data': ['-t', 'ext4', '-O', 'inline_data'],
  'ext4, big clusters': ['-t', 'ext4', '-O', 'bigalloc'],
  'ext4, old checksums, 32 bits': ['-t', 'ext4', '-O', '^metadata_csum,^64bit,uninit_bg'],
  'ext4, small inodes, no journal': ['-t', 'ext4', '-I', '128', '-O', '^has_journal'],
  'ext4, large values, encryption, large directories': [
    ...['-t', 'ext4', '-O', 'ea_inode,large_dir,encrypt,metadata_csum_seed'],
  ],
};

async function make(t: Test, features: readonly string[]): Promise<{ dir: string; image: string }> {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-ext4-'));
  const image = join(dir, 'image');
  writeFileSync(image, '');
  truncateSync(image, IMAGE_BYTES);
  mkdirSync(join(dir, 'mnt'));
  t.teardown(async () => {
    await run('umount', ['-q', join(dir, 'mnt')]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  await run('mke2fs', ['-q', '-F', ...features, image]);
  return { dir, image };
}

function open(image: string): { fs: Ext4; close: () => void } {
  const fd = openSync(image, 'r');
  const fs = Ext4.open(new FileSource(image, fd, fstatSync(fd).size));
  return { fs, close: () => closeSync(fd) };
}

/** Files of every kind, and changes that leave traces: deleted, renamed, sparse, fragmented. */
function work(top: string, random: Random): void {
  const at = (name: string): string => join(top, name);
  mkdirSync(at('many'));
  for (let i = 0; i < 1500; i++) writeFileSync(at(`many/a file with a longer name, ${i}`), `${i}`);
  for (let i = 0; i < 1500; i += 3) unlinkSync(at(`many/a file with a longer name, ${i}`));
  mkdirSync(at('deep/er/and/deeper'), { recursive: true });
  writeFileSync(at('deep/er/and/deeper/still'), 'x'.repeat(5000));
  renameSync(at('deep/er'), at('moved'));
  writeFileSync(at('one'), 'first');
  linkSync(at('one'), at('two'));
  symlinkSync('/short', at('link'));
  symlinkSync('l'.repeat(200), at('long link'));
  writeFileSync(Buffer.from(join(top, 'odd \xff\n\x1b[31m name'), 'latin1'), 'odd');
  writeFileSync(at('tiny'), 'in line');
  mkdirSync(at('small'));
  for (let i = 0; i < 4; i++) writeFileSync(at(`small/${i}`), 's'.repeat(40 * i));
  utimesSync(at('tiny'), 5_000_000_000, 5_000_000_000.25);
  const sparse = openSync(at('sparse'), 'w');
  for (let i = 0; i < 600; i++) writeSync(sparse, `hole ${i}`, random.below(4000) * 65536);
  closeSync(sparse);
  const growing = [0, 1].map(i => openSync(at(`fragmented ${i}`), 'w'));
  for (let i = 0; i < 500; i++)
    for (const fd of growing) writeSync(fd, Buffer.alloc(random.between(1, 9000), i));
  for (const fd of growing) closeSync(fd);
  writeFileSync(at('shrunk'), Buffer.alloc(3 << 20, 7));
  truncateSync(at('shrunk'), 12345);
}

for (const [name, features] of Object.entries(FEATURES))
  t.test(`${name}: the reader sees what the kernel shows`, { skip, timeout: 180_000 }, async t => {
    const { dir, image } = await make(t, features);
    const mountPoint = join(dir, 'mnt');
    await run('mount', ['-o', 'loop', image, mountPoint]);
    work(mountPoint, new Random(7));
    await run('mknod', [join(mountPoint, 'null'), 'c', '1', '3']);
    await run('mkfifo', [join(mountPoint, 'pipe')]);
    await run('fallocate', ['-l', '1M', join(mountPoint, 'unwritten')]).catch(() => {});
    await run('umount', [mountPoint]);
    await run('mount', ['-o', 'loop,ro', image, mountPoint]);
    const truth = walkTree(mountPoint);
    await run('umount', [mountPoint]);
    const { fs, close } = open(image);
    t.same(differences(truth, readTree(fs)), []);
    t.ok(truth.size > 1000);
    const numbers = new Set([...truth.values()].map(facts => Number(facts.split(' ')[0])));
    let listed = 0;
    fs.eachInode(inode => {
      if (inode.number === fs.root || inode.number > 10) listed++;
      if (inode.number > 10) numbers.delete(inode.number);
    });
    numbers.delete(fs.root);
    t.same([...numbers], [], 'the tables hold every inode of the tree');
    t.ok(listed >= 1000);
    close();
  });

t.test('what the journal holds is seen, what it revokes is not', { skip }, async t => {
  const { dir, image } = await make(t, ['-t', 'ext4', '-J', 'size=8']);
  const mountPoint = join(dir, 'mnt');
  await run('mount', ['-o', 'loop,commit=300', image, mountPoint]);
  const random = new Random(11);
  let replayed = 0;
  for (let round = 0; round < 5; round++) {
    mkdirSync(join(mountPoint, `round ${round}`));
    work(join(mountPoint, `round ${round}`), random);
    if (round > 1) rmSync(join(mountPoint, `round ${round - 2}`), { recursive: true });
    // What a sync leaves is committed in the journal, and only in part put in place.
    await run('sync', ['-f', mountPoint]);
    const snapshot = join(dir, 'snapshot');
    copyFileSync(image, snapshot);
    const { fs, close } = open(snapshot);
    t.ok(fs.geometry.needsRecovery, 'it was not unmounted');
    replayed += fs.replayed.length;
    const seen = readTree(fs);
    close();
    const second = join(dir, 'second');
    mkdirSync(second, { recursive: true });
    await run('mount', ['-o', 'loop', snapshot, second]); // the kernel replays
    const truth = walkTree(second);
    await run('umount', [second]);
    t.same(differences(truth, seen), [], `round ${round}`);
    rmSync(snapshot);
  }
  t.ok(replayed > 0, 'some came from the journal');
});

/** A source whose bytes are changed at some places. */
class Spoiled implements BlockSource {
  readonly name = 'spoiled';
  readonly sizeBytes: number;
  readonly #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
    this.sizeBytes = bytes.length;
  }

  read(buffer: Buffer, start: number, length: number, position: number): void {
    checkRange(this.name, this.sizeBytes, length, position);
    this.#bytes.copy(buffer, start, position, position + length);
  }
}

t.test(
  'damage is an error that names the place, never a crash',
  { skip, timeout: 600_000 },
  async t => {
    const { image } = await make(t, [
      '-t',
      'ext4',
      '-b',
      '1024',
      '-N',
      '512',
      '-E',
      'lazy_itable_init=0',
    ]);
    const tree = mkdtempSync(join(tmpdir(), 'ubd-tree-'));
    t.teardown(() => rmSync(tree, { recursive: true }));
    for (let i = 0; i < 60; i++) {
      mkdirSync(join(tree, `d${i}`));
      writeFileSync(join(tree, `d${i}`, 'file'), Buffer.alloc(i * 3000, i));
    }
    await run('mke2fs', [
      ...['-q', '-F', '-t', 'ext4', '-b', '1024', '-N', '512', '-d', tree],
      image,
      '16M',
    ]);
    const clean = readFileSync(image);
    const { fs, close } = open(image);
    /** Where metadata are: the places worth spoiling. */
    const places: [number, number][] = [[1024, 400]];
    const { blockBytes } = fs.geometry;
    places.push([2 * blockBytes, blockBytes]);
    fs.eachInode(inode => {
      places.push([fs.inodePosition(inode.number), 256]);
      const { extents, metadata } = fs.blocks(inode);
      for (const block of metadata) places.push([block * blockBytes, blockBytes]);
      if ((inode.mode & 0o170000) === 0o040000)
        for (const extent of extents) places.push([extent.physical * blockBytes, blockBytes]);
    });
    close();
    const refused = new Map<string, number>();
    let read = 0;
    for (let seed = 0; seed < SEEDS; seed++) {
      const random = new Random(seed);
      const bytes = Buffer.from(clean.subarray(0, 16 << 20));
      for (let changes = random.between(1, 6); changes > 0; changes--) {
        const [start, length] = random.pick(places);
        const at = start + random.below(length);
        bytes[at] = random.chance(0.3) ? random.pick([0, 0xff, 0x7f, 0x80, 1]) : random.below(256);
      }
      const source = new Spoiled(bytes);
      try {
        const spoiled = Ext4.open(source);
        let steps = 0;
        spoiled.eachInode(inode => {
          try {
            const blocks = spoiled.blocks(inode);
            if ((inode.mode & 0o170000) === 0o040000)
              spoiled.eachEntry(inode, () => steps++, blocks);
            spoiled.attributes(inode);
          } catch (error) {
            if (!(error instanceof UbdError)) throw error;
            refused.set(error.code, (refused.get(error.code) ?? 0) + 1);
            if (!error.message.startsWith('spoiled')) throw error;
          }
        });
        read++;
        if (steps > 1e6) t.fail(`seed ${seed}: ${steps} entries`);
      } catch (error) {
        if (!(error instanceof UbdError)) {
          t.fail(`seed ${seed}: ${(error as Error).stack}`);
          return;
        }
        refused.set(error.code, (refused.get(error.code) ?? 0) + 1);
      }
    }
    t.ok(read > SEEDS / 4, `${read} of ${SEEDS} could be opened`);
    t.ok((refused.get('corrupt') ?? 0) > SEEDS / 20, `found: ${JSON.stringify([...refused])}`);
  },
);
