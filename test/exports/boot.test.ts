/**
 * Goal: a Debian system boots in qemu from its export, changes a file, boots again and finds it; so
 * does a machine without a disk, whose initramfs connects by itself; so do many from one root.
 * Method: the examples as they are, driven on their serial consoles. On demand, since an emulated
 * machine takes a minute or two to boot:
 *
 *     examples/vm/make-root.sh /var/cache/ubd-vm
 *     UBD_VM_ROOT=/var/cache/ubd-vm UBD_VM_FLEET=20 node dist/test/exports/boot.test.js
 */
import { existsSync, mkdirSync, readdirSync, symlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { Console } from '../support/console.ts';
import { sha256 } from '../support/disk.ts';
import { missing } from '../support/requires.ts';
import { run } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(20 * 600_000); // for what hangs: emulation on a busy machine is slow

const EXAMPLES = fileURLToPath(new URL('../../../examples/vm', import.meta.url));
const NBD_PORT = 10809;
/** For what hangs: emulation on a busy machine is slow. */
const BOOT_MS_MAX = 600_000;

const images = process.env.UBD_VM_ROOT;
const fleet = Number(process.env.UBD_VM_FLEET ?? 2);

async function why(): Promise<string | false> {
  if (images === undefined) return 'on demand: UBD_VM_ROOT names what make-root.sh has made';
  if (!existsSync(join(images, 'debian.img'))) return `no ${images}/debian.img`;
  return missing('root', 'qemu-system-x86_64');
}

/** The default port may be somebody's: the example's initramfs knows no other. */
function portIsFree(): Promise<boolean> {
  return new Promise(resolve => {
    const probe = createServer();
    probe.on('error', () => resolve(false));
    probe.listen(NBD_PORT, '127.0.0.1', () => probe.close(() => resolve(true)));
  });
}

t.test('virtual machines', { skip: await why(), timeout: 20 * BOOT_MS_MAX }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const { client } = sandbox;
  const socket = sandbox.path('s');
  const directory = sandbox.path('vm');
  mkdirSync(directory);
  for (const name of ['debian.img', 'vmlinuz', 'initrd'])
    symlinkSync(join(images!, name), join(directory, name));
  const root = join(directory, 'debian.img');
  const before = await sha256(root);
  await client.listen({ uri: `nbd+unix://${socket}` });
  await client.addTemplate({ root, dir: join(directory, 'vms') });
  const env = {
    ...process.env,
    UBD_QEMU_APPEND: 'mitigations=off audit=0 selinux=0 apparmor=0',
  };

  /** Boots, runs a line that prints `done`, powers off. */
  const session = async (args: readonly string[], line: string): Promise<string> => {
    const machine = new Console('sh', args, env);
    t.teardown(() => machine.kill());
    await machine.expect(/:~# /, BOOT_MS_MAX);
    machine.type(`${line}; echo "do""ne"`);
    await machine.expect(/done/, BOOT_MS_MAX);
    machine.type('systemctl poweroff');
    await machine.ended(BOOT_MS_MAX);
    return machine.said;
  };
  const boot = [join(EXAMPLES, 'boot.sh'), directory, 'web-1', socket];

  await t.test('what a machine has changed is there when it boots again', async t => {
    await session(boot, 'echo "made by $(hostname)" >/etc/made');
    t.match(await session(boot, 'cat /etc/made'), /[\r\n]made by web-1\r/);
    await run('cmp', [root, join(images!, 'debian.img')]);
  });

  await t.test('a machine without a disk boots from the same export', async t => {
    if (!(await portIsFree())) return t.plan(0, `somebody listens at port ${NBD_PORT}`);
    await client.listen({ uri: 'nbd://127.0.0.1' });
    const said = await session(
      [join(EXAMPLES, 'diskless.sh'), directory, 'web-1'],
      'cat /etc/made; findmnt -no SOURCE /',
    );
    t.match(said, /[\r\n]made by web-1\r/);
    t.match(said, /\/dev\/nbd0/);
  });

  await t.test(`${fleet} machines from one root`, async t => {
    const printed = await run(
      'sh',
      [join(EXAMPLES, 'fleet.sh'), directory, String(fleet), socket],
      { env: { ...env, UBD_QEMU_MEMORY: '256' }, timeoutMs: 10 * BOOT_MS_MAX },
    );
    t.equal(printed.match(/^vm-\d+ is up$/gm)?.length, fleet);
    t.equal(readdirSync(join(directory, 'vms')).length, fleet + 1);
  });

  t.equal(await sha256(root), before, 'the root is as it was');
});
