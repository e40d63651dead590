/**
 * Goal: with examples/second-place.sh the loss of a leaf's disk costs what was written after the
 * last image, and nothing else; the script may be interrupted anywhere. Method: a file system in
 * use on a device; the leaf's directory is deleted under it.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { DEVICES, missing } from '../support/requires.ts';
import { run, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

t.setTimeout(240_000);
const skip = await missing(...DEVICES, 'mkfs.ext4', 'fsck.ext4');
const SCRIPT = fileURLToPath(new URL('../../../examples/second-place.sh', import.meta.url));

t.test('what was shipped survives the loss of the leaf', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await run('truncate', ['-s', '64M', root]);
  await run('mkfs.ext4', ['-q', '-F', root]);
  const here = sandbox.path('here');
  const there = sandbox.path('there');
  mkdirSync(here);
  const env = { ...sandbox.env, UBD: `${process.execPath} ${CLI}` };
  const ship = (): Promise<string> => run(SCRIPT, ['web', there], { env });
  const device = await sandbox.attach({ root, name: 'web', leaf: join(here, 'web.leaf') });
  const place = await sandbox.mount(device.node, 'mnt');
  const write = async (name: string): Promise<void> => {
    writeFileSync(join(place, name), name.repeat(20_000));
    await run('sync', ['-f', place]);
  };

  await write('first');
  t.match(await ship(), /web\.000001\.image/);
  await write('second');
  // Killed while it copies: nothing that looks like an image is left.
  const killed = spawn(SCRIPT, ['web', there], { env, stdio: 'ignore', detached: true });
  await until('the image is made', () => existsSync(join(here, 'web.000002.image')));
  process.kill(-killed.pid!, 'SIGKILL');
  await once(killed, 'exit');
  writeFileSync(join(there, '.web.new'), 'half an image');
  await ship();
  t.ok(readdirSync(there).includes('web.000002.image'));
  const before = readdirSync(there).length;
  await ship();
  t.ok(readdirSync(there).length <= before + 1, 'little or nothing is new');
  await write('third');

  await sandbox.unmount(place);
  await sandbox.client.detach('web', { force: true });
  rmSync(here, { recursive: true });
  const [last] = readdirSync(there)
    .filter(name => name.endsWith('.image'))
    .sort()
    .reverse();
  await sandbox.ubd(['fork', join(there, last!), '--leaf', sandbox.path('again.leaf')]);
  const again = await sandbox.attach({ leaf: sandbox.path('again.leaf'), name: 'again' });
  await run('fsck.ext4', ['-f', '-n', again.node]);
  const back = await sandbox.mount(again.node, 'back');
  for (const name of ['first', 'second'])
    t.equal(readFileSync(join(back, name), 'utf8'), name.repeat(20_000));
  t.notOk(existsSync(join(back, 'third')), 'what was not shipped is lost');
});
