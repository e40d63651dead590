/**
 * Goal: `why` tells what each byte of a leaf is, as the file system's own tools tell it. Method:
 * real work through a mount of a copy, its blocks as a leaf; then every block that the leaf has is
 * asked of debugfs: its bitmap and owner; a package database as dpkg writes it.
 */
import { copyFileSync, mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { shrinkLeaf } from '../../src/life/shrink.ts';
import { openStack } from '../../src/life/stack.ts';
import { type WhyKind, type WhyReport, why } from '../../src/life/why.ts';
import { diskWorld } from '../../src/life/world.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { mounted, type Place, place } from '../support/mounted-image.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount', 'debugfs');
t.setTimeout(600_000);
const BLOCK = 4096;

async function make(t: Test, prepare: (mnt: string) => void, ...options: string[]): Promise<Place> {
  const made = place(t);
  const { root, copy } = made;
  writeFileSync(root, '');
  truncateSync(root, 64 << 20);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-b', `${BLOCK}`, ...options, root]);
  await mounted(root, made, prepare);
  copyFileSync(root, copy);
  return made;
}

/** What debugfs says of each block of the leaf; only of the kinds that it can tell. */
async function truth(image: string, leaf: string): Promise<Map<WhyKind, number>> {
  const stack = await openStack(diskWorld, leaf);
  const blocks: number[] = [];
  let zeroes = 0;
  for (const { sector, count, layer, data } of stack.pieces(0, stack.sizeSectors, 1))
    if (layer === 0)
      for (let at = sector; at < sector + count; at += BLOCK / 512)
        if (data) blocks.push((at * 512) / BLOCK);
        else zeroes += BLOCK;
  stack.close();
  const said = async (request: string): Promise<string> =>
    await run('debugfs', ['-R', request, image]);
  const found = new Map<WhyKind, number>([['zeroes', zeroes]]);
  const count = (kind: WhyKind): void => void found.set(kind, (found.get(kind) ?? 0) + BLOCK);
  const inodes = new Map<number, number>();
  for (const line of (await said(`icheck ${blocks.join(' ')}`)).split('\n').slice(1)) {
    const [block, inode] = line.split('\t');
    if (/^\d+$/.test(inode ?? '')) inodes.set(Number(block), Number(inode));
  }
  const names = new Map<number, string>();
  const numbers = [...new Set(inodes.values())];
  for (const number of numbers) {
    const [, type] = /Type: (\w+)/.exec(await said(`stat <${number}>`)) ?? [];
    names.set(number, type ?? '');
  }
  const free = await freeBlocks(image);
  for (const block of blocks) {
    const inode = inodes.get(block);
    if (inode === 8) count('journal');
    else if (inode !== undefined && names.get(inode) === 'regular' && inode > 10) count('files');
    else if (free.has(block)) count('free');
    else count('metadata');
  }
  return found;
}

async function freeBlocks(image: string): Promise<Set<number>> {
  const stdout = await run('dumpe2fs', [image]);
  const free = new Set<number>();
  for (const [, list] of stdout.matchAll(/^ {2}Free blocks: (.*)$/gm))
    for (const range of list!.split(', ').filter(part => part !== '')) {
      const [from, to] = range.split('-').map(Number) as [number, number?];
      for (let block = from; block <= (to ?? from); block++) free.add(block);
    }
  return free;
}

function sums(report: WhyReport): [all: number, files: number, directories: number] {
  const sum = (list: readonly { bytes: number }[]): number =>
    list.reduce((all, { bytes }) => all + bytes, 0);
  const all = Object.values(report.kinds).reduce((a, b) => a + b, 0);
  return [all, report.kinds.files, sum(report.directories)];
}

for (const [name, options] of [
  ['as made today', []],
  ['without a journal, with small groups', ['-O', '^has_journal', '-g', '4096']],
] as const)
  t.test(`ext4 ${name}: every block is what debugfs says`, { skip }, async t => {
    const random = new Random(5);
    const fill = (top: string, count: number): void => {
      mkdirSync(top, { recursive: true });
      for (let i = 0; i < count; i++)
        writeFileSync(join(top, `f${i}`), Buffer.alloc(random.between(1, 60_000), i + 1));
    };
    const place = await make(t, mnt => fill(join(mnt, 'old/deep/er'), 60), ...options);
    await mounted(place.copy, place, mnt => {
      fill(join(mnt, 'srv/www/html/a'), 80);
      fill(join(mnt, 'srv/www/html/b'), 20);
      fill(join(mnt, 'tmp'), 70);
      writeFileSync(join(mnt, 'old/deep/er/f3'), Buffer.alloc(200_000, 9));
      for (let i = 0; i < 70; i += 2) rmSync(join(mnt, `tmp/f${i}`));
    });
    // What was written and deleted again leaves its bytes on the device.
    await mounted(place.copy, place, mnt => rmSync(join(mnt, 'tmp'), { recursive: true }));
    await makeImageLeaf(place.root, place.leaf, place.copy);
    const report = await why({ leaf: place.leaf, depth: 2 }, { directory: place.dir });
    const is = await truth(place.copy, place.leaf);
    for (const kind of ['files', 'free', 'journal', 'metadata'] as const) {
      const found = report.kinds[kind] + (kind === 'metadata' ? report.kinds.other : 0);
      t.equal(found, is.get(kind) ?? 0, kind);
    }
    t.ok(report.kinds.files > 1 << 20 && report.kinds.free > 1 << 20, 'there was much of both');
    const [all, files, directories] = sums(report);
    t.equal(all, report.heldBytes, 'the kinds add up');
    t.equal(files, directories, 'the directories add up to the files');
    t.same(report.directories.map(({ path }) => path).sort(), ['/old/deep', '/srv/www']);
    t.equal(report.directories.find(({ path }) => path === '/srv/www')?.files, 100);
    t.equal(report.packages, null);
    const { freedBytes } = await shrinkLeaf({ leaf: place.leaf, dryRun: true });
    t.equal(report.shrinkBytes, freedBytes, 'as shrink says');
  });

t.test('what was trimmed is zeroes, without space', { skip }, async t => {
  const place = await make(t, mnt => writeFileSync(join(mnt, 'big'), Buffer.alloc(8 << 20, 1)));
  await mounted(place.copy, place, mnt => rmSync(join(mnt, 'big')));
  await run('e2fsck', ['-fy', '-E', 'discard', place.copy]).catch(() => {});
  await makeImageLeaf(place.root, place.leaf, place.copy, { holes: true });
  const { kinds, shrinkBytes } = await why({ leaf: place.leaf }, { directory: place.dir });
  t.ok(kinds.zeroes >= 8 << 20, `${kinds.zeroes}`);
  t.equal(kinds.free, 0);
  t.equal(shrinkBytes, 0);
});

t.test('files are of the packages that dpkg says', { skip }, async t => {
  const info = 'var/lib/dpkg/info';
  const place = await make(t, mnt => {
    for (const dir of ['usr/bin', 'usr/share/doc', info])
      mkdirSync(join(mnt, dir), { recursive: true });
    writeFileSync(join(mnt, 'var/lib/dpkg/status'), '');
  });
  await run('mount', ['-o', 'loop', place.copy, place.mnt]);
  await run('ln', ['-s', 'usr/bin', join(place.mnt, 'bin')]);
  writeFileSync(join(place.mnt, 'usr/bin/tool'), Buffer.alloc(40_960, 1));
  writeFileSync(join(place.mnt, 'usr/share/doc/lib\nodd'), Buffer.alloc(8192, 2));
  writeFileSync(join(place.mnt, 'usr/bin/own'), Buffer.alloc(4096, 3));
  // Since /bin is a link, dpkg's list has the file where the package put it.
  writeFileSync(join(place.mnt, info, 'tool.list'), '/.\n/bin\n/bin/tool\n');
  writeFileSync(join(place.mnt, info, 'lib:amd64.list'), '/.\n/usr/share/doc/lib\n');
  writeFileSync(join(place.mnt, info, 'tool.postinst'), '/usr/bin/own\n');
  writeFileSync(
    join(place.mnt, 'var/lib/dpkg/status'),
    'Package: tool\nStatus: install ok installed\nArchitecture: all\nVersion: 1:2.3-4\n\n' +
      'Package: lib\nArchitecture: amd64\nVersion: 7\n',
  );
  await run('umount', [place.mnt]);
  await makeImageLeaf(place.root, place.leaf, place.copy);
  const report = await why({ leaf: place.leaf }, { directory: place.dir });
  const tool = report.packages?.find(({ name }) => name === 'tool');
  t.match(tool, { version: '1:2.3-4', bytes: 40_960, files: 1 });
  t.ok(report.packages?.some(({ name }) => name === null));
  const all = report.packages!.reduce((sum, { bytes }) => sum + bytes, 0);
  t.equal(all, report.kinds.files, 'the packages add up to the files');
});
