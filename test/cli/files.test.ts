/**
 * Goal: what `diff`, `find` and `index` print of files is true, whole lines, and harmless on a
 * terminal, whatever the names are. Method: the command itself on leaves made of real images.
 */
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { missing } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mke2fs', 'mount', 'sfdisk');
const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const EVIL = 'evil \x1b[31m\nM 0 forged';

interface Place {
  root: string;
  dir: string;
  /** A leaf over the root, with what `work` does to the file system at `offset`. */
  leaf(name: string, work: (mnt: string) => void, offset?: number): Promise<string>;
  ubd(...args: string[]): Promise<RunResult>;
}

async function place(t: Test): Promise<Place> {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-files-'));
  const [root, mnt] = [join(dir, 'root'), join(dir, 'mnt')];
  mkdirSync(mnt);
  t.teardown(async () => {
    await tryRun('umount', ['-q', mnt]);
    rmSync(dir, { recursive: true, force: true });
  });
  const own = ['--state-dir', join(dir, 'state'), '--runtime-dir', join(dir, 'run')];
  return {
    root,
    dir,
    async leaf(name, work, offset = 0) {
      const [copy, leaf] = [join(dir, 'copy'), join(dir, name)];
      copyFileSync(root, copy);
      await run('mount', ['-o', `loop,offset=${offset}`, copy, mnt]);
      try {
        work(mnt);
      } finally {
        await run('umount', [mnt]);
      }
      await makeImageLeaf(root, leaf, copy);
      return leaf;
    },
    ubd: (...args) => tryRun(process.execPath, [main, ...args, ...own]),
  };
}

function tree(dir: string): string {
  const top = join(dir, 'tree');
  mkdirSync(join(top, 'etc'), { recursive: true });
  mkdirSync(join(top, 'srv/deep'), { recursive: true });
  writeFileSync(join(top, 'etc/passwd'), 'root:x:0\n');
  writeFileSync(join(top, 'etc/hosts'), 'localhost\n');
  writeFileSync(join(top, 'srv/deep/gone'), 'gone');
  return top;
}

/** No byte of them moves a cursor or changes a colour; a line is one name. */
function harmless(t: Test, { stdout, stderr }: RunResult): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there
  t.notMatch(stdout + stderr, /[\x00-\x09\x0b-\x1f\x7f]/);
}

t.test('names, trees, and who has changed what', { skip }, async t => {
  const { root, dir, leaf, ubd } = await place(t);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree(dir), root, '16M']);
  const a = await leaf('a.leaf', mnt => {
    writeFileSync(join(mnt, 'etc/passwd'), 'root:x:0\nubd:x:7\n');
    rmSync(join(mnt, 'srv/deep/gone'));
    renameSync(join(mnt, 'etc/hosts'), join(mnt, 'etc/hosts.old'));
    writeFileSync(join(mnt, EVIL), 'x'.repeat(2000));
  });
  const b = await leaf('b.leaf', mnt => writeFileSync(join(mnt, 'srv/new'), 'new'));

  const list = await ubd('diff', a);
  t.equal(list.status, 0, list.stderr);
  harmless(t, list);
  const lines = ({ stdout }: RunResult): string[] =>
    stdout
      .trimEnd()
      .split('\n')
      .map(line => line.replace(/ +/g, ' '));
  t.same(lines(list), [
    'R 10 /etc/hosts -> /etc/hosts.old',
    'M 17 /etc/passwd',
    'A 2K /evil \\x1b[31m\\nM 0 forged',
    'D 4 /srv/deep/gone',
  ]);
  const drawn = await ubd('diff', a, '--tree');
  harmless(t, drawn);
  t.same(lines(drawn), [
    '/ 2K',
    '├─ etc/ 27',
    '│ ├─ R hosts.old (was /etc/hosts) 10',
    '│ └─ M passwd 17',
    '├─ A evil \\x1b[31m\\nM 0 forged 2K',
    '└─ srv/ 0',
    ' └─ deep/ 0',
    ' └─ D gone 0',
  ]);

  const who = await ubd('find', root, '/etc/passwd', '--leaves', '--in', dir);
  t.same([who.status, who.stdout], [0, `${a}: M /etc/passwd\n`], who.stderr);
  const json = JSON.parse(
    (await ubd('find', root, '/srv/*', '--leaves', '--in', dir, '--json')).stdout,
  );
  t.same(
    json.leaves.map(({ leaf: path, changes }: { leaf: string; changes: { path: string }[] }) => [
      path,
      changes.map(change => change.path),
    ]),
    [
      [a, ['/srv/deep/gone']],
      [b, ['/srv/new']],
    ],
  );
  const nobody = await ubd('find', root, 'nothing', '--leaves', '--in', dir);
  t.same([nobody.status, nobody.stdout], [1, '']);
  const found = await ubd('find', a, 'evil', '--long');
  harmless(t, found);
  t.match(found.stdout, /^0644 0:0 .* \/evil \\x1b/);
});

t.test('a disk with partitions', { skip }, async t => {
  const { root, dir, leaf, ubd } = await place(t);
  writeFileSync(root, '');
  truncateSync(root, 24 << 20);
  writeFileSync(join(dir, 'script'), 'label: gpt\nstart=2048,size=8M\nsize=8M\n');
  await run('sh', ['-c', `sfdisk -q ${root} < ${dir}/script`]);
  const offsets = [2048 * 512, 2048 * 512 + (8 << 20)];
  const top = tree(dir);
  for (const offset of offsets)
    await run('mke2fs', [
      '-q',
      '-F',
      '-t',
      'ext4',
      '-d',
      top,
      '-E',
      `offset=${offset}`,
      root,
      '8M',
    ]);
  const changed = await leaf(
    'a.leaf',
    mnt => writeFileSync(join(mnt, 'etc/hosts'), 'elsewhere\n'),
    offsets[1],
  );
  const index = await ubd('index', root);
  t.equal(index.stdout, `${root}.p1.ubdindex\n${root}.p2.ubdindex\n`, index.stderr);
  t.match((await ubd('diff', changed)).stdout, /^M +10 {2}p2:\/etc\/hosts\n$/);
  t.match(
    (await ubd('diff', changed, '--tree')).stdout,
    /^p2:\/ +10\n└─ etc\/ +10\n {3}└─ M hosts +10\n$/,
  );
  t.equal((await ubd('find', changed, 'hosts')).stdout, 'p1:/etc/hosts\np2:/etc/hosts\n');
  t.equal((await ubd('find', changed, 'hosts', '--changed')).stdout, 'p2:/etc/hosts\n');
  const line = await ubd('diff', changed, '--content', '/etc/hosts');
  t.match(line.stdout, /\n-localhost\n\+elsewhere\n$/);
});

t.test('partitions that overlap are counted once', { skip }, async t => {
  const { root, dir, leaf, ubd } = await place(t);
  writeFileSync(root, '');
  truncateSync(root, 12 << 20);
  const table = Buffer.alloc(66);
  for (const at of [0, 16]) {
    table[at + 4] = 0x83;
    table.writeUInt32LE(2048, at + 8);
    table.writeUInt32LE(16_384, at + 12);
  }
  table.writeUInt16LE(0xaa55, 64);
  const offset = 2048 * 512;
  await run('mke2fs', [
    ...['-q', '-F', '-t', 'ext4', '-d', tree(dir), '-E', `offset=${offset}`, root, '8M'],
  ]);
  const fd = openSync(root, 'r+');
  writeSync(fd, table, 0, table.length, 446);
  closeSync(fd);
  const twice = await leaf(
    'a.leaf',
    mnt => writeFileSync(join(mnt, 'big'), Buffer.alloc(1 << 20, 1)),
    offset,
  );
  const { status, stdout, stderr } = await ubd('why', twice, '--json');
  t.equal(status, 0, stderr);
  const { kinds, heldBytes, notes } = JSON.parse(stdout) as {
    kinds: Record<string, number>;
    heldBytes: number;
    notes: string[];
  };
  const sizes = Object.values(kinds);
  t.equal(
    sizes.reduce((sum, bytes) => sum + bytes),
    heldBytes,
  );
  t.ok(
    sizes.every(bytes => bytes >= 0),
    JSON.stringify(kinds),
  );
  t.same(notes, ['partition 2 overlaps another one, and is not counted']);
});
