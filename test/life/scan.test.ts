/**
 * Goal: a scanner sees each file of a root once, ever, and of a leaf what it changed and nothing
 * else; what is found is told where it is. Method: a scanner that writes down what it was given, on
 * a real ext4 and changes to it; what it finds is planted.
 */
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { scanImage } from '../../src/life/scan.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { missing } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing('root', '/dev/loop-control', 'mkfs.ext4', 'mount');
t.setTimeout(300_000);

t.test('a root is scanned once, of a leaf what it changed', { skip }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-scan-test-'));
  const at = (name: string): string => join(dir, name);
  const [root, copy, leaf, mnt, log] = ['root', 'copy', 'leaf', 'mnt', 'log'].map(at) as [
    string,
    string,
    string,
    string,
    string,
  ];
  t.teardown(async () => {
    await run('umount', ['-q', mnt]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  mkdirSync(mnt);
  writeFileSync(root, '');
  truncateSync(root, 32 << 20);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-b', '4096', root]);
  await run('mount', ['-o', 'loop', root, mnt]);
  mkdirSync(join(mnt, 'bin/sub'), { recursive: true });
  for (let i = 0; i < 40; i++) writeFileSync(join(mnt, `bin/sub/f${i}`), `file ${i}\n`);
  for (const name of ['kept', 'cleaned', 'moved', 'gone'])
    writeFileSync(join(mnt, `bin/${name}`), 'EVIL in the root\n');
  writeFileSync(Buffer.from(join(mnt, 'bin/odd \xff\n'), 'latin1'), 'EVIL by name\n');
  await run('umount', [mnt]);
  copyFileSync(root, copy);
  await run('mount', ['-o', 'loop', copy, mnt]);
  appendFileSync(join(mnt, 'bin/sub/f3'), 'EVIL appended\n');
  writeFileSync(join(mnt, 'bin/new'), 'harmless\n');
  writeFileSync(join(mnt, 'bin/cleaned'), 'harmless now\n');
  renameSync(join(mnt, 'bin/moved'), join(mnt, 'bin/sub/moved'));
  chmodSync(join(mnt, 'bin/sub/f9'), 0o600);
  rmSync(join(mnt, 'bin/gone'));
  await run('umount', [mnt]);
  await makeImageLeaf(root, leaf, copy);

  const command = `f() { for p; do echo "$p" >> ${log}; done; ! grep -H EVIL "$@"; }; f`;
  const given = (): string[] => {
    const lines = existsSync(log) ? readFileSync(log, 'utf8').split('\n') : [];
    rmSync(log, { force: true });
    return [...new Set(lines.filter(line => line.includes('/files/')))]
      .map(line => line.replace(/^.*\/files/, ''))
      .sort();
  };
  const use = { directory: dir };
  const scan = (kind: 'root' | 'leaf', more = {}) =>
    scanImage({ image: { kind, path: kind === 'root' ? root : leaf }, command, ...more }, use);

  const first = await scan('root');
  t.match(first, { scanned: { root: 45, leaf: 0 }, reused: 0 });
  t.same(first.found.map(({ path }) => path).sort(), [
    '/bin/cleaned',
    '/bin/gone',
    '/bin/kept',
    '/bin/moved',
    '/bin/odd \ufffd\n',
  ]);
  t.match(
    first.found.find(({ path }) => path === '/bin/kept'),
    {
      status: 1,
      output: '/bin/kept:EVIL in the root',
      from: 'root',
    },
  );
  t.equal(given().length, 44, 'and one under a number');

  const again = await scan('root');
  t.match(again, { scanned: { root: 0, leaf: 0 }, reused: 45 });
  t.same(again.found.sort(byPath), first.found.sort(byPath));
  t.same(given(), []);

  const changed = await scan('leaf');
  t.match(changed, { scanned: { root: 0, leaf: 3 }, reused: 45 });
  t.same(given(), ['/bin/cleaned', '/bin/new', '/bin/sub/f3']);
  t.same(changed.found.map(({ path, from }) => [path, from]).sort(), [
    ['/bin/kept', 'root'],
    ['/bin/odd \ufffd\n', 'root'],
    ['/bin/sub/f3', 'leaf'],
    ['/bin/sub/moved', 'root'],
  ]);
  t.match(await scan('root', { scanner: 'newer signatures' }), { scanned: { root: 45 } });
  t.match(await scan('root', { force: true }), { scanned: { root: 45 }, reused: 0 });
  await t.rejects(scan('root', { command: 'exit 127;', scanner: 'x' }), { code: 'usage' });
  t.match(
    await scan('root', { scanner: 'x' }),
    { scanned: { root: 45 } },
    'nothing was kept of it',
  );
  t.notOk(
    readdirSync(dir).some(name => name.endsWith('.new')),
    'nothing is left',
  );
});

function byPath(a: { path: string }, b: { path: string }): number {
  return a.path < b.path ? -1 : 1;
}
