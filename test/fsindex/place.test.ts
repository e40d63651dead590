/**
 * Goal: who asks for the files of what has none that can be listed is told what there is; and an
 * index never takes the place of anything but an index. Method: the first blocks of each format,
 * files in a directory of their own.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { makeRootIndex } from '../../src/fsindex/make.ts';
import type { BlockSource } from '../../src/fsindex/source.ts';
import { IndexWriter } from '../../src/fsindex/writer.ts';
import { missing } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', 'mkfs.ext4');

const dir = mkdtempSync(`${tmpdir()}/ubd-place-`);
t.teardown(() => rmSync(dir, { recursive: true, force: true }));

function disk(...texts: (readonly [at: number, text: string])[]): BlockSource {
  const bytes = Buffer.alloc(1 << 20);
  for (const [at, text] of texts) bytes.write(text, at, 'latin1');
  return {
    name: '/images/root',
    sizeBytes: bytes.length,
    read: (target, start, length, position) =>
      void bytes.copy(target, start, position, position + length),
  };
}

t.test('what is no ext2, ext3 or ext4 is called by its name', async t => {
  const boot = [510, '\x55\xaa'] as const;
  const disks: [source: BlockSource, what: RegExp][] = [
    [disk(boot, [512, 'EFI PART']), /holds a GPT partition table/],
    [disk(boot, [4096, 'EFI PART']), /holds a GPT partition table/],
    [disk(boot), /holds an MBR partition table/],
    [disk([512, 'LABELONE']), /holds an LVM physical volume/],
    [disk([0, 'LUKS\xba\xbe']), /holds a LUKS container/],
    [disk([4096, '\xfc\x4e\x2b\xa9']), /holds a member of a Linux RAID/],
    [disk([0, 'XFSB']), /holds xfs/],
    [disk([65_600, '_BHRfS_M']), /holds btrfs/],
    [disk(boot, [3, 'NTFS    ']), /holds NTFS/],
    [disk(boot, [82, 'FAT32   ']), /holds FAT/],
    [disk(), /holds no file system that is known here/],
  ];
  for (const [source, message] of disks)
    await t.rejects(
      makeRootIndex(source, 'key', { output: `${dir}/i`, digests: false, about: {} }),
      {
        code: 'unsupported',
        message,
        next: /ext2, ext3 and ext4, and what this kernel can mount/,
      },
    );
  // A superblock whose magic is right is looked at, whatever else lies there.
  await t.rejects(
    makeRootIndex(disk(boot, [1080, '\x53\xef']), 'key', {
      output: `${dir}/i`,
      digests: false,
      about: {},
    }),
    { code: 'corrupt' },
  );
  t.strictSame(readdirSync(dir), []);
});

t.test('an index replaces an index, and nothing else', async t => {
  const root = `${dir}/root.img`;
  writeFileSync(root, 'precious '.repeat(20));
  mkdirSync(`${dir}/directory`);
  for (const path of [root, `${dir}/directory`])
    t.throws(() => new IndexWriter(path), { code: 'exists', message: /is no index/ });
  t.equal(readFileSync(root, 'latin1'), 'precious '.repeat(20));

  const place = `${dir}/a.ubdindex`;
  writeFileSync(place, '');
  for (let time = 0; time < 2; time++) {
    const writer = new IndexWriter(place);
    writer.setMeta({ time });
    writer.finish();
  }
  // What cannot be put in its place leaves nothing behind.
  const late = new IndexWriter(`${dir}/late`);
  mkdirSync(`${dir}/late`);
  t.throws(() => late.finish(), { code: 'EISDIR' });
  late.abandon();
  t.strictSame(readdirSync(dir).sort(), ['a.ubdindex', 'directory', 'late', 'root.img']);
});

t.test('an index for which there is no room says so, and leaves nothing', { skip }, async t => {
  const full = `${dir}/full`;
  mkdirSync(full);
  await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', full]);
  t.teardown(() => run('umount', [full]));
  const image = `${dir}/files.img`;
  await run('mkfs.ext4', ['-q', '-F', image, '8M']);
  const bytes = readFileSync(image);
  const source: BlockSource = {
    name: image,
    sizeBytes: bytes.length,
    read: (target, start, length, position) =>
      void bytes.copy(target, start, position, position + length),
  };
  for (const leftBytes of [0, 16 * 1024]) {
    writeFileSync(`${full}/ballast`, Buffer.alloc(64 * 1024 - leftBytes));
    const output = `${full}/i.ubdindex`;
    await t.rejects(makeRootIndex(source, 'key', { output, digests: false, about: {} }), {
      code: 'no-space',
      message: /i\.ubdindex: the index cannot be written: .*full/,
      next: /is there room in .*full/,
    });
    t.same(readdirSync(full), ['ballast']);
  }
});
