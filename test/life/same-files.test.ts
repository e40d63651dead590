/**
 * Goal: of two files only those parts are read that may differ, and none of these is left out; what
 * an index does not have is asked of the files. Method: maps of blocks by hand; and one ext4,
 * before and after changes that leave size and times as they were.
 */
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Extent } from '../../src/fsindex/ext4/extents.ts';
import { RangeSet } from '../../src/fsindex/ranges.ts';
import { diffFiles } from '../../src/life/files.ts';
import { unlikeExtents } from '../../src/life/same-files.ts';
import { native } from '../../src/native/binding.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';

const BLOCK = 4096;
const extent = (logical: number, physical: number, count: number, unwritten = false): Extent => ({
  ...{ logical, physical, count, unwritten },
});
const unlike = (before: Extent[], after: Extent[], changed: [number, number][] = []) => {
  const ranges = changed.map(([at, count]) => ({ position: at * BLOCK, length: count * BLOCK }));
  return [...unlikeExtents(before, after, new RangeSet(ranges), BLOCK)].map(
    ({ position, length }) => [position / BLOCK, length / BLOCK],
  );
};

t.test('what lies in the same blocks, none of them changed, is the same', async t => {
  const file = [extent(0, 70, 8), extent(20, 90, 4)];
  t.same(unlike(file, file), []);
  t.same(
    unlike(file, [extent(0, 70, 3), extent(3, 73, 5), extent(20, 90, 4)]),
    [],
    'cut elsewhere',
  );
});

t.test('what the leaf holds of them may differ', async t => {
  const file = [extent(0, 70, 8), extent(20, 90, 4)];
  t.same(unlike(file, file, [[72, 2]]), [[2, 2]]);
  t.same(
    unlike(file, file, [
      [60, 11],
      [93, 50],
    ]),
    [
      [0, 1],
      [23, 1],
    ],
    'at their ends',
  );
});

t.test('other blocks, holes and zeroes may differ', async t => {
  const old = [extent(0, 70, 8)];
  t.same(unlike(old, [extent(0, 70, 4), extent(4, 33, 4)]), [[4, 4]], 'elsewhere');
  t.same(unlike(old, [extent(0, 70, 4)]), [[4, 4]], 'a hole now');
  t.same(unlike([], old), [[0, 8]], 'a hole then');
  t.same(unlike(old, [extent(0, 70, 8, true)]), [[0, 8]], 'zeroes by its map alone');
  t.same(unlike([extent(0, 70, 8, true)], [extent(0, 70, 8, true)], [[70, 8]]), [], 'zeroes both');
});

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount', 'fallocate');
for (const features of ['^inline_data', 'inline_data'])
  t.test(`${features}: changes that leave size and times alone are told`, { skip }, async t => {
    const dir = mkdtempSync(join(tmpdir(), 'ubd-same-'));
    const at = (name: string): string => join(dir, name);
    const [root, copy, mnt] = [at('root'), at('copy'), at('mnt')];
    mkdirSync(mnt);
    t.teardown(async () => {
      await tryRun('umount', ['-q', mnt]);
      rmSync(dir, { recursive: true, force: true });
    });
    await run('mkfs.ext4', ['-q', '-F', '-b', '4096', '-O', features, root, '32M']);
    const file = (name: string): string => join(mnt, name);
    const names = [
      'byte',
      'short',
      'zeroed',
      'punched',
      'marked',
      'again',
      'moved',
      'mode',
      'blank',
    ];
    await run('mount', ['-o', 'loop', root, mnt]);
    for (const name of names)
      writeFileSync(file(name), Buffer.alloc(name === 'short' ? 30 : 65_536, 7));
    await run('umount', [mnt]);
    copyFileSync(root, copy);
    await run('mount', ['-o', 'loop', copy, mnt]);
    const unseen = async (name: string, work: () => unknown): Promise<void> => {
      const { atime, mtime } = statSync(file(name));
      await work();
      utimesSync(file(name), atime, mtime);
    };
    for (const name of names) await unseen(name, () => {}); // as exact as these times are
    await run('umount', [mnt]);
    copyFileSync(copy, root);
    await run('mount', ['-o', 'loop', copy, mnt]);
    const poke = (name: string, position: number, text: string): void => {
      const fd = openSync(file(name), 'r+');
      writeSync(fd, text, position);
      closeSync(fd);
    };
    const range = ['-o', '8192', '-l', '8192'];
    await unseen('byte', () => poke('byte', 40_000, 'x'));
    await unseen('short', () => poke('short', 10, 'x'));
    await unseen('zeroed', () => run('fallocate', ['-z', ...range, file('zeroed')]));
    await unseen('punched', () => run('fallocate', ['-p', ...range, file('punched')]));
    // The same blocks, and nothing written to them.
    await unseen('blank', () => run('fallocate', ['-z', '-l', '65536', file('blank')]));
    await unseen('marked', () =>
      native.setAttribute(Buffer.from(file('marked')), Buffer.from('user.a'), Buffer.from('1')),
    );
    await unseen('again', () => writeFileSync(file('again'), readFileSync(file('again'))));
    const { atime, mtime } = statSync(file('moved'));
    writeFileSync(file('moved.new'), readFileSync(file('moved')));
    utimesSync(file('moved.new'), atime, mtime);
    await run('mv', [file('moved.new'), file('moved')]);
    await run('chmod', ['600', file('mode')]);
    await run('umount', [mnt]);
    await makeImageLeaf(root, at('leaf'), copy);
    const changes = await diffFiles(at('leaf'), { directory: dir });
    t.same(
      changes.map(({ path, change, content, differs }) => [path, change, content, differs]),
      [
        ['/blank', 'modified', true, ['content']],
        ['/byte', 'modified', true, ['content']],
        ['/marked', 'modified', false, ['attributes']],
        ['/mode', 'modified', false, ['mode']],
        ['/punched', 'modified', true, ['content']],
        ['/short', 'modified', true, ['content']],
        ['/zeroed', 'modified', true, ['content']],
      ],
    );
  });
