/**
 * Ways to get a writable device over a shared image, in a guest; all files are on one ext4 in
 * memory, and the image's pages are cached.
 *
 *     disk       the memory itself: what fio and the block layer cost
 *     loop       loop ─ a raw copy of the image
 *     dm         dm-snapshot, persistent, chunks of 4 KiB; image and changes are disks of memory
 *     dm-16k …   the same with larger chunks: of one that is written in part it copies the rest
 *     dm-files   dm-snapshot, 4 KiB, on loop devices: image and changes are files
 *     qemu-nbd   nbd ─ qemu-nbd ─ qcow2 overlay ─ image
 *     qsd        loop ─ FUSE ─ qemu-storage-daemon ─ qcow2 overlay ─ image (a speed reference only:
 *                QEMU 7.2 mixes up data of parallel requests there)
 *     ublk …     ublk ─ ubd: leaf, image; in each way to move the data
 *     ublk-first the same by copy, its thread realtime (UBD_REALTIME)
 *     ublk-disks the same by copy, with leaf and image on disks of memory, as dm has them
 *     ubd-loop   loop ─ FUSE ─ ubd: leaf, image
 *     … cached, … uncached   what the daemon makes of both transports, by where unmodified blocks
 *                come from: its cache of root blocks, or the page cache
 */
import { spawn } from 'node:child_process';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { createLeaf, NO_PARENT } from '../../../src/leaf/create.ts';
import { run, until } from '../../support/run.ts';
import { Sandbox } from '../../support/sandbox.ts';
import { UblkProcess } from '../../support/ublk-process.ts';
import type { ServedDevice } from '../../support/ublk-server.ts';
import { DEVICE_BYTES } from './workloads.ts';

/** Memory that is a disk: of the files, of the image for dm, of its changes. */
const FILES = '/dev/ram0';
const ORIGIN = '/dev/ram1';
const CHANGES = '/dev/ram2';
/** Where the ext4 is mounted, and the image on it. */
const PLACE = '/mnt';
const IMAGE = `${PLACE}/image`;

const SECTORS = DEVICE_BYTES / 512;

/** Makes the ext4 and the image. */
export async function prepare(): Promise<void> {
  // Dirty pages stay where they are: the kernel's flusher would come when it likes, and be counted.
  for (const knob of ['dirty_writeback_centisecs', 'dirty_background_bytes', 'dirty_bytes'])
    writeFileSync(`/proc/sys/vm/${knob}`, knob.endsWith('bytes') ? `${2 ** 30}` : '0');
  if (!existsSync(FILES)) await run('modprobe', ['brd', 'rd_nr=3', 'rd_size=524288']);
  await run('mkfs.ext4', ['-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0', FILES]);
  await run('mount', [FILES, PLACE]);
  await run('dd', ['if=/dev/urandom', `of=${IMAGE}`, 'bs=1M', `count=${DEVICE_BYTES / 2 ** 20}`]);
  await run('sync');
}

export interface Target {
  id: string;
  title: string;
  /** Modules beside those that every guest needs. */
  modules: readonly string[];
  up: () => Promise<string>;
}

async function loop(file: string): Promise<string> {
  return (await run('losetup', ['--find', '--show', file])).trim();
}

async function snapshot(origin: string, changes: string, chunkKib: number): Promise<string> {
  await run('dmsetup', [
    ...['create', '--noudevsync', '--noudevrules', 'snapshot'],
    ...['--table', `0 ${SECTORS} snapshot ${origin} ${changes} P ${chunkKib * 2}`],
  ]);
  return '/dev/dm-0'; // nobody makes /dev/mapper/snapshot here
}

function dmOnDisks(id: string, chunkKib: number): Target {
  return {
    id,
    title: `dm-snapshot, ${chunkKib} KiB`,
    modules: ['dm_snapshot'],
    async up() {
      await run('dd', [`if=${IMAGE}`, `of=${ORIGIN}`, 'bs=1M']);
      return snapshot(ORIGIN, CHANGES, chunkKib);
    },
  };
}

type DataMode = NonNullable<ServedDevice['data']>;

function ublk(data: DataMode): Target {
  return {
    id: `ublk-${data.replace(' ', '-')}`,
    title: `ubd on ublk, ${data}`,
    modules: ['ublk_drv'],
    up: () => serve(data, IMAGE, `${PLACE}/leaf`),
  };
}

async function serve(data: DataMode, root: string, leaf: string): Promise<string> {
  const device = { name: 'count', sizeBytes: DEVICE_BYTES, leaf, root, data };
  return (await UblkProcess.start('count', [device])).node;
}

function daemon(transport: 'ublk' | 'loop', cached: boolean): Target {
  return {
    id: `${transport}-${cached ? 'cached' : 'uncached'}`,
    title: `ubd on ${transport}, ${cached ? 'cached' : 'uncached'}`,
    modules: transport === 'ublk' ? ['ublk_drv'] : ['loop', 'fuse'],
    async up() {
      const sandbox = await Sandbox.start(undefined, PLACE);
      await sandbox.client.setCache({ sizeBytes: cached ? 2 * DEVICE_BYTES : 0 });
      const { node } = await sandbox.attach({ root: IMAGE, transport });
      return node;
    },
  };
}

export const TARGETS: readonly Target[] = [
  { id: 'disk', title: 'no overlay: memory', modules: [], up: async () => ORIGIN },
  {
    id: 'loop',
    title: 'loop on a raw copy',
    modules: ['loop'],
    async up() {
      await run('cp', [IMAGE, `${PLACE}/copy`]);
      await run('sync');
      return loop(`${PLACE}/copy`);
    },
  },
  dmOnDisks('dm', 4),
  dmOnDisks('dm-16k', 16),
  dmOnDisks('dm-64k', 64),
  {
    id: 'dm-files',
    title: 'dm-snapshot on files',
    modules: ['dm_snapshot', 'loop'],
    async up() {
      const changes = `${PLACE}/changes`;
      await run('truncate', ['--size', `${2 * DEVICE_BYTES}`, changes]);
      return snapshot(await loop(IMAGE), await loop(changes), 4);
    },
  },
  {
    id: 'qemu-nbd',
    title: 'qemu-nbd over nbd',
    modules: ['nbd'],
    async up() {
      const file = `${PLACE}/overlay.qcow2`;
      const socket = `${PLACE}/socket`;
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', IMAGE, '-F', 'raw', file]);
      const server = ['--format=qcow2', '--cache=writeback', '--discard=unmap', '--aio=io_uring'];
      spawn('qemu-nbd', [...server, '--persistent', `--socket=${socket}`, file], {
        stdio: 'ignore',
      });
      await until('qemu-nbd listens', () => existsSync(socket), 300_000);
      await run('nbd-client', ['-unix', socket, '/dev/nbd0', '-block-size', '512']);
      return '/dev/nbd0';
    },
  },
  {
    id: 'qsd',
    title: 'qemu-storage-daemon on loop (unsafe)',
    modules: ['loop', 'fuse'],
    async up() {
      const file = `${PLACE}/overlay.qcow2`;
      const point = `${PLACE}/export`;
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', IMAGE, '-F', 'raw', file]);
      writeFileSync(point, '');
      const server = [
        ...['--blockdev', `driver=file,node-name=file,filename=${file},aio=io_uring`],
        ...['--blockdev', 'driver=qcow2,node-name=disk,file=file'],
        ...['--export', `type=fuse,id=f,node-name=disk,mountpoint=${point},writable=on`],
      ];
      spawn('qemu-storage-daemon', server, { stdio: 'ignore' });
      await until('it serves', () => statSync(point).size === DEVICE_BYTES, 300_000);
      return (await run('losetup', ['--find', '--show', '--direct-io=on', point])).trim();
    },
  },
  ublk('copy'),
  ublk('user copy'),
  ublk('zero copy'),
  {
    id: 'ublk-first',
    title: 'ubd on ublk, copy, realtime',
    modules: ['ublk_drv'],
    up() {
      process.env.UBD_REALTIME = '1';
      return serve('copy', IMAGE, `${PLACE}/leaf`);
    },
  },
  {
    id: 'ublk-disks',
    title: 'ubd on ublk, copy, disks',
    modules: ['ublk_drv'],
    async up() {
      await run('dd', [`if=${IMAGE}`, `of=${ORIGIN}`, 'bs=1M']);
      createLeaf({ path: CHANGES, sizeBytes: DEVICE_BYTES, parent: NO_PARENT });
      return serve('copy', ORIGIN, CHANGES);
    },
  },
  {
    id: 'ubd-loop',
    title: 'ubd on loop',
    modules: ['loop', 'fuse'],
    async up() {
      const sandbox = await Sandbox.start(undefined, PLACE);
      const device = await sandbox.attach({ root: IMAGE, transport: 'loop' });
      return device.node;
    },
  },
  daemon('ublk', true),
  daemon('ublk', false),
  daemon('loop', true),
  daemon('loop', false),
];
