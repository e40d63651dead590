/**
 * Goal: a kernel's own NBD client, set up by nbd-client(8), has its disk from an export: mounted,
 * used over several connections, left, and found again. Method: server and client in one guest,
 * since this machine's kernel may have no nbd.
 */
import t from 'tap';
import { missing } from '../support/requires.ts';
import { CLI } from '../support/sandbox.ts';
import { inGuest, requiresKernel } from '../support/vm.ts';

t.setTimeout(900_000); // for what hangs

/** The daemon is `ubd`; $d has everything; it ends with the guest. */
const START = `
  d=$(mktemp -d)
  export UBD_STATE_DIR=$d/state UBD_RUNTIME_DIR=$d/run
  truncate -s 64M $d/root.img
  mkfs.ext4 -q $d/root.img
  sum=$(sha256sum <$d/root.img)
  start() {
    ${process.execPath} ${CLI} serve --listen nbd+unix://$d/s --template $d/root.img,dir=$d/vms &
    ubd=$!
    until [ -S $d/s ]; do sleep 0.05; done
  }
  connect() { nbd-client -unix $d/s /dev/nbd0 -N $1 -C 4 >/dev/null; }
  leave() { nbd-client -d /dev/nbd0 >/dev/null; }
  start
  mkdir $d/m
`;

t.test('nbd-client in a guest', async t => {
  if (!(await requiresKernel(t, 'uml'))) return;
  const skip = await missing('nbd-client');
  if (skip) return t.plan(0, skip);
  const { status, output } = await inGuest(
    'uml',
    `${START}
    for name in one two; do
      connect $name
      [ "$(blockdev --getsize64 /dev/nbd0)" = 67108864 ]
      mount /dev/nbd0 $d/m
      echo $name >$d/m/name
      dd if=/dev/urandom of=$d/m/data bs=64k count=100 conv=fsync status=none
      sha256sum <$d/m/data >$d/$name.sum
      rm -rf $d/m/lost+found
      fstrim $d/m
      umount $d/m
      leave
    done
    kill $ubd
    wait $ubd
    start
    for name in one two; do
      connect $name
      fsck.ext4 -nf /dev/nbd0
      mount -o ro /dev/nbd0 $d/m
      [ "$(cat $d/m/name)" = $name ]
      [ "$(sha256sum <$d/m/data)" = "$(cat $d/$name.sum)" ]
      umount $d/m
      leave
    done
    [ "$(sha256sum <$d/root.img)" = "$sum" ]
    if dmesg | grep -i 'i/o error'; then exit 1; fi
    kill $ubd
    wait $ubd
    echo all is well`,
    { limitSeconds: 120 },
  );
  t.equal(status, 0, 'every step succeeds', { output: output.slice(-3000) });
  t.match(output, /all is well/);
});
