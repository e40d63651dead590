/**
 * Goal: modules are loaded by the machine's own modprobe, once, and looking loads nothing. Method:
 * a modprobe that writes down how it was called.
 */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { KernelModules } from '../../src/daemon/kernel-modules.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-modules-'));
const [program, calls] = [join(directory, 'modprobe'), join(directory, 'calls')];
t.teardown(() => rmSync(directory, { recursive: true }));

function modprobe(status: number): () => string[] {
  writeFileSync(calls, '');
  writeFileSync(program, `#!/bin/sh\necho "$@" >> '${calls}'\nexit ${status}\n`);
  chmodSync(program, 0o755);
  return () => readFileSync(calls, 'utf8').split('\n').slice(0, -1);
}

t.test('a module that can be loaded is, once', async t => {
  const called = modprobe(0);
  const modules = new KernelModules(['ubd_one', 'ubd_two'], program, () => true);
  t.equal(await modules.loadable(), true);
  t.same(called(), ['--dry-run --quiet --use-blacklist --all ubd_one ubd_two']);
  t.same(await Promise.all([modules.load(), modules.load()]), [true, true]);
  t.equal(await modules.load(), true);
  t.same(called().slice(1), ['--quiet --use-blacklist --all ubd_one ubd_two']);
  t.equal(await modules.loadable(), false, 'it is no way out any more');
});

t.test('one that cannot is tried once, too', async t => {
  const called = modprobe(1);
  const modules = new KernelModules(['ubd_one'], program, () => true);
  t.equal(await modules.loadable(), false);
  t.equal(await modules.load(), false);
  t.equal(await modules.load(), false);
  t.equal(called().length, 2);
});

t.test('without modprobe nothing can be loaded', async t => {
  const modules = new KernelModules(['ubd_one'], join(directory, 'none'), () => true);
  t.equal(await modules.loadable(), false);
  t.equal(await modules.load(), false);
});

t.test('without the right to load one, or to make devices with it, nobody is asked', async t => {
  const called = modprobe(0);
  for (const lacking of ['SYS_MODULE', 'SYS_ADMIN']) {
    const modules = new KernelModules(['ubd_one'], program, name => name !== lacking);
    t.equal(await modules.loadable(), false, lacking);
    t.equal(await modules.load(), false, lacking);
  }
  t.same(called(), []);
});

t.test('modules that are there are not what is lacking: loading them is no way out', async t => {
  const called = modprobe(0);
  const loadable = (...names: string[]): Promise<boolean> =>
    new KernelModules(names, program, () => true).loadable();
  t.equal(await loadable('kernel'), false);
  t.same(called(), [], 'nobody is asked');
  t.equal(await loadable('kernel', 'ubd_one'), true);
});
