/**
 * Goal: what somebody left who was killed in the middle of making files goes; what somebody is
 * making, and what is no such file, stays. Method: a process that makes leaves without end is
 * killed; files are made to look old.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { clearOrphans } from '../../src/leaf/orphans.ts';
import { until } from '../support/run.ts';

const MAKER = fileURLToPath(new URL('../support/leaf-maker.js', import.meta.url));

function directory(t: Test): string {
  const dir = mkdtempSync(`${tmpdir()}/ubd-orphans-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

function age(dir: string): void {
  const then = new Date(Date.now() - 3_600_000);
  for (const name of readdirSync(dir)) utimesSync(`${dir}/${name}`, then, then);
}

const UUID = 'f1d2d2f9-24e9-4ac8-8f34-4fbd8a5b1c11';

t.test('what nobody has locked, and is old, goes', async t => {
  const dir = directory(t);
  const overlay = '.web.leaf.ubd-overlay-0123456789ab';
  const ours = [`.ubd-${UUID}.new`, '.web.img.ubd-new', '.web.qcow2.ubd-raw', overlay];
  const others = [
    'web.leaf',
    '.web.leaf.ubd-still-0123456789ab',
    `.ubd-${UUID}.next`,
    '.ubd-x.new',
    `${overlay}c`,
  ];
  for (const name of [...ours, ...others]) writeFileSync(`${dir}/${name}`, name);
  mkdirSync(`${dir}/.dir.ubd-new`);
  t.same(clearOrphans(dir), [], 'young ones stay: their maker may be about to lock them');
  age(dir);
  const held = FileMedia.open(`${dir}/${ours[1]}`);
  t.same(
    clearOrphans(dir).sort(),
    [ours[0], overlay, ours[2]].map(name => `${dir}/${name}`),
  );
  held.close();
  t.same(clearOrphans(dir), [`${dir}/${ours[1]}`], 'when its maker is gone');
  t.same(readdirSync(dir).sort(), [...others, '.dir.ubd-new'].sort());
  t.same(clearOrphans(`${dir}/none`), []);
});

t.test('a maker of leaves that is killed leaves nothing for long', async t => {
  const dir = directory(t);
  let left = 0;
  for (let round = 0; round < 3 || (left === 0 && round < 100); round++) {
    const maker = spawn(process.execPath, [MAKER, dir], { stdio: 'ignore' });
    const ended = new Promise(resolve => maker.once('exit', resolve));
    await until('it makes leaves', () => readdirSync(dir).some(name => /^\d+\.leaf$/.test(name)));
    for (const name of readdirSync(dir))
      if (/^\d+\.leaf$/.test(name)) rmSync(`${dir}/${name}`, { force: true });
    await until('and more', () => readdirSync(dir).some(name => /^\d+\.leaf$/.test(name)));
    maker.kill('SIGKILL');
    await ended;
    left += readdirSync(dir).filter(name => name.startsWith('.')).length;
    age(dir);
    createLeaf({ path: `${dir}/mine-${round}`, sizeBytes: 1 << 20, parent: NO_PARENT });
    if (round === 0) clearOrphans(dir); // later ones are found by a process of its own
    for (const name of readdirSync(dir))
      if (!name.startsWith('.')) rmSync(`${dir}/${name}`, { force: true });
  }
  t.ok(left > 0, `${left} half-made leaves`);
  age(dir);
  clearOrphans(dir);
  t.same(readdirSync(dir), []);
});
