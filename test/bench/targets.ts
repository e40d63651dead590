/**
 * What is measured: ways to get a writable block device over a shared root image.
 *
 *     raw      loop ─ file                         no overlay: the limit of the loop driver
 *     sparse   loop ─ empty file                   the same without its blocks: what first writes
 *                                                  cost the file system below
 *     qsd      loop ─ FUSE ─ qemu-storage-daemon ─ qcow2 ─ root
 *                                                  a speed reference only, see below
 *     nbdfuse  loop ─ FUSE ─ nbdfuse ─ NBD ─ qemu-nbd ─ qcow2 ─ root
 *     ubd      loop ─ FUSE ─ ubd daemon ─ leaf, root
 *
 * All read the same root file, warm in the page cache, and keep their overlay in the same
 * directory. The FUSE export of QEMU 7.2 mixes up data under parallel requests, so no one can use
 * it as it is.
 */
import { existsSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../support/cleanup.ts';
import { run } from '../support/run.ts';
import type { Sandbox } from '../support/sandbox.ts';
import { attachLoop, detachLoop, isMounted } from './machine.ts';
import { overlay, ready, Steps, serve, stop } from './servers.ts';

export interface Running {
  node: string;
  /** The processes that serve it; empty where the kernel alone does. */
  pids: number[];
  bringUpMs: number;
  down: () => Promise<void>;
}

export interface Target {
  id: string;
  title: string;
  /** Programs that must be there. */
  needs: readonly string[];
  up: (context: Context) => Promise<Running>;
}

export interface Context {
  /** An empty directory for overlays and mount points. */
  dir: string;
  root: string;
  cleanup: Cleanup;
  sandbox: Sandbox;
}

async function loopOn(steps: Steps, file: string, directIo: boolean): Promise<string> {
  const node = await attachLoop(file, directIo);
  steps.add(`detach ${node}`, () => detachLoop(node));
  return node;
}

const raw: Target = {
  id: 'raw',
  title: 'loop on a raw copy (limit)',
  needs: [],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const start = performance.now();
    const file = join(context.dir, 'copy.img');
    await run('cp', ['--reflink=auto', context.root, file]);
    steps.add('remove the copy', () => rmSync(file, { force: true }));
    const node = await loopOn(steps, file, false);
    const bringUpMs = performance.now() - start;
    return { node, pids: [], bringUpMs, down: () => steps.down() };
  },
};

const sparse: Target = {
  id: 'sparse',
  title: 'loop on an empty sparse file (limit of first writes)',
  needs: [],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const start = performance.now();
    const file = join(context.dir, 'sparse.img');
    writeFileSync(file, '');
    steps.add('remove the file', () => rmSync(file, { force: true }));
    truncateSync(file, statSync(context.root).size);
    const node = await loopOn(steps, file, false);
    const bringUpMs = performance.now() - start;
    return { node, pids: [], bringUpMs, down: () => steps.down() };
  },
};

const qsd: Target = {
  id: 'qsd',
  title: 'qemu-storage-daemon FUSE + loop (unsafe)',
  needs: ['qemu-storage-daemon', 'qemu-img'],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const start = performance.now();
    const file = await overlay(steps, context);
    const mountPoint = join(context.dir, 'qsd.raw');
    writeFileSync(mountPoint, '');
    const size = statSync(context.root).size;
    const server = serve('qemu-storage-daemon', [
      ...['--blockdev', `driver=file,node-name=file,filename=${file},aio=io_uring`],
      ...['--blockdev', 'driver=qcow2,node-name=disk,file=file'],
      ...[
        '--export',
        `type=fuse,id=fuse,node-name=disk,mountpoint=${mountPoint},writable=on,growable=off`,
      ],
    ]);
    steps.add('stop qemu-storage-daemon', () => stop(server.child));
    await ready('qemu-storage-daemon', server, () => statSync(mountPoint).size === size);
    const node = await loopOn(steps, mountPoint, true);
    const bringUpMs = performance.now() - start;
    return { node, pids: [server.child.pid!], bringUpMs, down: () => steps.down() };
  },
};

const nbdfuse: Target = {
  id: 'nbdfuse',
  title: 'qemu-nbd + nbdfuse + loop',
  needs: ['qemu-nbd', 'qemu-img', 'nbdfuse'],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const start = performance.now();
    const file = await overlay(steps, context);
    const socket = join(context.dir, 'nbd.sock');
    const nbd = serve('qemu-nbd', [
      ...['--format=qcow2', '--aio=io_uring', '--cache=writeback', '--discard=unmap'],
      ...['--persistent', '--shared=0', `--socket=${socket}`, file],
    ]);
    steps.add('stop qemu-nbd', () => stop(nbd.child));
    await ready('qemu-nbd', nbd, () => existsSync(socket));
    const mountPoint = join(context.dir, 'nbdfuse.raw');
    writeFileSync(mountPoint, '');
    const fuse = serve('nbdfuse', [mountPoint, '--unix', socket]);
    steps.add('stop nbdfuse', async () => {
      if (isMounted(mountPoint)) await run('umount', [mountPoint]);
      await stop(fuse.child);
    });
    await ready('nbdfuse', fuse, () => isMounted(mountPoint));
    const node = await loopOn(steps, mountPoint, true);
    const bringUpMs = performance.now() - start;
    return {
      node,
      pids: [nbd.child.pid!, fuse.child.pid!],
      bringUpMs,
      down: () => steps.down(),
    };
  },
};

const ubd: Target = {
  id: 'ubd',
  title: 'ubd',
  needs: [],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const leaf = join(context.dir, 'bench.leaf');
    const start = performance.now();
    const device = await context.sandbox.attach({ root: context.root, leaf });
    const bringUpMs = performance.now() - start;
    steps.add('remove the leaf', () => rmSync(leaf, { force: true }));
    steps.add(`detach ${device.name}`, () => context.sandbox.detach(device.name));
    const pids = [context.sandbox.daemonPid()];
    return { node: device.node, pids, bringUpMs, down: () => steps.down() };
  },
};

export const TARGETS: readonly Target[] = [raw, sparse, qsd, nbdfuse, ubd];
