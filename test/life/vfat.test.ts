/**
 * Goal: what a leaf changed in a FAT is found, by names of any script, whoever asks: FAT keeps no
 * owners and modes, so those of the mount must not depend on the command that makes it. Method: a
 * real image, changed through an ordinary mount; the root indexed under another umask than the
 * leaf.
 */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { diffFiles, findInRoot } from '../../src/life/files.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { PATIENCE, run, tryRun } from '../support/run.ts';

t.setTimeout(120_000 * PATIENCE);

if (process.getuid?.() === 0) await tryRun('modprobe', ['-q', 'vfat']); // where it is a module
const skip = await missing(...DEVICES, 'mount', 'mkfs.vfat', 'fs:vfat');

t.test('a change is told by its name, and nothing else is, under any umask', { skip }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-vfat-'));
  const [root, copy, leaf, mnt] = ['disk', 'copy', 'leaf', 'mnt'].map(name => join(dir, name)) as [
    ...[string, string, string, string],
  ];
  process.env.UBD_STATE_DIR = join(dir, 'state');
  process.env.UBD_RUNTIME_DIR = join(dir, 'run');
  const umask = process.umask(0o022);
  t.teardown(async () => {
    process.umask(umask);
    await tryRun('umount', ['-q', mnt]);
    rmSync(dir, { recursive: true, force: true });
  });
  mkdirSync(mnt);
  writeFileSync(root, '');
  truncateSync(root, 16 << 20);
  await run('mkfs.vfat', [root]);
  const mount = await tryRun('mount', ['-t', 'vfat', '-o', 'loop,utf8', root, mnt]);
  if (mount.status !== 0) {
    // A kernel may have vfat, and no table of the characters that it wants.
    t.plan(0, `vfat cannot be mounted here: ${mount.stderr.split('\n')[0]}`);
    return;
  }
  mkdirSync(join(mnt, 'EFI'));
  writeFileSync(join(mnt, 'EFI/boot.cfg'), 'one\n');
  writeFileSync(join(mnt, 'EFI/Größe 日本.txt'), 'name');
  writeFileSync(join(mnt, 'EFI/gone'), 'gone');
  await run('umount', [mnt]);
  copyFileSync(root, copy);
  await run('mount', ['-t', 'vfat', '-o', 'loop,utf8', copy, mnt]);
  writeFileSync(join(mnt, 'EFI/boot.cfg'), 'one and two\n');
  rmSync(join(mnt, 'EFI/gone'));
  writeFileSync(join(mnt, 'файл'), 'new');
  await run('umount', [mnt]);
  await makeImageLeaf(root, leaf, copy);
  const use = { directory: dir };
  const found = await findInRoot(root, '*', use);
  t.same(
    found.map(({ path, mode, uid }) => [path, (mode & 0o777).toString(8), uid]),
    ['/EFI', '/EFI/Größe 日本.txt', '/EFI/boot.cfg', '/EFI/gone'].map(path => [path, '755', 0]),
  );
  process.umask(0o077);
  t.same((await diffFiles(leaf, use)).map(({ change, path }) => [change, path]).sort(), [
    ['added', '/файл'],
    ['deleted', '/EFI/gone'],
    ['modified', '/EFI/boot.cfg'],
  ]);
});
