/**
 * Goal: however a loop device ends, and whoever comes second, its leaf is closed once, and whoever
 * has to know is told. Method: a real device; what the kernel tells of its connection comes at the
 * worst moment, from us.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Plane } from '../../src/daemon/hand-over.ts';
import { LoopTransport } from '../../src/daemon/loop-transport.ts';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { clearStaleLoops } from '../../src/transport/fuse/loop.ts';
import { missing } from '../support/loop-fixture.ts';

const MIB = 2 ** 20;
const skip = missing();
let tests = 0;

interface World {
  plane: DataPlane;
  transport: LoopTransport;
  node: string;
  /** What was told of the end of devices. */
  gone: [id: number, reason: string][];
  /** Resolves with the next of it. */
  told(): Promise<void>;
}

/** One device, number 1. @param around what comes between the transport and the data plane */
async function world(t: Test, around: (plane: DataPlane) => Partial<Plane>): Promise<World> {
  const folder = t.testdir({});
  const path = join(folder, 'root.img');
  writeFileSync(path, Buffer.alloc(MIB));
  const plane = await DataPlane.start();
  const owner = `ends-${process.pid}-${tests++}`;
  t.teardown(async () => {
    await clearStaleLoops(owner); // of one whose end we made up, the kernel knows nothing
    await plane.stop();
  });
  const gone: World['gone'] = [];
  let tell = (): void => {};
  const transport = new LoopTransport({
    plane: {
      open: device => plane.open(device),
      close: (id, patient) => plane.close(id, patient),
      flush: id => plane.flush(id),
      ...around(plane),
    },
    owner,
    uring: false,
    onGone: (id, reason) => {
      gone.push([id, reason]);
      tell();
    },
  });
  plane.on('lost', ({ id, reason }) => transport.lost(id, reason));
  const device = { id: 1, name: 'web', sizeBytes: MIB, readOnly: true, leaf: null };
  const { node } = await transport.attach({ ...device, root: await openIdentified(path) });
  const told = (): Promise<void> =>
    new Promise(resolve => {
      if (gone.length > 0) resolve();
      tell = resolve;
    });
  return { plane, transport, node, gone, told };
}

/** Has the device open until it is called. */
async function user(t: Test, node: string): Promise<() => Promise<void>> {
  const script = 'exec 4< "$0"; echo open; exec cat <&3';
  const child = spawn('sh', ['-c', script, node], { stdio: ['ignore', 'pipe', 'inherit', 'pipe'] });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout!, 'data');
  return async () => {
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  };
}

t.test(
  'a device that is lost while its detach finds it in use is told as lost',
  { skip },
  async t => {
    const { plane, transport, node, gone, told } = await world(t, () => ({}));
    const leave = await user(t, node);
    const detached = transport.detach(1, { force: false });
    transport.lost(1, 'aborted');
    await t.rejects(detached, { code: 'busy' });
    await told();
    t.same(gone, [[1, 'aborted']]);
    t.same(await plane.stats(), [], 'and closed');
    t.equal(await transport.detach(1, { force: false }), 'gone');
    await leave();
  },
);

t.test('a last user who leaves while a detach by force flushes is no error', { skip }, async t => {
  let transport: LoopTransport | undefined;
  const here = await world(t, plane => ({
    flush: id => {
      transport?.lost(id, 'released');
      return plane.flush(id);
    },
  }));
  ({ transport } = here);
  const leave = await user(t, here.node);
  t.equal(await transport.detach(1, { force: true }), 'later');
  await here.told();
  t.same(here.gone, [[1, 'released']]);
  await leave();
});

t.test('a detach of a device whose end is under way waits for that', { skip }, async t => {
  const steps: string[] = [];
  let close = (): void => {};
  const mayClose = new Promise<void>(resolve => {
    close = resolve;
  });
  const { transport, told } = await world(t, plane => ({
    close: async id => {
      await mayClose;
      await plane.close(id);
      steps.push('closed');
    },
  }));
  transport.lost(1, 'aborted');
  const detached = transport.detach(1, { force: false }).then(how => steps.push(how));
  setImmediate(close);
  await detached;
  await told();
  t.same(steps, ['closed', 'gone']);
});
