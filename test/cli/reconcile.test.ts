/**
 * Goal: the commands for detached leaves work on real files, and what they save is real. Method:
 * leaves with a model, the real program, `du`.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

t.setTimeout(300_000);

t.test('leaves that share much take less afterwards, and read what they read', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-life-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const random = new Random(3);
  writeFileSync(`${dir}/root.img`, noise(random, 2 ** 20));
  const shared = noise(random, 2 ** 19);
  const leaves: ModelLeaf[] = [];
  for (let i = 0; i < 5; i++) {
    const leaf = await ModelLeaf.make(diskWorld, `${dir}/${i}.leaf`, `${dir}/root.img`);
    leaf
      .write(512, shared)
      .write(8 * i, noise(random, 4096))
      .end();
    leaves.push(leaf);
  }
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const ubd = (...args: string[]): ReturnType<typeof tryRun> =>
    tryRun(process.execPath, [CLI, ...args], { env, cwd: dir });
  const names = leaves.map((_, i) => `${i}.leaf`);
  const du = (): number =>
    names.reduce((sum, name) => sum + statSync(`${dir}/${name}`).blocks * 512, 0);
  const before = du();
  const done = await ubd(
    'reconcile',
    ...names,
    '--output',
    'new.img',
    '--min-share',
    '2',
    '--json',
  );
  t.equal(done.status, 0, done.stderr);
  const report = JSON.parse(done.stdout);
  t.equal(report.promotedBytes, shared.length);
  t.equal(before - du(), report.savedBytes, 'what is reported is what du says');
  t.ok(report.savedBytes >= 5 * shared.length);
  for (const [i, { model }] of leaves.entries()) {
    t.match(await ubd('check', names[i]!), { status: 0 });
    t.match(await ubd('export', names[i]!, `${i}.img`), { status: 0 });
    t.equal(readFileSync(`${dir}/${i}.img`).compare(model), 0);
  }
  t.match(await ubd('reconcile', '0.leaf', '--output', 'new.img'), {
    status: 1,
    stderr: /new\.img exists/,
  });
  t.match(await ubd('reconcile', '0.leaf'), { status: 2, stderr: /--output is missing/ });
  t.match(await ubd('reconcile', '0.leaf', '--output', 'x', '--min-share', 'no'), { status: 2 });
  const hidden = execFileSync('ls', ['-A', dir], { encoding: 'utf8' });
  t.notMatch(hidden, /^\./m, 'nothing is left over');
});
