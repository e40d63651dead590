/** The figures that are no throughput: bring-up, attach, many devices, memory, the command line. */
import { rmSync } from 'node:fs';
import { open, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { run, sleep, tryRun } from '../support/run.ts';
import { CLI, type Sandbox } from '../support/sandbox.ts';
import { pssBytes } from './machine.ts';
import { type Figure, median } from './results.ts';
import type { Context, Target } from './targets.ts';

export interface Scale {
  quick: boolean;
  rounds: number;
  progress: (line: string) => void;
}

const GIB = 2 ** 30;
const TIB = 2 ** 40;

async function timed(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

/** How long until there is a disk of one's own from a 1 GiB image that is full of data. */
export async function bringUpTimes(
  context: Context,
  targets: readonly Target[],
  scale: Scale,
): Promise<Figure[]> {
  scale.progress('bring-up of a 1 GiB image');
  const root = join(context.dir, 'full.img');
  const mib = scale.quick ? 256 : 1024;
  await run('dd', ['if=/dev/urandom', `of=${root}`, 'bs=1M', `count=${mib}`]);
  const rounds = scale.quick ? 1 : Math.max(3, scale.rounds);
  const ways = new Map<string, () => Promise<number>>();
  const copy = join(context.dir, 'copied.img');
  ways.set('cp (full copy)', async () => {
    const ms = await timed(() => run('cp', ['--reflink=never', '--sparse=never', root, copy]));
    await rm(copy);
    return ms;
  });
  ways.set('cp --reflink=auto', async () => {
    const ms = await timed(() => run('cp', ['--reflink=auto', root, copy]));
    await rm(copy);
    return ms;
  });
  for (const target of targets.filter(one => one.id !== 'raw' && one.id !== 'sparse')) {
    ways.set(`${target.title}, until the node is there`, async () => {
      const running = await target.up({ ...context, root });
      await running.down();
      return running.bringUpMs;
    });
  }
  const times = new Map<string, number[]>();
  for (let round = 0; round < rounds; round++) {
    for (const [title, way] of ways) {
      const list = times.get(title) ?? [];
      list.push(await way());
      times.set(title, list);
    }
  }
  rmSync(root);
  const note = `median of ${rounds}, ${mib} MiB image`;
  return [...times].map(([title, list]) => ({
    section: 'bring-up',
    title,
    value: median(list),
    unit: 'ms',
    note,
  }));
}

/** Attach with a new leaf through the daemon's interface: it must not depend on the root's size. */
export async function attachTimes(sandbox: Sandbox, scale: Scale): Promise<Figure[]> {
  scale.progress('attach times');
  const small = sandbox.path('1G.img');
  const large = sandbox.path('10T.img');
  await sparse(small, GIB);
  await sparse(large, 10 * TIB);
  const count = scale.quick ? 5 : 40;
  const times = new Map<string, number[]>([
    [small, []],
    [large, []],
  ]);
  const detaches: number[] = [];
  for (let i = 0; i < count; i++) {
    for (const [root, list] of times) {
      const leaf = sandbox.path(`attach-${i}.leaf`);
      let name = '';
      list.push(
        await timed(async () => {
          name = (await sandbox.attach({ root, leaf })).name;
        }),
      );
      detaches.push(await timed(() => sandbox.detach(name)));
      await rm(leaf);
    }
  }
  const note = `median of ${count}, new leaf, request to usable node`;
  return [
    { section: 'attach', title: '1 GiB root', value: median(times.get(small)!), unit: 'ms', note },
    {
      section: 'attach',
      title: 'sparse 10 TiB root',
      value: median(times.get(large)!),
      unit: 'ms',
      note,
    },
    { section: 'attach', title: 'detach', value: median(detaches), unit: 'ms' },
  ];
}

/** Two hundred devices at once: time for each, and what an idle one costs the daemon. */
export async function manyDevices(sandbox: Sandbox, scale: Scale): Promise<Figure[]> {
  const count = scale.quick ? 20 : 200;
  scale.progress(`${count} devices at once`);
  const root = sandbox.path('many.img');
  await sparse(root, GIB);
  const pids = [sandbox.daemonPid()];
  // What the daemon loads and reserves at its first device is no cost of the others.
  const first = await sandbox.attach({ root, name: 'many-first', ephemeral: true });
  await sleep(1000);
  const before = pssBytes(pids);
  const specs = Array.from({ length: count }, (_, i) => ({
    root,
    name: `many-${i}`,
    ephemeral: true,
  }));
  const ms = await timed(async () => {
    for (const one of await sandbox.client.attachAll(specs)) {
      if (one.device === undefined) throw new Error(`attach: ${one.error?.message}`);
    }
  });
  await sleep(1000);
  const after = pssBytes(pids);
  const listMs: number[] = [];
  for (let i = 0; i < 10; i++) listMs.push(await timed(() => sandbox.client.list()));
  const detachMs = await timed(async () => {
    for (const { name } of specs) await sandbox.detach(name);
  });
  await sandbox.detach(first.name);
  const section = `${count} devices`;
  return [
    { section, title: 'attach, each', value: ms / count, unit: 'ms', note: 'one request for all' },
    { section, title: 'detach, each', value: detachMs / count, unit: 'ms' },
    {
      section,
      title: 'daemon memory per idle device',
      value: (after - before) / count / 1024,
      unit: 'KiB',
      note: 'growth of its PSS; leaves are ephemeral, the roots sparse',
    },
    { section, title: 'list', value: median(listMs), unit: 'ms', note: 'through the socket' },
  ];
}

/** `ubd list` against the shortest program that Node can run. */
export async function commandLine(sandbox: Sandbox, scale: Scale): Promise<Figure[]> {
  scale.progress('command line');
  const count = scale.quick ? 5 : 25;
  const bare: number[] = [];
  const list: number[] = [];
  for (let i = 0; i < count; i++) {
    bare.push(await timed(() => tryRun(process.execPath, ['-e', '0'])));
    list.push(await timed(() => tryRun(process.execPath, [CLI, 'list'], { env: sandbox.env })));
  }
  return [
    { section: 'command line', title: 'node -e 0', value: median(bare), unit: 'ms' },
    { section: 'command line', title: 'ubd list', value: median(list), unit: 'ms' },
    {
      section: 'command line',
      title: 'ubd list / node -e 0',
      value: median(list.map((ms, i) => ms / bare[i]!)),
      unit: 'times',
      note: `median of ${count} pairs`,
    },
  ];
}

async function sparse(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, 'w');
  await file.close();
  await truncate(path, sizeBytes);
}
