/** A hundred leaves on the state of a device that is written meanwhile: time and space. */
import { type ChildProcess, spawn } from 'node:child_process';
import { statSync } from 'node:fs';
import { run, until } from '../../support/run.ts';
import type { Sandbox } from '../../support/sandbox.ts';
import type { Scale } from '../figures.ts';
import { type Figure, median } from '../results.ts';

const LEAVES = 100;
const MIB = 2 ** 20;

export async function forks(sandbox: Sandbox, scale: Scale): Promise<Figure[]> {
  scale.progress(`forks of ${LEAVES} leaves`);
  const root = sandbox.path('forks.img');
  await run('truncate', ['--size', String(1024 * MIB), root]);
  const { node } = await sandbox.attach({ root, leaf: sandbox.path('forks.leaf'), name: 'forks' });
  await run('dd', ['if=/dev/urandom', `of=${node}`, 'bs=1M', 'count=256', 'oflag=direct']);
  const fio = load(node);
  const times: number[] = [];
  let mostBytes = 0;
  try {
    const rounds = scale.quick ? 2 : 15;
    for (let round = 0; round < rounds; round++) {
      await until('something is new', async () => {
        const [device] = (await sandbox.client.list()).filter(({ name }) => name === 'forks');
        return (device?.changed ?? 0) > 0;
      });
      const leaves = Array.from({ length: LEAVES }, (_, i) =>
        sandbox.path(`fork-${round}-${i}.leaf`),
      );
      const start = performance.now();
      const { frozen } = await sandbox.client.fork({ source: 'forks', leaves });
      times.push(performance.now() - start);
      if (!frozen) throw new Error('nothing was frozen for the forks');
      for (const leaf of leaves) mostBytes = Math.max(mostBytes, statSync(leaf).blocks * 512);
    }
  } finally {
    const ended = new Promise(resolve => fio.on('exit', resolve));
    fio.kill('SIGINT');
    await ended;
  }
  await sandbox.detach('forks');
  const section = `fork of ${LEAVES} leaves, device under load`;
  const note = `${times.length} times, each a snapshot and ${LEAVES} durable leaves`;
  return [
    { section, title: 'median', value: median(times), unit: 'ms', note },
    { section, title: 'slowest', value: Math.max(...times), unit: 'ms', note },
    {
      section,
      title: 'a leaf takes',
      value: mostBytes / 1024,
      unit: 'KiB',
      note: 'the largest of all; the device has 256 MiB of changes, none is copied',
    },
  ];
}

function load(node: string): ChildProcess {
  const options = ['--ioengine=io_uring', '--direct=1', '--rw=randrw', '--bs=4096', '--iodepth=4'];
  return spawn(
    'fio',
    [
      ...['--name=load', `--filename=${node}`, '--norandommap', '--time_based', '--runtime=3600'],
      ...options,
      '--rate_iops=1000,1000',
    ],
    { stdio: 'ignore' },
  );
}
