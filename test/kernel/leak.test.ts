/**
 * Goal: a daemon that attaches and detaches all day stays as it was: descriptors, memory, mounts,
 * loops.
 * Method: many rounds, in batches, over one daemon. Descriptors and mounts must be exactly as
 * before. Memory may fill pools and caches in the first half; the second half must add no more than
 * 64 KiB a round.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import t from 'tap';
import { MIB, makeRoot } from '../support/disk.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(900_000); // for what hangs

const ROUNDS = QUICK ? 100 : 1000;
const BATCH = 20;
const GROWTH_MAX = 32 * MIB;
/** Names of this process's devices: the same test may run twice. */
const OURS = `leak${process.pid}`;

/** Mounts in the tree of the kind that the daemon makes; others come and go with other programs. */
const OUR_MOUNTS = / - fuse[.\w]* ubd /g;

interface Usage {
  /** What descriptors lead to, sorted; sockets and pipes without their numbers. */
  descriptors: string[];
  mounts: number;
  rssBytes: number;
}

function usage(pid: number): Usage {
  const descriptors: string[] = [];
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      descriptors.push(readlinkSync(`/proc/${pid}/fd/${fd}`).replace(/:\[\d+\]$/, ''));
    } catch {} // closed since
  }
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return {
    descriptors: descriptors.sort(),
    mounts: readFileSync(`/proc/${pid}/mountinfo`, 'utf8').match(OUR_MOUNTS)?.length ?? 0,
    rssBytes: Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024,
  };
}

const skip = await missing(...DEVICES);

t.test(`${ROUNDS} rounds of attach and detach leave nothing behind`, { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await makeRoot(root, 64 * MIB, 4 * MIB);
  const pid = sandbox.daemonPid();
  const nodes = new Set<string>();

  const batch = async (number: number): Promise<void> => {
    const specs = Array.from({ length: BATCH }, (_, i) => ({
      root,
      name: `${OURS}-${number}-${i}`,
      // Some with a leaf of their own, some thrown away, some read-only: three ways to end.
      ...(i % 3 === 0 && { leaf: sandbox.path(`r${i}.leaf`) }),
      ...(i % 3 === 1 && { ephemeral: true }),
      ...(i % 3 === 2 && { readOnly: true }),
    }));
    const results = await sandbox.client.attachAll(specs);
    for (const { device, error } of results) {
      if (device?.node == null) throw new Error(`attach: ${JSON.stringify(error)}`);
      nodes.add(device.node);
    }
    const first = results[0]!.device!.node!;
    await run('dd', ['if=/dev/zero', `of=${first}`, 'bs=64k', 'count=4', 'oflag=direct']);
    for (const spec of specs) await sandbox.detach(spec.name);
    for (let i = 0; i < BATCH; i += 3) await rm(sandbox.path(`r${i}.leaf`), { force: true });
  };

  const batches = ROUNDS / BATCH;
  const warm = Math.floor(batches / 2);
  let before: Usage | undefined;
  const trend: number[] = [];
  for (let number = 0; number < batches; number++) {
    if (number === warm) before = usage(pid);
    await batch(number);
    trend.push(Math.round(usage(pid).rssBytes / MIB));
  }
  t.same(await sandbox.client.list(), []);
  let after = usage(pid);
  await until(
    'descriptors are closed',
    () => {
      after = usage(pid);
      return after.descriptors.length <= before!.descriptors.length;
    },
    5000,
  ).catch(() => {});
  t.same(after.descriptors, before!.descriptors, 'the same descriptors');
  t.equal(after.mounts, before!.mounts, 'the same mounts');
  t.comment(`memory, MiB, by batch: ${trend.join(' ')}`);
  const growth = after.rssBytes - before!.rssBytes;
  t.ok(growth < GROWTH_MAX, `memory grew by ${(growth / MIB).toFixed(1)} MiB`);

  // Ours are gone; a number may since belong to somebody else, so only a name of ours counts.
  const left: string[] = [];
  for (const node of nodes) {
    const { stdout } = await tryRun('losetup', ['--noheadings', '--output', 'BACK-FILE', node]);
    if (stdout.startsWith(`/ubd:${OURS}-`)) left.push(`${node} ${stdout.trim()}`);
  }
  t.same(left, [], 'no loop device of ours');
});
