/**
 * Goal: `ubd serve --takeover`: another daemon goes on with devices in use, and nobody who uses
 * them notices. Method: databases, fio and plain files on devices, through several takeovers; then
 * whatever checks them.
 */
import type { ChildProcess } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs';
import t, { type Test } from 'tap';
import type { TransportName } from '../../src/client/api.ts';
import { MIB, makeRoot } from './disk.ts';
import { IN_GUEST } from './guest.ts';
import { errorsInLog } from './kernel-log.ts';
import { Postgres } from './postgres.ts';
import { missing, QUICK } from './requires.ts';
import { run, sleep, tryRun, until } from './run.ts';
import { type Attached, Sandbox } from './sandbox.ts';
import { Sqlite } from './sqlite.ts';

const TAKEOVERS = QUICK ? 2 : 4;

async function start(t: Test): Promise<Sandbox> {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  chmodSync(sandbox.dir, 0o755); // PostgreSQL runs as another user
  return sandbox;
}

export async function testTakeover(transport: TransportName): Promise<void> {
  if (!IN_GUEST) t.setTimeout(600_000); // a guest may be emulated, and has its own limit
  const skip = await missing('sqlite3', 'fio', 'mkfs.ext4', 'mkfs.xfs');
  const outlives = transport !== 'loop';

  async function attach(sandbox: Sandbox, name: string, sizeBytes: number): Promise<Attached> {
    const root = sandbox.path(`${name}.img`);
    await makeRoot(root, sizeBytes, 0);
    return sandbox.attach({ root, name, transport });
  }

  async function mounted(sandbox: Sandbox, name: string, mkfs: string[]): Promise<string> {
    const { device } = await attach(sandbox, name, 400 * MIB);
    await run(mkfs[0]!, [...mkfs.slice(1), device]);
    const place = sandbox.path(name);
    mkdirSync(place);
    await run('mount', [device, place]);
    return place;
  }

  t.test('databases on mounted devices go on, sound, and without an error', { skip }, async t => {
    const sandbox = await start(t);
    const place = await mounted(sandbox, 'ext4', ['mkfs.ext4', '-q', '-F']);
    const sqlite = new Sqlite(`${place}/db`);
    await sqlite.ask(`pragma journal_mode = wal; pragma synchronous = full;
      create table ledger (id integer primary key, round int, text text);`);
    const postgres = await Postgres.startOn(
      await mounted(sandbox, 'xfs', ['mkfs.xfs', '-q', '-f']),
    );
    const bench = postgres?.bench(QUICK ? 8 : 20);

    let rounds = 0;
    let over = false;
    const work = (async () => {
      for (; !over; rounds++)
        await sqlite.ask(`begin;
          insert into ledger (round, text) values (${rounds}, hex(randomblob(600)));
          update ledger set text = hex(randomblob(500)) where id = abs(random()) % ${rounds + 1};
          commit;`);
    })();
    for (let i = 0; i < TAKEOVERS; i++) {
      await sleep(500);
      const atStart = rounds;
      await sandbox.takeOver();
      await until('transactions go on', () => rounds > atStart + 5);
    }
    over = true;
    await work;
    await bench;
    t.equal(await sqlite.ask('pragma wal_checkpoint(truncate); pragma integrity_check;'), 'ok');
    t.equal(
      await sqlite.ask('select count(*) || max(round) from ledger;'),
      `${rounds}${rounds - 1}`,
    );
    sqlite.end();
    if (postgres === null) t.comment('PostgreSQL is not installed here');
    else {
      await postgres.stop();
      t.match(await postgres.checksums(), /Bad checksums:\s+0/);
    }
    for (const name of ['ext4', 'xfs']) await run('umount', [sandbox.path(name)]);
    const list = await sandbox.client.list();
    const of = (name: string): string => list.find(one => one.name === name)!.device!;
    await run('e2fsck', ['-f', '-n', of('ext4')]);
    await run('xfs_repair', ['-n', of('xfs')]);
    const nodes = list.map(({ node }) => node!);
    t.same(await errorsInLog(nodes), [], 'the log of the kernel has no error');
  });

  t.test(
    'fio verifies what it writes through a takeover; nodes and links stay',
    { skip },
    async t => {
      const sandbox = await start(t);
      const { device, node } = await attach(sandbox, 'busy', 128 * MIB);
      const root = sandbox.path('busy.img');
      await sandbox.attach({ root, name: 'idle', ephemeral: true, transport });
      const fixed = await sandbox.attach({ root, name: 'fixed', readOnly: true, transport });
      const shown = await sandbox.client.list();
      const fio = run('fio', [
        ...['--name=v', `--filename=${node}`, '--rw=randwrite', '--direct=1', '--bsrange=512-64k'],
        ...['--ba=512', '--size=100m', '--io_size=60m', '--iodepth=16', '--ioengine=libaio'],
        ...['--verify=crc32c', '--verify_fatal=1', '--verify_backlog=64', '--rate=16m'],
        ...['--verify_state_save=0', `--aux-path=${sandbox.dir}`],
      ]);
      let ended = false;
      const end = fio.finally(() => {
        ended = true;
      });
      end.catch(() => {});
      for (let i = 0; i < TAKEOVERS && !ended; i++) {
        await sleep(300);
        await sandbox.takeOver();
        t.equal(readlinkSync(device), node);
      }
      await end;
      const fields = ({
        name,
        device,
        node,
        state,
        ephemeral,
        readOnly,
      }: (typeof shown)[0]): object => ({
        ...{ name, device, node, state, ephemeral, readOnly },
      });
      t.same((await sandbox.client.list()).map(fields), shown.map(fields));
      t.equal((await run('blockdev', ['--getro', fixed.node])).trim(), '1');
      await run('dd', [`if=${device}`, 'of=/dev/null', 'bs=1M']);
      for (const { name } of shown) await sandbox.detach(name);
      t.same(await sandbox.client.list(), []);
    },
  );

  t.test('a device that goes with its last user is served until then', { skip }, async t => {
    const sandbox = await start(t);
    const place = await mounted(sandbox, 'leaving', ['mkfs.ext4', '-q', '-F']);
    const { node } = (await sandbox.client.list())[0]!;
    await sandbox.client.detach('leaving', { force: true });
    await sandbox.takeOver();
    t.match(await sandbox.client.list(), [{ name: 'leaving', state: 'detaching', device: null }]);
    writeFileSync(`${place}/late`, 'still');
    await run('sync', ['-f', place]);
    if (outlives) {
      await sandbox.kill();
      const late = run('sh', ['-c', 'echo later > "$1" && sync -f "$1"', 'sh', `${place}/later`]);
      await sandbox.startDaemon();
      await late;
    }
    t.equal(readFileSync(`${place}/late`, 'utf8'), 'still');
    await run('umount', [place]);
    await until('it is gone', async () => (await sandbox.client.list()).length === 0);
    t.same(await run('ls', [sandbox.path('state/devices')]), '', 'its record, too');
    // Nodes of loop and nbd stay, whoever has them.
    if (transport === 'ublk') t.notOk(existsSync(node!));
  });

  t.test('of two that take over at once one does, and none runs twice', { skip }, async t => {
    const sandbox = await start(t);
    const { device } = await attach(sandbox, 'one', 8 * MIB);
    const rivals = [sandbox.spawnDaemon('--takeover'), sandbox.spawnDaemon('--takeover')];
    t.teardown(() => rivals.map(one => one.kill('SIGKILL')));
    const pids = rivals.map(({ pid }) => pid);
    const alive = (): ChildProcess[] => rivals.filter(({ exitCode }) => exitCode === null);
    await until('one of them serves', async () => {
      const client = await sandbox.connect().catch(() => undefined);
      const status = await client?.status().catch(() => undefined);
      if (status?.state !== 'running') return false;
      return pids.includes(status.pid) && status.devices.attached === 1;
    });
    await sleep(1000); // the other one may take over from the first, or is refused
    await until('one daemon runs', async () => {
      const client = await sandbox.connect().catch(() => undefined);
      const status = await client?.status().catch(() => undefined);
      if (status?.state !== 'running' || alive().length > 1) return false;
      return status.pid === alive()[0]!.pid;
    });
    await run('dd', [`if=${device}`, 'of=/dev/null', 'bs=4k', 'iflag=direct']);
    const client = await sandbox.connect();
    await client.detachAll();
    const last = alive()[0]!;
    last.kill('SIGTERM');
    await until('it has ended', () => last.exitCode !== null);
  });

  t.test('where no daemon runs, one that is to take over just starts', { skip }, async t => {
    const sandbox = await start(t);
    await attach(sandbox, 'one', 8 * MIB);
    await sandbox.kill();
    const daemon = sandbox.spawnDaemon('--takeover');
    await until('the device is back', async () => {
      const client = await sandbox.connect().catch(() => undefined);
      return (await client?.list().catch(() => []))?.[0]?.state === 'attached';
    });
    await (await sandbox.connect()).detachAll();
    daemon.kill('SIGTERM');
    await until('it has ended', () => daemon.exitCode !== null);
  });

  t.test('a taker that is killed leaves the devices to the next daemon', { skip }, async t => {
    if (!outlives) return t.end();
    const sandbox = await start(t);
    const place = await mounted(sandbox, 'web', ['mkfs.ext4', '-q', '-F']);
    for (const [round, ms] of [0, 50, 150, 300, 600].entries()) {
      const taker = sandbox.spawnDaemon('--takeover');
      await until('it has begun', () => existsSync(`/proc/${taker.pid}/fd`));
      await sleep(300 + ms);
      taker.kill('SIGKILL');
      const file = `${place}/${round}`;
      const write = run('sh', ['-c', 'echo $1 > "$2" && sync -f "$2"', 'sh', `${round}`, file]);
      // Whichever daemon is there: the command finds it, or starts one.
      await tryRun('true');
      const listed = await sandbox.ubd(['list', '--json']);
      t.match(JSON.parse(listed.stdout), [{ name: 'web', state: 'attached' }]);
      await write;
      t.equal(readFileSync(file, 'utf8'), `${round}\n`);
    }
    await run('umount', [place]);
    await sandbox.ubd(['detach', 'web']);
    const { pid } = await (await sandbox.connect()).status();
    process.kill(pid, 'SIGTERM');
    await until('the last one has ended', () => !existsSync(`/proc/${pid}`));
  });
}
