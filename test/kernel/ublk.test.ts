/**
 * Goal: a ublk device is a disk, in every way in which the kernel hands its data over.
 * Method: the real data plane and leaf under real file systems, fio and random operations by
 * O_DIRECT, on this kernel if it has ublk, else in a guest.
 */
import { constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { native } from '../../src/native/binding.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { here } from '../support/guest.ts';
import { Random } from '../support/random.ts';
import { run, tryRun } from '../support/run.ts';
import { UblkProcess } from '../support/ublk-process.ts';
import type { ServedDevice } from '../support/ublk-server.ts';

const MIB = 1024 * 1024;
const OWNER = `ublk-test-${process.pid}`;
const DATA = ['user copy', 'copy'] as const;

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
  for (const data of DATA) {
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
      await withDevices(t, [{ data, queues: 2 }], async ({ node }) => {
        await runModel(t, node, 20_260_727);
      });
    });
  }

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

const SECTOR = 512;
const MODEL_SECTORS = 4096;
const MODEL_OPERATIONS = 1500;
const IN_FLIGHT = 8;
/** <linux/fs.h>: for a range of bytes, as two u64. */
const BLKDISCARD = 0x1277;
const BLKZEROOUT = 0x127f;

function erase(device: FileHandle, request: number, from: number, to: number): void {
  const range = new BigUint64Array([BigInt(from), BigInt(to - from)]);
  const result = native.ioctl(device.fd, request, new Uint8Array(range.buffer));
  if (result < 0) throw new Error(`ioctl ${request} at ${from}: ${result}`);
}

/**
 * Random reads, writes, discards and zeroings under way together, on ranges that do not overlap.
 */
async function runModel(t: Test, node: string, seed: number): Promise<void> {
  const random = new Random(seed);
  const model = Buffer.alloc(MODEL_SECTORS * SECTOR);
  const written = new Uint8Array(MODEL_SECTORS);
  const busy = new Uint8Array(MODEL_SECTORS);
  const device = await open(node, constants.O_RDWR | constants.O_DIRECT);
  let operations = 0;
  const worker = async (): Promise<void> => {
    const memory = allocateMemory(256 * SECTOR); // page-aligned, as O_DIRECT wants it
    const whole = Buffer.from(memory.bytes.buffer);
    while (operations++ < MODEL_OPERATIONS) {
      const count = random.between(1, random.chance(0.1) ? 256 : 24);
      const first = random.below(MODEL_SECTORS - count);
      const end = first + count;
      if (busy.subarray(first, end).includes(1)) continue;
      busy.fill(1, first, end);
      const [from, to] = [first * SECTOR, end * SECTOR];
      const buffer = whole.subarray(0, to - from);
      const kind = random.below(100);
      if (kind < 45) {
        for (let i = 0; i < buffer.length; i += 4) buffer.writeUInt32LE(random.word(), i);
        await device.write(buffer, 0, buffer.length, from);
        buffer.copy(model, from);
        written.fill(1, first, end);
      } else if (kind < 50) {
        erase(device, BLKZEROOUT, from, to);
        model.fill(0, from, to);
        written.fill(1, first, end);
      } else if (kind < 58) {
        // Sectors that the leaf has read as zeroes afterwards, where whole granules of them are
        // discarded.
        const [inner, outer] = [Math.ceil(from / 4096) * 4096, Math.floor(to / 4096) * 4096];
        if (inner < outer && written.subarray(first, end).every(Boolean)) {
          erase(device, BLKDISCARD, inner, outer);
          model.fill(0, inner, outer);
        }
      } else {
        await device.read(buffer, 0, buffer.length, from);
        if (!buffer.equals(model.subarray(from, to)))
          t.fail(`seed ${seed}: sectors ${first} to ${end} differ`);
      }
      busy.fill(0, first, end);
    }
    memory.free();
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  const all = allocateMemory(model.length);
  await device.read(all.bytes, 0, model.length, 0);
  t.ok(model.equals(all.bytes), `seed ${seed}: the device holds what the model holds`);
  all.free();
  await device.close();
}
