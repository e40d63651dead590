/**
 * Goal: on a kernel without ublk, `auto` is nbd, with nothing but the kernel's module, which is
 * loaded by itself; and that is said. Method: Debian's 6.1 in a guest, and the command line.
 */
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Device, Status } from '../../src/client/api.ts';
import { inGuest, requiresKernel } from '../support/vm.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** Each answer between lines of its own. */
const SCRIPT = `
ubd() { '${process.execPath}' '${CLI}' "$@"; }
export UBD_STATE_DIR=/run/state UBD_RUNTIME_DIR=/run/run
if grep '^nbd ' /proc/modules; then exit 1; fi
truncate -s 64M /run/root
# An emulated machine needs longer for that than a command waits.
start() { ubd serve >/run/log 2>&1 & until ubd status >/run/status 2>&1; do sleep 1; done; }
start
ubd attach /run/root --name web 2>/run/note
ubd attach /run/root --name other 2>>/run/note
echo content | dd of=/dev/ubd0 bs=512 conv=sync,fsync status=none
kill -KILL "$(sed -n 's/.*pid \\([0-9]*\\).*/\\1/p' /run/status)"
while ubd status >/run/status 2>&1; do sleep 1; done
start
echo ---
ubd list --json
echo ---
ubd status --json
echo ---
dd if=/dev/ubd0 bs=512 count=1 iflag=direct status=none | tr -d '\\0'
ubd detach --all >/run/detached
cat /run/note
`;

t.setTimeout(600_000); // under emulation
t.test('Linux 6.1 without ublk takes nbd by itself, and says so', async t => {
  if (!(await requiresKernel(t, 'debian-6.1'))) return;
  const { status, stdout, output } = await inGuest('debian-6.1', SCRIPT, { limitSeconds: 500 });
  t.equal(status, 0, 'all commands work', { output });
  const [made, list, told, last] = stdout.split('---\n');
  t.equal(made, '/dev/ubd0\n/dev/ubd1\n');
  t.match(JSON.parse(list!) as Device[], [
    { name: 'web', node: '/dev/nbd0', transport: 'nbd', state: 'attached' },
    { name: 'other', node: '/dev/nbd1', transport: 'nbd', state: 'attached' },
  ]);
  t.match((JSON.parse(told!) as Status).transports, [
    { name: 'ublk', offered: false, reason: /ublk_drv is not loaded/ },
    { name: 'nbd', offered: true, loads: [] },
    { name: 'loop' },
  ]);
  const [content, ...notes] = last!.trim().split('\n');
  t.equal(content, 'content', 'it outlives its daemon');
  t.equal(notes.length, 1, 'told once');
  t.match(notes[0], /^note: web is on nbd, not on ublk: \/dev\/ublk-control is not there/);
});
