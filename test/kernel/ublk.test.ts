/**
 * Goal: a ublk device is a disk, in every way in which the kernel hands its data over.
 * Method: the real data plane and leaf under real file systems, fio and random operations by
 * O_DIRECT, on this kernel if it has ublk, else in a guest.
 */
import { constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { release, tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openUblk } from '../../src/transport/ublk/probe.ts';
import { hasFeature, MODE_FEATURES } from '../../src/transport/ublk/wire.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { here } from '../support/guest.ts';
import { MODEL_BYTES, runModel } from '../support/live-model.ts';
import { Random } from '../support/random.ts';
import { run, tryRun } from '../support/run.ts';
import { UblkProcess } from '../support/ublk-process.ts';
import type { ServedDevice } from '../support/ublk-server.ts';

const MIB = 1024 * 1024;
const OWNER = `ublk-test-${process.pid}`;
const DATA = ['zero copy', 'user copy', 'copy'] as const;

async function withDevices(
  t: Test,
  devices: Partial<ServedDevice>[],
  use: (server: UblkProcess, directory: string) => Promise<void>,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
  const served = devices.map((device, i) => ({
    name: `d${i}`,
    sizeBytes: 256 * MIB,
    leaf: join(directory, `${i}.leaf`),
    ...device,
  }));
  const server = await UblkProcess.start(OWNER, served);
  try {
    await use(server, directory);
    await server.stop();
    t.equal(server.errors, '', 'no fault was reported');
    for (const node of server.nodes) t.notOk(existsSync(node), `${node} is gone`);
  } finally {
    await server.kill();
    await rm(directory, { recursive: true });
  }
}

if (await here(import.meta.url, { device: '/dev/ublk-control' })) {
  const { control, features } = await openUblk();
  control.close();
  for (const data of DATA) {
    const lacks = MODE_FEATURES[data].filter(name => !hasFeature(features, name));
    if (lacks.length > 0) {
      const skip = `Linux ${release()} lacks ${lacks.join(' and ')}`;
      t.test(`${data}: all of its tests`, { skip }, async () => {});
      t.test(`${data}, which this kernel lacks, becomes user copy`, async t => {
        await withDevices(t, [{ data }], async ({ shown }) => {
          t.equal(shown[0]!.data, 'user copy');
        });
      });
      continue;
    }
    t.test(`${data}: ext4 is made, filled, trimmed, checked, and read again`, async t => {
      await withDevices(t, [{ data }], async ({ node }, directory) => {
        const place = join(directory, 'mnt');
        await run('mkdir', [place]);
        await run('mkfs.ext4', ['-q', '-F', node]);
        await run('mount', [node, place]);
        try {
          await run('cp', ['-a', 'src', 'test', place]);
          await writeFile(join(place, 'noise'), Buffer.alloc(20 * MIB, 'noise'));
          await run('rm', ['-r', join(place, 'test')]);
          await run('fstrim', [place]);
          await run('umount', [place]);
          await run('e2fsck', ['-f', '-n', node]);
          await run('mount', [node, place]);
          await run('diff', ['-r', 'src', join(place, 'src')]);
          t.equal(readFileSync(join(place, 'noise')).indexOf('noise', 20 * MIB - 5), 20 * MIB - 5);
        } finally {
          await run('umount', [place]);
        }
        await run('e2fsck', ['-f', '-n', node]);
      });
    });

    t.test(`${data}: fio verifies what it wrote in all sizes, with flushes and trims`, async t => {
      await withDevices(t, [{ data }], async ({ node }, directory) => {
        const fio = (...options: string[]): Promise<string> =>
          run('fio', [
            ...[
              '--name=v',
              `--filename=${node}`,
              '--direct=1',
              '--ioengine=libaio',
              '--iodepth=32',
            ],
            ...[
              '--verify=crc32c',
              '--verify_fatal=1',
              '--bsrange=512-1m',
              '--ba=512',
              '--size=200m',
            ],
            ...[`--aux-path=${directory}`, '--verify_state_save=0', ...options],
          ]);
        await fio('--rw=randwrite', '--io_size=150m', '--fsync=50');
        await fio('--rw=randrw', '--io_size=100m', '--verify_backlog=32');
        await fio('--rw=randtrimwrite', '--io_size=50m');
        t.pass();
      });
    });

    t.test(`${data}: random operations at 512 bytes agree with a model`, async t => {
      const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
      const root = join(directory, 'root'); // ends before the device does
      const content = pattern(17, MODEL_BYTES / 2);
      await writeFile(root, content);
      await withDevices(t, [{ data, root, sizeBytes: MODEL_BYTES }], async server => {
        t.equal(server.shown[0]!.data, data, 'the kernel gave what was asked for');
        await runModel(t, server.node, 20_260_727, content);
      });
      await rm(directory, { recursive: true });
    });
  }

  t.test('zero copy without a place for its pages goes as user copy', async t => {
    // The kernel has 16384 places for a ring: four of these devices take them all.
    const wide = { depth: 4096, data: 'zero copy' as const, sizeBytes: MODEL_BYTES };
    await withDevices(t, [wide, wide, wide, wide, wide], async server => {
      if (server.shown[0]!.data !== 'zero copy') return t.comment('this kernel has no zero copy');
      await Promise.all([0, 4].map(i => runModel(t, server.nodes[i]!, i)));
    });
  });

  t.test(
    'the kernel knows the device as a disk of 512-byte sectors with a write cache',
    async t => {
      await withDevices(t, [{}, { leaf: null }], async ({ nodes }) => {
        const of = (node: string, name: string): string =>
          readFileSync(`/sys/block/${node.slice('/dev/'.length)}/${name}`, 'utf8').trim();
        const [disk, fixed] = nodes as [string, string];
        t.equal(of(disk, 'size'), String((256 * MIB) / 512));
        t.equal(of(disk, 'queue/logical_block_size'), '512');
        t.equal(of(disk, 'queue/physical_block_size'), '4096');
        t.equal(of(disk, 'queue/discard_granularity'), '4096');
        t.equal(of(disk, 'queue/max_sectors_kb'), '1024');
        t.equal(of(disk, 'queue/write_cache'), 'write back');
        t.equal(of(disk, 'queue/fua'), '1');
        t.equal(of(disk, 'queue/rotational'), '0');
        t.match(of(disk, 'queue/scheduler'), '[none]');
        t.equal(of(disk, 'ro'), '0');
        t.equal(of(fixed, 'ro'), '1');
        t.not((await tryRun('dd', ['if=/dev/zero', `of=${fixed}`, 'count=1'])).status, 0);
      });
    },
  );

  t.test('blkdiscard and blkdiscard -z leave zeroes where the leaf had data', async t => {
    await withDevices(t, [{}], async server => {
      const { node } = server;
      const written = async (): Promise<number> => {
        const { stats } = await server.ask('stats');
        return (stats as { writtenBytes: number }[])[0]!.writtenBytes;
      };
      const data = pattern(1, 8 * MIB);
      const [from, to] = [2 * MIB, 5 * MIB];
      for (const options of [[], ['-z']]) {
        await writeFile(node, data);
        const before = await written();
        await run('blkdiscard', [...options, '-o', `${from}`, '-l', `${to - from}`, node]);
        t.equal(await written(), before, 'no zeroes were written for it');
        const expected = Buffer.from(data).fill(0, from, to);
        t.ok(expected.equals(await readStart(node, data.length)), `blkdiscard ${options}`);
      }
    });
  });

  t.test('a partition table is seen when the device starts', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const root = join(directory, 'root');
    await run('truncate', ['-s', '64M', root]);
    await run('sgdisk', ['-n', '1:2048:+16M', '-n', '2:0:+8M', root]);
    await withDevices(t, [{ root, sizeBytes: 64 * MIB }], async ({ node }) => {
      await run('udevadm', ['settle']).catch(() => {});
      await run('blockdev', ['--rereadpt', node]);
      t.equal(await run('blockdev', ['--getsize64', `${node}p1`]), `${16 * MIB}\n`);
      t.equal(await run('blockdev', ['--getsize64', `${node}p2`]), `${8 * MIB}\n`);
    });
    await rm(directory, { recursive: true });
  });

  t.test('a device in use stays; by force it goes', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const leaf = join(directory, 'leaf');
    const server = await UblkProcess.start(OWNER, [{ name: 'used', sizeBytes: 64 * MIB, leaf }]);
    await run('mkfs.ext4', ['-q', '-F', server.node]);
    await run('mkdir', [join(directory, 'mnt')]);
    await run('mount', [server.node, join(directory, 'mnt')]);
    await t.rejects(server.stop(), { code: 'busy', message: `${server.node} is in use` });
    await run('cp', ['-a', 'src', join(directory, 'mnt')]);
    await server.stop('stop force');
    t.notOk(existsSync(server.node));
    await run('umount', [join(directory, 'mnt')]);
    await rm(directory, { recursive: true });
  });

  t.test('many devices at once: each has its own data, and an idle one costs little', async t => {
    const count = 64;
    const devices = Array.from({ length: count }, () => ({ sizeBytes: 64 * MIB }));
    await withDevices(t, devices, async server => {
      const before = (await server.ask('stats')).memory as number;
      const length = 256 * 1024;
      await Promise.all(server.nodes.map((node, i) => writeFile(node, pattern(i, length))));
      for (const [i, node] of server.nodes.entries())
        if (!pattern(i, length).equals(await readStart(node, length)))
          t.fail(`${node} has its data`);
      const perDevice = (((await server.ask('stats')).memory as number) - before) / count;
      t.ok(perDevice < MIB, `${Math.round(perDevice / 1024)} KiB more for each after some work`);
    });
  });

  t.test('nothing is left behind', async t => {
    const entries = readdirSync('/dev').filter(name => /^ublk[bc]/.test(name));
    t.same(entries, []);
  });
}

function pattern(seed: number, length: number): Buffer {
  const random = new Random(seed);
  const block = Buffer.alloc(4096);
  for (let i = 0; i < block.length; i += 4) block.writeUInt32LE(random.word(), i);
  return Buffer.alloc(length, block);
}

/** Past the page cache. */
async function readStart(node: string, length: number): Promise<Buffer> {
  const device = await open(node, constants.O_RDONLY | constants.O_DIRECT);
  const memory = allocateMemory(length);
  await device.read(memory.bytes, 0, length, 0);
  const copy = Buffer.from(memory.bytes);
  memory.free();
  await device.close();
  return copy;
}
