/** A device in use grows, and so does the file system on it; also where the daemon dies then. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { TransportName } from '../../src/client/api.ts';
import { growLeaf } from '../../src/leaf/grow.ts';
import { run, until } from './run.ts';
import type { Sandbox } from './sandbox.ts';

const MIB = 1024 * 1024;

/** @param root of 64 MiB */
export async function testGrowing(
  t: Test,
  sandbox: Sandbox,
  root: string,
  transport: TransportName,
): Promise<void> {
  const { device, node } = await sandbox.attach({ root, name: 'disk', transport });
  const size = async (): Promise<number> => Number(await run('blockdev', ['--getsize64', node]));
  await run('mkfs.ext4', ['-q', device]);
  const place = await sandbox.mount(device, 'grows');
  writeFileSync(join(place, 'before'), 'before');

  await sandbox.ubd(['set', 'disk', '--size', '128M']);
  t.equal(await size(), 128 * MIB);
  await run('resize2fs', [device]);
  writeFileSync(join(place, 'filled'), Buffer.alloc(80 * MIB, 'filled'));
  // What is not flushed is known by the shadow alone, which has grown with the leaf.
  await sandbox.kill();
  await sandbox.startDaemon();
  await run('sync', ['-f', place]);
  await sandbox.client.change('disk', { sizeBytes: 192 * MIB });
  await sandbox.kill();
  await sandbox.startDaemon();
  t.equal(await size(), 192 * MIB);
  t.match(await sandbox.client.list(), [
    { name: 'disk', node, size: 192 * MIB, state: 'attached' },
  ]);
  await run('resize2fs', [device]);
  await run('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches']);
  t.equal(readFileSync(join(place, 'filled')).indexOf('filled', 80 * MIB - 8), 80 * MIB - 8);

  // The leaf has grown, its device has not: the daemon died between the two.
  await sandbox.kill();
  growLeaf(sandbox.path('state/leaves/disk.leaf'), 256 * MIB);
  await sandbox.startDaemon();
  await until('the device has followed', async () => (await size()) === 256 * MIB);
  await t.rejects(sandbox.client.change('disk', { sizeBytes: 64 * MIB }), /only grows/);
  await sandbox.unmount(place);
  await run('e2fsck', ['-f', '-n', node]);

  // Beyond what the shadow had room for when it was made, and not flushed.
  await sandbox.client.change('disk', { sizeBytes: 600 * MIB });
  writeFileSync(sandbox.path('data'), Buffer.alloc(MIB, 'answered'));
  const direct = [`of=${node}`, 'bs=1M', 'seek=550', 'oflag=direct', 'conv=notrunc'];
  await run('dd', [`if=${sandbox.path('data')}`, ...direct]);
  await sandbox.kill();
  await sandbox.startDaemon();
  await run('cmp', ['-n', `${MIB}`, '-i', `${550 * MIB}:0`, node, sandbox.path('data')]);
  await sandbox.detach('disk');
}
