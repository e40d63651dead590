/**
 * What the index of files costs, beside what people use instead: of a root with the files of a
 * Debian, and of one with a million small files.
 *
 *     node dist/test/bench/files.js prepare DIR   makes the images: minutes, some GiB
 *     node dist/test/bench/files.js measure DIR [debian|small] [--alone] [--svg FILE]
 *                                     as root; prints a table and a CSV, draws a plot; with --alone
 *                                     the programs beside it are left out
 *
 * Each program begins with cold caches of the kernel. The others read a mount; theirs is the time
 * without the mounting. A leaf is made for each change; of
 * it there is also the time of the work itself in a process that runs already: the first time, with
 * cold caches, and the best of five with warm ones, next to that of the whole index. A change is so
 * many new small files, or a package of this machine, file by file.
 */
import { copyFileSync, lstatSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { indexLeaf, indexRoot } from '../../src/life/files.ts';
import { run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { type IndexPoint, plotIndex } from './files-plot.ts';

const TIMEOUT_MS = 900_000;
const DEBIAN = '/usr/share';
const SMALL_FILES = 1_000_000;
const FILES_IN_DIRECTORY = 1000;
const CHANGES = [10, 100, 1000, 10_000];

/** Packages of this machine; those that are not there are left out. */
const PACKAGES = ['gdisk', 'git'];

const { values: flags, positionals } = parseArgs({
  options: { svg: { type: 'string' }, alone: { type: 'boolean' } },
  allowPositionals: true,
});
const [phase, given, only] = positionals;
if (given === undefined || (phase !== 'prepare' && phase !== 'measure')) {
  process.stderr.write('usage: files.js prepare|measure DIR\n');
  process.exit(2);
}
const directory = resolve(given);
const images = { debian: join(directory, 'debian.img'), small: join(directory, 'small.img') };

const measured = Object.entries(images).filter(([name]) => only === undefined || name === only);

async function prepare(): Promise<void> {
  mkdirSync(directory, { recursive: true });
  const make = (...options: string[]): Promise<string> =>
    run('mkfs.ext4', ['-q', '-F', ...options], { timeoutMs: TIMEOUT_MS });
  await make('-d', DEBIAN, images.debian, '3G');
  await make('-N', '1200000', images.small, '8G');
  const place = join(directory, 'mnt');
  mkdirSync(place, { recursive: true });
  await run('mount', ['-o', 'loop', images.small, place]);
  try {
    for (let i = 0; i < SMALL_FILES; i++) {
      const parent = join(place, `d${Math.floor(i / FILES_IN_DIRECTORY)}`);
      if (i % FILES_IN_DIRECTORY === 0) mkdirSync(parent);
      writeFileSync(join(parent, `file-${i}.txt`), `file ${i}\n`);
    }
  } finally {
    await run('umount', [place], { timeoutMs: TIMEOUT_MS });
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  await run('sync', []);
  writeFileSync('/proc/sys/vm/drop_caches', '3');
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
}

function row(what: string, seconds: number, bytes: number | null, note = ''): void {
  const size = bytes === null ? '' : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  process.stdout.write(`${what.padEnd(44)} ${seconds.toFixed(2).padStart(8)} s ${size} ${note}\n`);
}

async function mounted(what: string[], place: string, work: () => Promise<void>): Promise<void> {
  mkdirSync(place, { recursive: true });
  await run('mount', [...what, place]);
  try {
    await work();
  } finally {
    await run('umount', [place], { timeoutMs: TIMEOUT_MS });
  }
}

async function roots(sandbox: Sandbox): Promise<Map<string, number>> {
  const seconds = new Map<string, number>();
  for (const [name, image] of measured) {
    const index = `${image}.ubdindex`;
    const own = await timed(() =>
      sandbox.ubd(['index', '--force', image], { timeoutMs: TIMEOUT_MS }),
    );
    seconds.set(name, own);
    row(`${name}: ubd index`, own, statSync(index).size);
    if (flags.alone) continue;
    await mounted(['-o', 'loop,ro', image], sandbox.path('mnt'), async () => {
      const place = sandbox.path('mnt');
      const list = sandbox.path('list');
      const find = `find . -printf '%i %m %U:%G %s %T@ %p\\n' > ${list}`;
      const other = await timed(() =>
        run('bash', ['-c', find], { cwd: place, timeoutMs: TIMEOUT_MS }),
      );
      row(`${name}: find -printf`, other, statSync(list).size);
      const database = sandbox.path('plocate.db');
      const updated = await timed(() =>
        run('updatedb', ['-U', place, '-o', database, '--prunepaths', '', '--prunefs', ''], {
          timeoutMs: TIMEOUT_MS,
        }),
      );
      row(`${name}: updatedb of plocate (names alone)`, updated, statSync(database).size);
    });
  }
  return seconds;
}

async function best(work: () => Promise<unknown>, rounds: number = 5): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < rounds; i++) {
    const start = performance.now();
    await work();
    least = Math.min(least, (performance.now() - start) / 1000);
  }
  return least;
}

/** Regular files of a package, as this machine has them. */
async function packageFiles(name: string): Promise<string[]> {
  const { status, stdout } = await tryRun('dpkg-query', ['-L', name]);
  const list = status === 0 ? stdout.split('\n') : [];
  return list.filter(path => lstatSync(path, { throwIfNoEntry: false })?.isFile());
}

interface Change {
  what: string;
  /** Below a mount. Says how many files. */
  make(place: string): Promise<number>;
}

function changes(): Change[] {
  const added = CHANGES.map(count => ({
    what: `${count} new files`,
    async make(place: string): Promise<number> {
      const parent = join(place, `added-${count}`);
      mkdirSync(parent);
      for (let i = 0; i < count; i++) writeFileSync(join(parent, `f${i}`), `${i}`.repeat(500));
      return count;
    },
  }));
  const packages = PACKAGES.map(name => ({
    what: `package ${name}`,
    async make(place: string): Promise<number> {
      const files = await packageFiles(name);
      for (const file of files) {
        const to = join(place, file);
        mkdirSync(dirname(to), { recursive: true });
        copyFileSync(file, to);
      }
      return files.length;
    },
  }));
  return [...added, ...packages];
}

async function leaves(sandbox: Sandbox, whole: Map<string, number>): Promise<void> {
  const points: IndexPoint[] = [];
  const wholes: { root: string; seconds: number }[] = [];
  await indexRoot(images.debian, { directory }); // all is loaded now that a running process has
  for (const [name, image] of measured) {
    const all = whole.get(name)!;
    const warm = await best(() => indexRoot(image, { directory, force: true }), 2);
    wholes.push({ root: name, seconds: warm });
    row(`${name}: whole index, in a process, warm caches`, warm, null);
    for (const { what, make } of changes()) {
      const leaf = sandbox.path('one.leaf');
      let files = 0;
      const disk = await sandbox.attach({ root: image, leaf });
      await mounted([disk.device], sandbox.path('mnt'), async () => {
        files = await make(sandbox.path('mnt'));
      });
      await sandbox.detach(disk.name);
      if (files > 0) {
        const own = await timed(() => sandbox.ubd(['index', leaf], { timeoutMs: TIMEOUT_MS }));
        const again = () => indexLeaf(leaf, { directory, force: true });
        const inside = await timed(again);
        const least = await best(again);
        const bytes = statSync(leaf).blocks * 512;
        row(`${name}: index of a leaf, ${what} (${files}), command`, own, bytes, times(all / own));
        row('  in a process, cold caches', inside, null, times(all / inside));
        row('  in a process, warm caches', least, null, times(warm / least));
        const more = await goOn(sandbox, leaf);
        row('  after ten more files', more, null, times(warm / more));
        const seconds = { command: own, cold: inside, warm: least };
        points.push({ root: name, what, files, bytes, ...seconds });
      }
      for (const end of ['', '.ubdindex']) rmSync(leaf + end, { force: true });
    }
    if (!flags.alone) await beside(sandbox, name, image);
  }
  const csv = points.map(one => Object.values(one).join(','));
  process.stdout.write(`\nroot,change,files,bytes,command,cold,warm\n${csv.join('\n')}\n`);
  if (flags.svg !== undefined) writeFileSync(flags.svg, plotIndex(points, wholes));
}

/** Ten more files, and the index that goes on from the one that is there. */
async function goOn(sandbox: Sandbox, leaf: string): Promise<number> {
  const before = `${leaf}.before`;
  copyFileSync(`${leaf}.ubdindex`, before);
  const disk = await sandbox.attach({ leaf });
  await mounted([disk.device], sandbox.path('mnt'), async () => {
    for (let i = 0; i < 10; i++) writeFileSync(join(sandbox.path('mnt'), `more-${i}`), `${i}`);
  });
  await sandbox.detach(disk.name);
  const seconds = await best(() => {
    copyFileSync(before, `${leaf}.ubdindex`);
    return indexLeaf(leaf, { directory });
  });
  rmSync(before);
  return seconds;
}

function times(factor: number): string {
  return `${factor.toFixed(0)} x faster than the root`;
}

/** What a diff takes, next to programs that compare mounts. */
async function beside(sandbox: Sandbox, name: string, image: string): Promise<void> {
  const leaf = sandbox.path('one.leaf');
  const made = await sandbox.attach({ root: image, leaf });
  await mounted([made.device], sandbox.path('mnt'), async () => {
    for (const { make } of changes()) await make(sandbox.path('mnt'));
  });
  await sandbox.detach(made.name);
  const fresh = await timed(() => sandbox.ubd(['diff', leaf], { timeoutMs: TIMEOUT_MS }));
  row(`${name}: ubd diff, index of the leaf made anew`, fresh, null);
  const diff = await timed(() => sandbox.ubd(['diff', leaf], { timeoutMs: TIMEOUT_MS }));
  row(`${name}: ubd diff, index there`, diff, null);
  const disk = await sandbox.attach({ leaf, readOnly: true });
  const [a, b] = [`${sandbox.path('below')}/`, `${sandbox.path('mnt')}/`];
  const compare = (program: string, ...args: string[]): Promise<number> =>
    timed(() => tryRun(program, args, { timeoutMs: TIMEOUT_MS }));
  await mounted(['-o', 'loop,ro', image], a, () =>
    mounted(['-o', 'ro', disk.device], b, async () => {
      const quick = await compare('rsync', '-n', '-a', '-i', '--delete', b, a);
      row(`${name}: rsync -n of both mounts (sizes, times)`, quick, null);
      if (name !== 'debian') return;
      const sums = await compare('rsync', '-n', '-a', '-c', '-i', '--delete', b, a);
      row(`${name}: rsync -n -c of both mounts (content)`, sums, null);
      const bytes = await compare('diff', '-rq', '--no-dereference', a, b);
      row(`${name}: diff -rq of both mounts (content)`, bytes, null);
    }),
  );
  await sandbox.detach(disk.name);
  for (const end of ['', '.ubdindex']) rmSync(leaf + end, { force: true });
}

if (phase === 'prepare') await prepare();
else {
  const sandbox = await Sandbox.start(undefined, directory);
  try {
    await leaves(sandbox, await roots(sandbox));
  } finally {
    await sandbox.cleanup.run();
  }
}
