/**
 * Goal: `ubd index`, `find` and `diff` tell of real leaves what the mounted disks show, and cost
 * what was changed. Method: a root with a real tree, real work on attached and mounted devices,
 * then the commands, next to a walk of both mounts.
 */
import { mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { FileChange, FoundFile, IndexReport } from '../../src/index.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'mkfs.ext4', 'diff');
t.setTimeout(600_000);
const project = fileURLToPath(new URL('../../..', import.meta.url));

t.test('what a leaf changed is found, file by file', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const [root, leaf] = [sandbox.path('root.img'), sandbox.path('a.leaf')];
  const [below, above] = [sandbox.path('below'), sandbox.path('above')];
  for (const directory of [below, above]) mkdirSync(directory);
  writeFileSync(root, '');
  truncateSync(root, 256 << 20);
  await run('mkfs.ext4', ['-q', '-F', root]);
  await run('mount', ['-o', 'loop', root, below]);
  await run('cp', ['-a', join(project, 'src'), join(project, 'test'), below]);
  await run('umount', [below]);

  const device = await sandbox.attach({ root, leaf, name: 'a' });
  sandbox.cleanup.add('unmount', async () => {
    await tryRun('umount', ['-q', above]);
    await tryRun('umount', ['-q', below]);
  });
  await run('mount', [device.device, above]);
  const at = (name: string): string => join(above, name);
  await run('mv', [at('src/leaf'), at('src/leaves')]);
  await run('rm', ['-r', at('src/uring')]);
  await run('cp', ['-a', join(project, 'scripts'), above]);
  writeFileSync(at('src/leaves/leaf.ts'), 'changed');
  writeFileSync(at('evil \x1b[31m\n'), '');
  await run('umount', [above]);

  const ubd = (...args: string[]): Promise<RunResult> => sandbox.ubd(args, { allowFailure: true });
  const busy = await ubd('diff', 'a');
  t.equal(busy.status, 0, `a leaf in use is read at one moment ${busy.stderr}`);
  for (const args of [
    ['index', 'a'],
    ['find', 'a', 'leaf.ts'],
    ['why', 'a'],
  ]) {
    const { status, stderr } = await ubd(...args);
    t.equal(status, 0, `${args[0]} ${stderr}`);
  }
  await sandbox.detach('a');
  t.equal((await ubd('diff', leaf)).stdout, busy.stdout, 'and says the same as afterwards');

  const json = async <T>(...args: string[]): Promise<T> => {
    const { status, stdout, stderr } = await ubd(...args, '--json');
    if (status !== 0) throw new Error(stderr);
    return JSON.parse(stdout) as T;
  };
  const first = await json<IndexReport>('index', root, '--force');
  t.same([first.made, first.path], [true, `${root}.ubdindex`]);
  t.ok(first.inodes! > 300);
  t.equal((await json<IndexReport>('index', root)).made, false, 'the second time it is there');
  const own = await json<IndexReport>('index', leaf, '--force');
  t.ok(own.made && own.inodes! < first.inodes! / 2, 'a leaf costs what it changed');
  t.equal((await json<IndexReport>('index', leaf)).made, false);

  const { changes } = await json<{ changes: FileChange[] }>('diff', leaf);
  const said = (path: string): string | undefined =>
    changes.find(change => change.path === path)?.change;
  t.same(
    changes.filter(({ path }) => path.startsWith('/src')).map(c => [c.change, c.path, c.from]),
    [
      ...[['renamed', '/src/leaves', '/src/leaf']],
      ...[['modified', '/src/leaves/leaf.ts', undefined]],
      ...changes
        .filter(({ path }) => path.startsWith('/src/uring'))
        .map(({ path }) => ['deleted', path, undefined]),
    ],
    'a renamed directory is one change',
  );
  t.equal(said('/src/uring'), 'deleted');
  t.equal(said('/scripts/demo'), 'added');

  // The truth: what diff(1) says of both mounts.
  const again = await sandbox.attach({ leaf, name: 'a', readOnly: true });
  await run('mount', ['-o', 'loop,ro', root, below]);
  await run('mount', ['-o', 'ro,noload', again.device, above]);
  const { stdout } = await tryRun('diff', ['-rq', '--no-dereference', below, above]);
  await run('umount', [above]);
  await run('umount', [below]);
  const places = new Map([
    [below, 'deleted'],
    [above, 'added'],
  ]);
  let lines = 0;
  for (const line of stdout.split('\n')) {
    const [, directory, name] = /^Only in (.+): (.*)$/.exec(line) ?? [];
    const [, both] = /^Files (.+) and .+ differ$/.exec(line) ?? [];
    const full = both ?? (directory === undefined ? undefined : `${directory}/${name}`);
    // The odd name goes on in the next line.
    if (full === undefined || full.includes('evil')) continue;
    const top = full.startsWith(below) ? below : above;
    const path = full.slice(top.length);
    const wanted = both === undefined ? places.get(top) : 'modified';
    const moved = new Map([
      ['/src/leaf', 'deleted'],
      ['/src/leaves', 'added'],
    ]);
    t.equal(moved.get(path) ?? said(path), wanted, `${path} is ${wanted}`);
    lines++;
  }
  t.equal(lines, 4, stdout);
  await sandbox.detach('a');

  const found = await json<FoundFile[]>('find', leaf, '/src/lea*.ts', '--changed');
  t.same(
    found.map(({ path }) => path),
    ['/src/leaves/leaf.ts'],
  );
  t.equal((await ubd('find', leaf, 'no such file')).status, 1);
  const shown = await ubd('diff', leaf);
  t.match(shown.stdout, 'evil \\x1b[31m\\n', 'a name cannot write to the terminal');
  t.notOk(shown.stdout.includes('\x1b'));

  // A root that was replaced has an index of its own.
  const old = readFileSync(first.path);
  await run('mount', ['-o', 'loop', root, below]);
  writeFileSync(join(below, 'one more'), '');
  await run('umount', [below]);
  const anew = await json<IndexReport>('index', root);
  t.ok(anew.made && anew.inodes === first.inodes! + 1, 'another content, another index');
  t.notSame(readFileSync(first.path), old);
  t.ok(statSync(first.path).size > 0);
});
