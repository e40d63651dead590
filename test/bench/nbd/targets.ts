/**
 * What is measured: servers that give a client its own writable disk over a shared root, on a unix
 * socket.
 *
 *     ubd       ubd serve ─ leaf, root
 *     qemu-nbd  qemu-nbd ─ qcow2 overlay ─ root
 *     nbdkit    nbdkit ─ cow filter (an overlay that is gone with it) ─ file plugin ─ root
 *
 * All read the same root file, warm in the page cache, and keep their overlay in the same
 * directory.
 */
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { overlay, ready, Steps, serve, stop } from '../servers.ts';
import type { Context } from '../targets.ts';

export interface NbdContext extends Context {
  /** See workloads.ts. */
  span: number;
}

export interface Serving {
  socket: string;
  /** Of the export. */
  name: string;
  pids: number[];
  down: () => Promise<void>;
}

export interface NbdTarget {
  id: string;
  needs: readonly string[];
  up: (context: Context) => Promise<Serving>;
}

const ubd: NbdTarget = {
  id: 'ubd',
  needs: [],
  async up({ sandbox, dir, root, cleanup }) {
    const steps = new Steps(cleanup);
    const socket = join(dir, 'ubd.sock');
    const { client } = sandbox;
    const leaf = join(dir, 'bench.leaf');
    steps.add('remove the leaf', () => rmSync(leaf, { force: true }));
    await client.addExport({ name: 'disk', root, leaf });
    steps.add('remove the export', () => client.removeExport('disk', { force: true }));
    const { uri } = await client.listen({ uri: `nbd+unix://${socket}` });
    steps.add('remove the listener', () => client.unlisten(uri));
    return { socket, name: 'disk', pids: [sandbox.daemonPid()], down: () => steps.down() };
  },
};

const qemuNbd: NbdTarget = {
  id: 'qemu-nbd',
  needs: ['qemu-nbd', 'qemu-img'],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const file = await overlay(steps, context);
    const socket = join(context.dir, 'qemu.sock');
    const server = serve('qemu-nbd', [
      ...['--format=qcow2', '--aio=io_uring', '--cache=writeback', '--discard=unmap'],
      ...['--persistent', '--shared=0', `--socket=${socket}`, file],
    ]);
    steps.add('stop qemu-nbd', () => stop(server.child));
    await ready('qemu-nbd', server, () => existsSync(socket));
    return { socket, name: '', pids: [server.child.pid!], down: () => steps.down() };
  },
};

const nbdkit: NbdTarget = {
  id: 'nbdkit',
  needs: ['nbdkit'],
  async up(context) {
    const steps = new Steps(context.cleanup);
    const socket = join(context.dir, 'nbdkit.sock');
    const server = serve(
      'nbdkit',
      ['--foreground', '--filter=cow', '--unix', socket, 'file', context.root],
      // Its overlay is a temporary file: on the disk where the others have theirs.
      { ...process.env, TMPDIR: context.dir },
    );
    steps.add('stop nbdkit', () => stop(server.child));
    await ready('nbdkit', server, () => existsSync(socket));
    steps.add('remove its socket', () => rmSync(socket, { force: true }));
    return { socket, name: '', pids: [server.child.pid!], down: () => steps.down() };
  },
};

export const NBD_TARGETS: readonly NbdTarget[] = [qemuNbd, nbdkit, ubd];
