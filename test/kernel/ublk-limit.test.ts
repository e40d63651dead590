/**
 * Goal: the driver's limit of devices (ublks_max) is one of unprivileged devices, which ours are
 * not; so a host has as many as it asks for, whatever the limit. (Older drivers count all devices:
 * what is said then is tested with a driver that refuses, in transport/ublk/device.test.ts.)
 * Method: Debian's 6.12 with a limit of two, and three devices.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Device } from '../../src/client/api.ts';
import { inGuest, requiresKernel } from '../support/vm.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

const SCRIPT = `
ubd() { '${process.execPath}' '${CLI}' "$@"; }
export UBD_STATE_DIR=/run/state UBD_RUNTIME_DIR=/run/run
modprobe ublk_drv ublks_max=2
truncate -s 64M /run/root
# An emulated machine needs longer for that than a command waits.
ubd serve >/run/log 2>&1 & until ubd status >/run/status 2>&1; do sleep 1; done
for name in a b c; do ubd attach /run/root --name $name --transport ublk; done
cat /sys/module/ublk_drv/parameters/ublks_max
ubd list --json >/out/list
ubd detach --all >/run/detached
`;

t.setTimeout(900_000); // under emulation
t.test('a limit of two is none for three devices of ours', async t => {
  if (!(await requiresKernel(t, 'debian-6.12'))) return;
  const outDir = t.testdir();
  const options = { limitSeconds: 800, modules: ['ext4'], outDir };
  const { status, stdout, output } = await inGuest('debian-6.12', SCRIPT, options);
  t.equal(status, 0, 'all commands work', { output });
  t.equal(stdout, '/dev/ubd0\n/dev/ubd1\n/dev/ubd2\n2\n');
  const list = JSON.parse(readFileSync(join(outDir, 'list'), 'utf8')) as Device[];
  t.same(new Set(list.map(({ transport }) => transport)), new Set(['ublk']));
});
