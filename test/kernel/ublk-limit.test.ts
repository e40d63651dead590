/**
 * Goal: where the driver lets no more devices be made, `auto` passes it over and says so, and who
 * asks for ublk is told which knob it is; with a higher one it goes on. Method: Debian's 6.12,
 * whose driver has a limit for everybody, with a limit of two.
 */
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Device } from '../../src/client/api.ts';
import { inGuest, requiresKernel } from '../support/vm.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** Each answer between lines of its own. */
const SCRIPT = `
ubd() { '${process.execPath}' '${CLI}' "$@"; }
export UBD_STATE_DIR=/run/state UBD_RUNTIME_DIR=/run/run
modprobe ublk_drv ublks_max=2
truncate -s 64M /run/root
# An emulated machine needs longer for that than a command waits.
ubd serve >/run/log 2>&1 & until ubd status >/run/status 2>&1; do sleep 1; done
for name in a b c; do ubd attach /run/root --name $name 2>>/run/note; done
echo ---
ubd list --json
echo ---
if ubd attach /run/root --name d --transport ublk 2>&1; then exit 1; fi
echo ---
cat /run/note
echo ---
echo 3 >/sys/module/ublk_drv/parameters/ublks_max
ubd attach /run/root --name d --transport ublk >/dev/null
ubd list --json
ubd detach --all >/run/detached
ls /dev | grep -c '^ublk[bc]' || :
`;

t.setTimeout(900_000); // under emulation
t.test('a driver that makes no more devices is passed over, and says why', async t => {
  if (!(await requiresKernel(t, 'debian-6.12'))) return;
  const options = { limitSeconds: 800, modules: ['ext4'] };
  const { status, stdout, output } = await inGuest('debian-6.12', SCRIPT, options);
  t.equal(status, 0, 'all commands work', { output });
  const [, list, refused, notes, last] = stdout.split('---\n');
  const transports = (json: string): string[] =>
    (JSON.parse(json) as Device[]).map(({ name, transport }) => `${name} ${transport}`);
  t.same(transports(list!), ['a ublk', 'b ublk', 'c nbd'], 'by the one that is next');
  t.match(refused, /no more than 2 ublk devices be made \(ublks_max\)/);
  t.match(refused, /echo 4096 > \/sys\/module\/ublk_drv\/parameters\/ublks_max/);
  t.match(notes, /^note: c is on nbd, not on ublk: .*no more than 2 ublk devices/);
  t.equal(notes!.trim().split('\n').length, 1, 'told once');
  const [more, left] = last!.split(/\n(?=\d+\n$)/);
  t.match(transports(more!), ['a ublk', 'b ublk', 'c nbd', 'd ublk'], 'a higher limit counts now');
  t.equal(Number(left), 0, 'nothing is left');
});
