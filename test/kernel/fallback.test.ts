/**
 * Goal: on a kernel without ublk, `auto` is nbd, with nothing but the kernel's module, which is
 * loaded by itself; and that is said. Method: Debian's 6.1 in a guest, and the command line.
 */
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Device, Status } from '../../src/client/api.ts';
import { inGuest, requiresKernel } from '../support/vm.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

const SCRIPT = `
ubd() { '${process.execPath}' '${CLI}' "$@"; }
export UBD_STATE_DIR=/run/state UBD_RUNTIME_DIR=/run/run
grep -q '^nbd ' /proc/modules && exit 1
truncate -s 64M /run/root
ubd attach /run/root --name web 2>/run/note
ubd attach /run/root --name other 2>>/run/note
echo content | dd of=/dev/ubd0 bs=512 conv=sync,fsync status=none
kill -KILL "$(ubd status --json | jq .pid)"
ubd list --json | jq -c .
ubd status --json | jq -c .
dd if=/dev/ubd0 bs=512 count=1 iflag=direct status=none | head -n 1
ubd detach --all
cat /run/note
`;

t.test('Linux 6.1 without ublk takes nbd by itself, and says so', async t => {
  t.setTimeout(600_000);
  if (!(await requiresKernel(t, 'debian-6.1'))) return;
  const { status, stdout, output } = await inGuest('debian-6.1', SCRIPT, { limitSeconds: 500 });
  t.equal(status, 0, output);
  const [first, second, list, told, content, ...notes] = stdout.trim().split('\n');
  t.same([first, second], ['/dev/ubd0', '/dev/ubd1']);
  t.match(JSON.parse(list!) as Device[], [
    { name: 'web', node: '/dev/nbd0', transport: 'nbd', state: 'attached' },
    { name: 'other', node: '/dev/nbd1', transport: 'nbd', state: 'attached' },
  ]);
  t.match((JSON.parse(told!) as Status).transports, [
    { name: 'ublk', offered: false, reason: /ublk_drv is not loaded/ },
    { name: 'nbd', offered: true, loads: [] },
    { name: 'loop' },
  ]);
  t.equal(content, 'content', 'it outlives its daemon');
  t.equal(notes.length, 1, 'told once');
  t.match(notes[0], /^note: web is on nbd, not on ublk: \/dev\/ublk-control is not there/);
});
