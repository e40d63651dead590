/** An image in a directory of its own, worked on through ordinary mounts. */
import {
  chmodSync,
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { run } from './run.ts';

export interface Place {
  dir: string;
  root: string;
  copy: string;
  leaf: string;
  mnt: string;
}

export function place(t: Test): Place {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-mounted-'));
  const at = (name: string): string => join(dir, name);
  const made = { dir, root: at('root'), copy: at('copy'), leaf: at('leaf'), mnt: at('mnt') };
  mkdirSync(made.mnt);
  process.env.UBD_STATE_DIR = at('state');
  process.env.UBD_RUNTIME_DIR = at('run');
  t.teardown(async () => {
    await run('umount', ['-q', made.mnt]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  return made;
}

/** Mounts, works, unmounts. @param offset of a partition */
export async function mounted(
  image: string,
  { mnt }: Place,
  work: (mnt: string) => void | Promise<void>,
  options = 'loop',
): Promise<void> {
  await run('mount', ['-o', options, image, mnt]);
  try {
    await work(mnt);
    await run('sync', ['-f', mnt]);
  } finally {
    await run('umount', [mnt]);
  }
}

export const ODD = 'odd \xff\n\x1b[31m';

export function fill(mnt: string): void {
  mkdirSync(join(mnt, 'etc'));
  mkdirSync(join(mnt, 'srv/many/deep'), { recursive: true });
  writeFileSync(join(mnt, 'etc/passwd'), 'root:x:0\ndaemon:x:1\nbin:x:2\n');
  writeFileSync(join(mnt, 'etc/hosts'), '127.0.0.1 localhost\n');
  writeFileSync(join(mnt, 'etc/gone'), 'gone');
  for (let i = 0; i < 300; i++) writeFileSync(join(mnt, `srv/many/f${i}`), `${i}`.repeat(i));
  writeFileSync(join(mnt, 'srv/big'), Buffer.alloc(3 << 20, 7));
  writeFileSync(join(mnt, 'srv/hidden'), Buffer.alloc(40_000, 1));
  writeFileSync(Buffer.from(join(mnt, ODD), 'latin1'), 'odd');
}

export function change(mnt: string): void {
  writeFileSync(join(mnt, 'etc/passwd'), 'root:x:0\nubd:x:7\nbin:x:2\n');
  rmSync(join(mnt, 'etc/gone'));
  renameSync(join(mnt, 'etc/hosts'), join(mnt, 'etc/hosts.old'));
  chmodSync(join(mnt, 'srv/many/f7'), 0o600);
  linkSync(join(mnt, 'srv/big'), join(mnt, 'srv/many/deep/link'));
  mkdirSync(join(mnt, 'new'));
  writeFileSync(join(mnt, 'new/file'), Buffer.alloc(500_000, 5));
  // Behind the back of who looks at size and time.
  const hidden = join(mnt, 'srv/hidden');
  const { atime, mtime } = statSync(hidden);
  const fd = openSync(hidden, 'r+');
  writeSync(fd, 'behind', 20_000);
  closeSync(fd);
  utimesSync(hidden, atime, mtime);
}

export const CHANGES: readonly (readonly [kind: string, path: string])[] = [
  ['added', '/new'],
  ['added', '/new/file'],
  ['added', '/srv/many/deep/link'],
  ['deleted', '/etc/gone'],
  ['modified', '/etc/passwd'],
  ['modified', '/srv/hidden'],
  ['modified', '/srv/many/f7'],
  ['renamed', '/etc/hosts.old'],
];

/** All paths below, as an index tells them. */
export function names(top: string): string[] {
  const found: string[] = [];
  const visit = (path: string): void => {
    for (const name of readdirSync(Buffer.from(top + path, 'latin1'), 'buffer')) {
      const child = `${path}/${name.toString('latin1')}`;
      found.push(Buffer.from(child, 'latin1').toString('utf8'));
      if (lstatSync(Buffer.from(top + child, 'latin1')).isDirectory()) visit(child);
    }
  };
  visit('');
  return found.sort();
}

export async function nothingIsLeft(t: Test, { dir }: Place): Promise<void> {
  t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), dir, 'no mount');
  t.notMatch(await run('losetup', ['-a']), dir, 'no loop device');
  const odd = readdirSync(dir).filter(name => name.startsWith('.'));
  t.same(odd, [], 'no file');
}
