/**
 * Goal: a real udevd and the daemon do not disturb each other: with the example's rules it neither
 * watches ubd's devices nor offers them, and the daemon's links come and go. Method: udevd in a
 * guest, a device on each transport that the kernel has.
 */
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, realpathSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { Cleanup } from '../support/cleanup.ts';
import { MIB, makeRoot } from '../support/disk.ts';
import { here } from '../support/guest.ts';
import { run, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const RULES = fileURLToPath(new URL('../../../examples/host/60-ubd.rules', import.meta.url));
const UDEVD = '/usr/lib/systemd/systemd-udevd';
const LINK = '/dev/ubd/by-name/web';
const WATCHED = '/run/udev/watch';

/** A guest is a chroot to udevadm, which would do nothing there. */
async function udevadm(...args: string[]): Promise<string> {
  return run('udevadm', args, { env: { ...process.env, SYSTEMD_IGNORE_CHROOT: '1' } });
}

/** Of udev's database, by the number of a device: b8:0. */
function watched(number: string): boolean {
  return existsSync(WATCHED) && readdirSync(WATCHED).includes(`b${number}`);
}

const UBLK = { device: '/dev/ublk-control', modules: ['ublk_drv', 'nbd', 'loop', 'ext4'] };
if (!existsSync(UDEVD)) t.plan(0, `${UDEVD} is not there (apt: udev)`);
else if (await here(import.meta.url, UBLK)) {
  const cleanup = new Cleanup();
  t.teardown(() => cleanup.run());
  mkdirSync('/etc/udev/rules.d', { recursive: true });
  cpSync(RULES, join('/etc/udev/rules.d', basename(RULES)));
  const udevd = spawn(UDEVD, { stdio: 'ignore' });
  t.teardown(() => udevd.kill());
  await until('udevd listens', () => existsSync('/run/udev/control'), 60_000);
  const sandbox = await Sandbox.start(cleanup);
  await makeRoot(sandbox.path('root.img'), 16 * MIB, MIB);

  for (const transport of ['ublk', 'nbd'] as const)
    t.test(`${transport}: its link comes and goes, and udevd lets it be`, async t => {
      const root = sandbox.path('root.img');
      const { node } = await sandbox.attach({ root, name: 'web', transport });
      await udevadm('settle');
      t.equal(realpathSync(LINK), node);
      const properties = await udevadm('info', '--query=property', node);
      t.match(properties, /^UDISKS_IGNORE=1$/m);
      const [, major] = /^MAJOR=(\d+)$/m.exec(properties)!;
      const [, minor] = /^MINOR=(\d+)$/m.exec(properties)!;
      t.notOk(watched(`${major}:${minor}`), 'nobody looks at it when a writer closes it');
      await sandbox.detach('web');
      await udevadm('settle');
      t.notOk(existsSync(LINK), 'the link has gone with it');
    });
}
