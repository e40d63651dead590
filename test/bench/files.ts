/**
 * What the index of files costs, beside what people use instead: of a root with the files of a
 * Debian, and of one with a million small files.
 *
 *     node dist/test/bench/files.js prepare DIR      makes the images: minutes, some GiB
 *     node dist/test/bench/files.js measure DIR [debian|small]
 *                                                    as root; prints a table, and a CSV for a plot
 *
 * Each program begins with cold caches of the kernel. The others read a mount; theirs is the time
 * without the mounting. A leaf's index is made after more and more files were added to the leaf; of
 * it there is also the time without the start of the command (Node and its modules from a cold
 * disk), which is all there is to a small change.
 */
import { mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { indexLeaf } from '../../src/life/files.ts';
import { run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const TIMEOUT_MS = 900_000;
const DEBIAN = '/usr/share';
const SMALL_FILES = 1_000_000;
const FILES_IN_DIRECTORY = 1000;
const CHANGES = [10, 100, 1000, 10_000];

const [phase, given, only] = process.argv.slice(2);
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

async function leaves(sandbox: Sandbox, whole: Map<string, number>): Promise<void> {
  const points: string[] = ['root,files,seconds,seconds without start,root seconds'];
  for (const [name, image] of measured) {
    const leaf = sandbox.path(`${name}.leaf`);
    const all = whole.get(name)!;
    for (const count of CHANGES) {
      const disk = await sandbox.attach({ root: image, leaf });
      await mounted([disk.device], sandbox.path('mnt'), async () => {
        const parent = sandbox.path(`mnt/added-${count}`);
        mkdirSync(parent);
        for (let i = 0; i < count; i++) writeFileSync(join(parent, `f${i}`), `${i}`.repeat(500));
      });
      await sandbox.detach(disk.name);
      const own = await timed(() => sandbox.ubd(['index', leaf], { timeoutMs: TIMEOUT_MS }));
      const inside = await timed(() => indexLeaf(leaf, { directory, force: true }));
      const times = `${(all / own).toFixed(0)} x faster than the root`;
      row(
        `${name}: ubd index of a leaf, +${count} files`,
        own,
        statSync(`${leaf}.ubdindex`).size,
        times,
      );
      row('  without the start of the command', inside, null, `${(all / inside).toFixed(0)} x`);
      points.push([name, count, own.toFixed(3), inside.toFixed(3), all.toFixed(3)].join(','));
    }
    const diff = await timed(() => sandbox.ubd(['diff', leaf], { timeoutMs: TIMEOUT_MS }));
    row(`${name}: ubd diff, index there`, diff, null);
    rmSync(`${leaf}.ubdindex`);
    const fresh = await timed(() => sandbox.ubd(['diff', leaf], { timeoutMs: TIMEOUT_MS }));
    row(`${name}: ubd diff, index of the leaf made anew`, fresh, null);
    const disk = await sandbox.attach({ leaf, readOnly: true });
    await mounted(['-o', 'loop,ro', image], sandbox.path('below'), () =>
      mounted(['-o', 'ro', disk.device], sandbox.path('mnt'), async () => {
        const [a, b] = [`${sandbox.path('below')}/`, `${sandbox.path('mnt')}/`];
        const rsync = await timed(() =>
          tryRun('rsync', ['-n', '-a', '-i', '--delete', b, a], { timeoutMs: TIMEOUT_MS }),
        );
        row(`${name}: rsync -n of both mounts (sizes, times)`, rsync, null);
        if (name !== 'debian') return;
        const compared = await timed(() =>
          tryRun('diff', ['-rq', '--no-dereference', a, b], { timeoutMs: TIMEOUT_MS }),
        );
        row(`${name}: diff -rq of both mounts (content)`, compared, null);
      }),
    );
    await sandbox.detach(disk.name);
  }
  process.stdout.write(`\n${points.join('\n')}\n`);
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
