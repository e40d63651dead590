/**
 * Ways to get a writable device over a shared image, in a guest; all files are on one ext4 in
 * memory, and the image's pages are cached.
 *
 *     disk       the memory itself: what fio and the block layer cost
 *     loop       loop ─ a raw copy of the image
 *     dm         dm-snapshot, persistent, chunks of 4 KiB; image and changes are memory
 *     qemu-nbd   nbd ─ qemu-nbd ─ qcow2 overlay ─ image
 *     qsd        loop ─ FUSE ─ qemu-storage-daemon ─ qcow2 overlay ─ image (a speed reference only:
 *                QEMU 7.2 mixes up data of parallel requests there)
 *     ublk …     ublk ─ ubd: leaf, image; in each way to move the data
 *     ubd-loop   loop ─ FUSE ─ ubd: leaf, image
 */
import { spawn } from 'node:child_process';
import { existsSync, statSync, writeFileSync } from 'node:fs';
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

function ublk(data: NonNullable<ServedDevice['data']>): Target {
  return {
    id: `ublk-${data.replace(' ', '-')}`,
    title: `ubd on ublk, ${data}`,
    modules: ['ublk_drv'],
    async up() {
      const device = {
        ...{ name: 'count', sizeBytes: DEVICE_BYTES, leaf: `${PLACE}/leaf` },
        ...{ root: IMAGE, data },
      };
      const server = await UblkProcess.start('count', [device]);
      return server.node;
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
      return (await run('losetup', ['--find', '--show', `${PLACE}/copy`])).trim();
    },
  },
  {
    id: 'dm',
    title: 'dm-snapshot',
    modules: ['dm_snapshot'],
    async up() {
      await run('dd', [`if=${IMAGE}`, `of=${ORIGIN}`, 'bs=1M']);
      await run('dmsetup', [
        ...['create', '--noudevsync', '--noudevrules', 'snapshot'],
        ...['--table', `0 ${SECTORS} snapshot ${ORIGIN} ${CHANGES} P 8`],
      ]);
      return '/dev/dm-0'; // nobody makes /dev/mapper/snapshot here
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
    id: 'ubd-loop',
    title: 'ubd on loop',
    modules: ['loop', 'fuse'],
    async up() {
      const sandbox = await Sandbox.start(undefined, PLACE);
      const device = await sandbox.attach({ root: IMAGE, transport: 'loop' });
      return device.node;
    },
  },
];
