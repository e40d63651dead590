/**
 * Goal: a leaf moves to a refreshed root file by file: what it did is there, what the new root did
 * is there, what both did is a conflict and nothing is made of it before somebody decides; and
 * nothing is lost of a file (owner, mode, attributes, ACLs, links, holes, devices, times).
 * Method: real trees on ext4, changed through mounts; the result is compared with what each of the
 * mounted sides shows, and e2fsck has the last word.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { FileRebaseReport } from '../../src/life/file-rebase.ts';
import { step } from '../support/file-history.ts';
import { fullTree } from '../support/full-tree.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

const TOOLS = ['mkfs.ext4', 'e2fsck', 'setfattr', 'setfacl', 'chattr', 'bash'];
const skip = await missing(...DEVICES, ...TOOLS);
t.setTimeout(600_000);

/** A script for bash, or what is done below a directory. */
type Change = string | ((place: string) => void);

/** A root, a refreshed copy of it, and a leaf on the first. Each is changed by a script. */
class World {
  readonly sandbox: Sandbox;
  readonly base: string;
  readonly fresh: string;
  readonly leaf: string;

  constructor(sandbox: Sandbox) {
    this.sandbox = sandbox;
    this.base = sandbox.path('base.img');
    this.fresh = sandbox.path('fresh.img');
    this.leaf = sandbox.path('a.leaf');
  }

  static async make(scripts: { base: Change; fresh: Change; leaf: Change }): Promise<World> {
    const world = new World(await Sandbox.start());
    await run('mkfs.ext4', ['-q', '-F', '-b', '4096', '-O', 'inline_data', world.base, '64M']);
    await world.onImage(world.base, scripts.base);
    await run('cp', ['--sparse=always', world.base, world.fresh]);
    await world.onImage(world.fresh, scripts.fresh);
    const { device, name } = await world.sandbox.attach({ root: world.base, leaf: world.leaf });
    await world.onDevice(device, scripts.leaf);
    await world.sandbox.detach(name);
    return world;
  }

  async onImage(image: string, change: Change): Promise<void> {
    await this.#mounted(['-o', 'loop', image], change);
  }

  async onDevice(device: string, change: Change): Promise<void> {
    await this.#mounted([device], change);
  }

  async #mounted(what: string[], change: Change): Promise<void> {
    const place = this.sandbox.path('mnt');
    mkdirSync(place, { recursive: true });
    await run('mount', [...what, place]);
    try {
      if (typeof change === 'function') change(place);
      else await run('bash', ['-euc', change], { cwd: place });
    } finally {
      await run('umount', [place]);
    }
  }

  /** All that can be seen of the files of an image, or of a leaf. */
  async tree(path: string): Promise<Map<string, string>> {
    const place = this.sandbox.path('mnt');
    const isLeaf = path.includes('.leaf');
    const disk = isLeaf ? await this.sandbox.attach({ leaf: path, readOnly: true }) : null;
    if (disk !== null) await run('e2fsck', ['-fn', disk.device]);
    await run('mount', disk ? ['-o', 'ro', disk.device, place] : ['-o', 'loop,ro', path, place]);
    const tree = await fullTree(place);
    await run('umount', [place]);
    if (disk !== null) await this.sandbox.detach(disk.name);
    return tree;
  }

  async rebase(...options: string[]): Promise<{ status: number; report: FileRebaseReport }> {
    const args = ['rebase', this.leaf, '--root', this.fresh, '--json', ...options];
    const { status, stdout, stderr } = await this.sandbox.ubd(args, { allowFailure: true });
    if (stderr !== '') throw new Error(stderr);
    return { status, report: JSON.parse(stdout)[0].files as FileRebaseReport };
  }

  /** Nothing that a rebase needed is there any more. */
  leftovers(): string[] {
    const files = readdirSync(this.sandbox.dir).filter(name => name.startsWith('.'));
    const daemons = ['state', 'run'].flatMap(directory =>
      readdirSync(this.sandbox.path(directory)).filter(name => name.startsWith('private')),
    );
    return [...files, ...daemons];
  }
}

const BASE = `
  mkdir -p etc usr/bin usr/lib opt/tool/data home/u var/lib/dpkg
  echo one > etc/one; echo two > etc/two; echo three > etc/three; echo four > etc/four
  for i in $(seq 40); do head -c 5000 /dev/urandom > usr/lib/lib$i; done
  head -c 12000000 /dev/urandom > usr/bin/big; chmod 755 usr/bin/big
  for i in $(seq 20); do head -c 9000 /dev/urandom > opt/tool/data/$i; done
  echo Package: a > var/lib/dpkg/status
  ln usr/lib/lib1 usr/lib/lib1-again
  ln -s ../etc/one usr/link
`;
const FRESH = `
  echo ONE > etc/one                       # theirs only
  echo TWO > etc/two                       # both
  rm etc/four                              # leaf changes it
  for i in $(seq 10 20); do head -c 6000 /dev/urandom > usr/lib/lib$i; done
  echo Package: b > var/lib/dpkg/status    # both
  mkdir usr/new; echo n > usr/new/file
  ln usr/lib/lib30 usr/new/thirty          # leaf changes the one
  rm -r usr/lib/lib40
  echo same > etc/same
`;
const LEAF = `
  echo 2 > etc/two
  echo 4 > etc/four
  echo same > etc/same
  echo Package: c > var/lib/dpkg/status
  chmod 600 etc/three; chown 5:6 etc/three
  setfattr -n user.comment -v hello etc/three
  setfacl -m u:7:r,g:8:rw usr/lib/lib2
  mkdir home/u/d; setfacl -d -m u:9:rwx home/u/d; echo x > home/u/d/x
  setfattr -n trusted.big -v $(head -c 3000 /dev/zero | tr '\\0' x) home/u/d/x
  mv opt/tool opt/instrument
  echo more >> opt/instrument/data/3
  rm usr/lib/lib3
  mv usr/lib/lib4 usr/lib/t; mv usr/lib/lib5 usr/lib/lib4; mv usr/lib/t usr/lib/lib5   # swapped
  ln usr/lib/lib6 home/u/hard; ln usr/lib/lib6 home/u/harder
  printf X | dd of=usr/bin/big bs=1 seek=1500000 conv=notrunc status=none
  truncate -s 40M home/u/sparse
  printf Y | dd of=home/u/sparse bs=1 seek=30000000 conv=notrunc status=none
  truncate -s 5M usr/lib/lib7
  fallocate -p -o 8192 -l 500000 usr/bin/big
  echo tail >> usr/lib/lib30
  mknod home/u/null c 1 3; mknod home/u/disk b 259 70000; mkfifo home/u/pipe
  python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('home/u/socket')"
  ln -s /etc/passwd home/u/outside; ln -s $(head -c 200 /dev/zero | tr '\\0' l) home/u/long
  printf z > $'home/u/\\xff\\xfe odd\\n'; printf z > home/u/ümlaut
  rm usr/link; mkdir usr/link; echo y > usr/link/y
  rm -r usr/lib/lib8; mkdir usr/lib/lib8; echo in > usr/lib/lib8/in
  touch -d '2001-02-03 04:05:06.123456789' home/u/d/x etc/one
  chattr +i home/u/d/x
  chmod 2770 home/u
`;

t.test('what each side did is there, and all of it', { skip }, async t => {
  const world = await World.make({ base: BASE, fresh: FRESH, leaf: LEAF });
  t.teardown(() => world.sandbox.cleanup.run());
  const [base, theirs, ours] = [
    await world.tree(world.base),
    await world.tree(world.fresh),
    await world.tree(world.leaf),
  ];

  const first = await world.rebase();
  t.equal(first.status, 1);
  t.same(
    first.report.conflicts.map(({ path, kind, resolution }) => [path, kind, resolution]),
    [
      ['/etc/four', 'file', null],
      ['/etc/two', 'file', null],
      ['/usr/lib/lib30', 'file', null],
      ['/var/lib/dpkg/status', 'packages', null],
    ],
    'what both changed is listed, package databases as such',
  );
  t.equal(first.report.done, false);
  t.same(await world.tree(world.leaf), ours, 'with conflicts, nothing is changed');
  const partly = await world.rebase('--ours', '/etc/two');
  t.equal(partly.report.done, false, 'one that is left is enough');
  const decided = ['--ours', '/', '--theirs', '/var/lib/dpkg'];
  const dry = await world.rebase('--dry-run', ...decided);
  t.same([dry.status, dry.report.done, dry.report.kept], [0, false, null]);
  t.same(await world.tree(world.leaf), ours, 'a dry run changes nothing');
  t.same(world.leftovers(), []);

  const done = await world.rebase(...decided);
  t.same([done.status, done.report.done], [0, true]);
  t.equal(done.report.kept, `${world.leaf}.before-rebase`);
  t.same(world.leftovers(), [], 'nothing is left of the work');
  const result = await world.tree(world.leaf);
  t.same(await world.tree(done.report.kept!), ours, 'the leaf as it was is kept');
  for (const path of new Set([...base.keys(), ...ours.keys(), ...theirs.keys()])) {
    const [b, o, h] = [base.get(path), ours.get(path), theirs.get(path)];
    const isOurs = o !== b && !(h !== b && path === '/var/lib/dpkg/status');
    // A directory's time is the later one; its content is what matters.
    const wanted = isOurs && path !== '/etc/one' ? o : h;
    const strip = (facts: string | undefined): string | undefined =>
      facts?.startsWith('directory') || path === '/etc/same'
        ? facts?.replace(/ mtime.*/, '')
        : facts;
    const apart = ['/usr/lib/lib30', '/usr/new/thirty'].includes(path) ? / = .*/ : /^$/;
    t.equal(strip(result.get(path))?.replace(apart, ''), strip(wanted)?.replace(apart, ''), path);
  }
  t.ok(
    statSync(world.leaf).blocks * 512 < 9_000_000,
    'a byte that was changed in a large file does not bring all of it',
  );
});

t.test('what is in the way of a file is never taken away for it', { skip }, async t => {
  const world = await World.make({
    base: 'mkdir -p gone bin/sub full; echo a > gone/a; echo b > bin/b; echo c > full/c',
    fresh: 'rm -r gone bin; ln -s /etc bin; echo new > full/new; mkdir x; echo theirs > x/y',
    leaf: 'echo a2 > gone/a; echo n > gone/n; echo b2 > bin/b; rm -r full; echo mine > x',
  });
  t.teardown(() => world.sandbox.cleanup.run());
  const theirs = await world.tree(world.fresh);
  const all = await world.rebase();
  t.same(
    all.report.conflicts.map(({ path }) => path),
    ['/bin/b', '/full', '/gone/a', '/gone/n', '/x'],
  );
  const ours = await world.rebase('--ours', '/');
  t.equal(ours.report.done, false, 'a directory that became a link is not made one again');
  t.same(
    ours.report.conflicts.filter(one => one.resolution === null).map(({ path }) => path),
    ['/bin/b'],
  );
  const mixed = await world.rebase('--ours', '/', '--theirs', '/bin', '--theirs', '/x');
  t.ok(mixed.report.done);
  const result = await world.tree(world.leaf);
  t.match(result.get('/gone/a'), /^file/);
  t.equal(result.get('/bin'), theirs.get('/bin'));
  t.notOk(result.has('/full'), 'a directory that was decided to go is gone');
  t.equal(result.get('/x/y'), theirs.get('/x/y'));
  t.ok(existsSync('/etc/b') === false, 'no link of an image leads out of it');
});

t.test('a journal that was not replayed counts', { skip }, async t => {
  const world = await World.make({ base: BASE, fresh: FRESH, leaf: 'echo first > etc/three' });
  t.teardown(() => world.sandbox.cleanup.run());
  const { device, name } = await world.sandbox.attach({ leaf: world.leaf });
  const place = await world.sandbox.mount(device, 'crash');
  await run('bash', ['-euc', 'echo late > etc/late; sync -f etc'], { cwd: place });
  const copy = world.sandbox.path('copy.leaf');
  await run('cp', ['--sparse=always', world.leaf, copy]);
  await world.sandbox.unmount(place);
  await world.sandbox.detach(name);
  await run('mv', [copy, world.leaf]);
  const { report } = await world.rebase();
  t.ok(report.done, JSON.stringify(report.conflicts));
  const result = await world.tree(world.leaf);
  t.match(result.get('/etc/late'), /^file/, basename(world.leaf));
  t.equal((await tryRun('ls', [join(world.sandbox.dir, 'state')])).status, 0);
});

t.test('whatever ends it, nothing is left of it, and the leaf is as it was', { skip }, async t => {
  const world = await World.make({
    base: BASE,
    fresh: FRESH,
    leaf: 'head -c 30000000 /dev/urandom > home/u/large; mkdir n; (cd n; touch {1..2000})',
  });
  const { sandbox } = world;
  t.teardown(() => sandbox.cleanup.run());
  const ours = await world.tree(world.leaf);
  const args = [CLI, 'rebase', world.leaf, '--root', world.fresh];
  // A daemon of a command removes its directories when its devices are gone.
  const clean = (): boolean => world.leftovers().length === 0;
  for (const [signal, waitMs] of [
    ['SIGKILL', 0],
    ['SIGKILL', 150],
    ['SIGKILL', 400],
    ['SIGINT', 100],
    ['SIGTERM', 300],
  ] as const) {
    const child = spawn(process.execPath, args, { env: sandbox.env, stdio: 'ignore' });
    const ended = once(child, 'exit');
    await until('it is at work', () => world.leftovers().some(name => name.startsWith('private')));
    await sleep(waitMs);
    child.kill(signal);
    await ended;
    await until(`nothing is left after ${signal}`, clean);
    if (existsSync(`${world.leaf}.before-rebase`)) {
      t.comment(`${signal} after ${waitMs} ms came too late`);
      await run('mv', [`${world.leaf}.before-rebase`, world.leaf]);
    }
    t.same(await world.tree(world.leaf), ours, `${signal} after ${waitMs} ms`);
  }

  const both = spawn(process.execPath, args, { env: sandbox.env, stdio: 'ignore' });
  const gone = once(both, 'exit');
  await until('it is at work', () => existsSync(sandbox.path('.a.leaf.ubd-new')));
  const children = readFileSync(`/proc/${both.pid}/task/${both.pid}/children`, 'utf8').trim();
  for (const pid of children.split(' ')) if (pid !== '') process.kill(Number(pid), 'SIGKILL');
  both.kill('SIGKILL');
  await gone;
  t.same(await world.tree(world.leaf), ours, 'killed together with its daemon');

  await run('cp', [world.fresh, sandbox.path('keep.img')]);
  await run('mkfs.ext4', ['-q', '-F', '-b', '4096', world.fresh, '20M']);
  const { status, stderr } = await sandbox.ubd([...args.slice(1), '--ours', '/'], {
    allowFailure: true,
  });
  t.equal(status, 1);
  t.match(stderr, /\/home\/u\/large on the new root: cannot write it \(ENOSPC\)/);
  t.ok(clean(), 'a new root that is too small; what was killed before is cleared away');
  t.same(await world.tree(world.leaf), ours);
  await run('mv', [sandbox.path('keep.img'), world.fresh]);
  t.ok((await world.rebase()).report.done, 'and it can be done after all');
  t.ok(clean());
});

t.test(
  'random histories of both sides: each path is as the one that changed it',
  { skip },
  async t => {
    const seeds = QUICK ? 1 : Number(process.env.UBD_TEST_SEEDS ?? 4);
    for (let seed = 0; seed < seeds; seed++) {
      const history = (offset: number, steps: number) => (place: string) => {
        const random = new Random(offset + seed);
        for (let i = 0; i < steps; i++) step(place, random, offset + i);
      };
      const world = await World.make({
        base: history(1000, 50),
        fresh: history(2000, 15),
        leaf: history(3000, 15),
      });
      try {
        const [base, theirs, ours] = [
          await world.tree(world.base),
          await world.tree(world.fresh),
          await world.tree(world.leaf),
        ];
        const winner = seed % 2 === 0 ? 'theirs' : 'ours';
        const { report } = await world.rebase(`--${winner}`, '/');
        const open = report.conflicts.filter(({ resolution }) => resolution === null);
        t.ok(report.done || open.length > 0, `seed ${seed}: ${report.conflicts.length} conflicts`);
        if (!report.done) continue; // something is in the way that is never taken away
        const inConflict = new Set(report.conflicts.map(({ path }) => path));
        const result = await world.tree(world.leaf);
        const wrong: string[] = [];
        for (const path of new Set([...base.keys(), ...ours.keys(), ...theirs.keys()])) {
          const [b, o, h] = [base, ours, theirs].map(tree => timeless(tree.get(path)));
          const byRule = o === b ? h : h === b || o === h ? o : 'conflict';
          const wanted = inConflict.has(path) ? (winner === 'ours' ? o : h) : byRule;
          const is = timeless(result.get(path));
          if (plain(is) === plain(wanted) || path === '') continue;
          // A directory stays, or comes, with what is in it.
          const hasMore = [...result.keys()].some(other => other.startsWith(`${path}/`));
          if (is?.startsWith('directory') && hasMore) continue;
          // What was below one that was decided to be something else goes with it.
          const isBelow = [...inConflict].some(top => path.startsWith(`${top}/`));
          if (isBelow && is === undefined) continue;
          wrong.push(`${path}: ${is}, not ${wanted} (${b} | ${o} | ${h})`);
        }
        t.same(wrong, [], `seed ${seed}: ${winner} where both changed it`);
        t.same(
          [...result.keys()].filter(path => !ours.has(path) && !theirs.has(path)),
          [],
          `seed ${seed}: nothing comes from nowhere`,
        );
      } finally {
        await world.sandbox.cleanup.run();
      }
    }
  },
);

function timeless(facts: string | undefined): string | undefined {
  return facts?.replace(/ mtime \d+/, '');
}

/** Without the names that share the file, and how sparse it is. */
function plain(facts: string | undefined): string | undefined {
  return facts?.replace(/ = .*/, '').replace(/ (sparse|full)\b/, '');
}
