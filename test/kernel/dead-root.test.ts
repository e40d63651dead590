/**
 * Goal: a daemon that is told to stop does not wait for a root that nobody answers for; and a
 * device that outlives it outlives its root's absence, too: a read that waits then is answered by
 * the next daemon, with the right bytes. Method: a mounted device over nbdkit, which is killed; in
 * a guest that has ublk and nbd.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Cleanup } from '../support/cleanup.ts';
import { here } from '../support/guest.ts';
import { nbdkit } from '../support/remote-servers.ts';
import { run, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const MIB = 1024 * 1024;
const cleanup = new Cleanup();
/** Far longer than a test lasts. */
const ENV = { UBD_REMOTE_WAIT: '3600', UBD_DISK_CACHE: 'off' };

if (await here(import.meta.url, { device: '/dev/ublk-control' })) {
  t.teardown(() => cleanup.run());
  for (const transport of ['ublk', 'nbd'] as const) {
    const skip = transport === 'nbd' && !existsSync('/sys/module/nbd') && 'no nbd here';
    t.test(`${transport}: a read that waits is answered by the next daemon`, { skip }, async t => {
      const sandbox = await Sandbox.start(cleanup, tmpdir(), ENV);
      t.teardown(() => sandbox.stop());
      await sandbox.ubd(['cache', 'resize', '0']);
      const files = sandbox.path('files');
      mkdirSync(files);
      const content = randomBytes(MIB);
      writeFileSync(join(files, 'data'), content);
      const image = sandbox.path('root.img');
      await run('mke2fs', ['-q', '-t', 'ext4', '-d', files, image, '32M']);
      const kit = await nbdkit(image, sandbox.path('kit.sock')).start();
      t.teardown(() => kit.kill());

      const { device } = await sandbox.attach({ root: kit.uri, name: 'disk', transport });
      const place = await sandbox.mount(device, 'mnt');
      writeFileSync(join(place, 'written'), 'before');
      await run('ls', ['-l', place]);
      await run('sync', ['-f', place]);
      await kit.kill();
      await run('sh', ['-c', 'echo 1 > /proc/sys/vm/drop_caches']); // names and inodes stay
      await run('dmesg', ['--clear']);
      const reading = run('cp', [join(place, 'data'), sandbox.path('copy')]);
      await until('it waits', () => sandbox.isAsked('disk'));
      await sandbox.stopDaemon();
      t.notMatch(sandbox.log(), /failed: EIO/, 'what was given up is no fault');

      await kit.start();
      await sandbox.startDaemon();
      await reading;
      t.ok(readFileSync(sandbox.path('copy')).equals(content));
      t.equal(readFileSync(join(place, 'written'), 'utf8'), 'before');
      t.notMatch(await run('dmesg'), /I\/O error|EXT4-fs error/);
      await sandbox.unmount(place);
    });
  }
}
