/**
 * Goal: what is done with a device in use is done on a remote root, too: a snapshot, a fork, an
 * export, a root of its own by command or at its quota; whoever writes to it sees nothing of it.
 * Method: real servers; fio, which verifies what it has written, while all that happens.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import type { DeviceInfo } from '../../src/client/api.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { nbdkit, nginx, qemuNbd } from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(200_000);
const MIB = 2 ** 20;
const SIZE = 32 * MIB;

interface Served {
  uri: string;
  stop: () => Promise<void>;
}

/** Serves the file `root.img` of a directory of its own. */
const SERVERS: Record<string, [tool: string, (work: string, folder: string) => Promise<Served>]> = {
  http: [
    'nginx',
    async (work, folder) => {
      const server = await nginx(work, folder);
      await server.start();
      return { uri: server.url('root.img'), stop: () => server.kill() };
    },
  ],
  nbd: [
    'nbdkit',
    async (work, folder) => {
      const server = nbdkit(`${folder}/root.img`, `${work}/socket`);
      await server.start();
      return { uri: server.uri, stop: () => server.kill() };
    },
  ],
  'nbd with names': [
    'qemu-nbd',
    async (work, folder) => {
      const server = qemuNbd(`${folder}/root.img`, `${work}/socket`, 'root');
      await server.start();
      return { uri: server.uri, stop: () => server.kill() };
    },
  ],
};

/** Writes and verifies, at so many bytes a second; ends when all of `mib` is written. */
function fio(node: string, work: string, mib: number, rate: string): Promise<string> {
  return run('fio', [
    ...['--name=v', `--filename=${node}`, '--rw=randrw', '--bs=4k', '--iodepth=8', '--direct=1'],
    ...['--ioengine=libaio', `--size=${SIZE}`, `--io_size=${mib}M`, `--rate=${rate}`],
    ...['--verify=crc32c', '--verify_backlog=64', '--verify_fatal=1', `--aux-path=${work}`],
  ]);
}

for (const [what, [tool, serve]] of Object.entries(SERVERS)) {
  const skip = await missing(...DEVICES, 'fio', tool);
  t.test(`over ${what}`, { skip }, async t => {
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    const [folder, work] = [sandbox.path('served'), sandbox.path('work')];
    for (const made of [folder, work]) mkdirSync(made);
    const content = Buffer.alloc(SIZE); // sparse: what lies behind the first 8 MiB is a hole
    content.set(noise(new Random(1), 8 * MIB));
    writeFileSync(`${folder}/root.img`, content.subarray(0, 8 * MIB));
    await run('truncate', ['-s', String(SIZE), `${folder}/root.img`]);
    const { uri: root, stop } = await serve(work, folder);
    t.teardown(stop);

    const web = await sandbox.attach({ root, name: 'web' });
    const working = fio(web.node, work, 24, '4M');
    const { client } = sandbox;
    await client.snapshot({ target: 'web', file: sandbox.path('a.leaf') });
    const leaves = [1, 2].map(number => sandbox.path(`f${number}.leaf`));
    await client.fork({ source: 'web', leaves });
    const [one, two] = ['one.img', 'two.img'].map(name => sandbox.path(name)) as [string, string];
    await sandbox.ubd(['export', 'web', one]);
    const moved = await client.reconcile({ target: 'web', output: two });
    t.match(moved, { from: root, root: two });
    t.match((await client.info('web')) as DeviceInfo, { root: two, chain: [] });
    t.match(await working, /err= 0/, 'who writes sees nothing of it');
    await sandbox.detach('web');
    for (const leaf of [web.leaf!, ...leaves]) {
      const report = await client.check({ leaf, root: true });
      t.ok(report.ok, leaf);
    }

    const limits = { bytes: 4 * MIB, action: 'reconcile' } as const;
    const small = await sandbox.attach({ root, name: 'small', quota: limits });
    const rootNow = async (): Promise<string> => ((await client.info('small')) as DeviceInfo).root;
    // Slower than the daemon makes roots.
    const bytes = Buffer.from(noise(new Random(2), 4 * MIB));
    for (let at = 0; at < 3; at++) {
      const before = await rootNow();
      const input = bytes.subarray(0, 3.7 * MIB);
      const dd = [`of=${small.node}`, 'bs=64k', `seek=${at * 128}`, 'conv=notrunc,fsync'];
      await run('dd', dd, { input, timeoutMs: 30_000 });
      input.copy(content, at * 8 * MIB);
      await until('a new root', async () => (await rootNow()) !== before);
    }
    await sandbox.detach('small');
    const out = sandbox.path('out');
    await sandbox.ubd(['export', small.leaf!, out]);
    t.ok(readFileSync(out).equals(content), 'every byte');
  });
}
