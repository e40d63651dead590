/**
 * Goal: what is copied of a device while databases write to it holds one moment: file system and
 * databases of the copy recover, are consistent, and have every transaction that was answered
 * before. Method: PostgreSQL under pgbench and SQLite on one ext4; `ubd export` of the device, and
 * of a snapshot without freezing, all while they write.
 */
import { chmodSync, mkdirSync } from 'node:fs';
import t, { type Test } from 'tap';
import { MIB } from '../support/disk.ts';
import { Postgres } from '../support/postgres.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, sleep, tryRun, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { Sqlite } from '../support/sqlite.ts';

t.setTimeout(600_000);
const skip = await missing(...DEVICES, 'sqlite3', 'mkfs.ext4', 'e2fsck');
const LEDGER = "select count(*) || '|' || coalesce(max(id), 0) from ledger;";
/** What every transaction of pgbench adds to each of the four. */
const SUMS = `select (select sum(abalance) from pgbench_accounts),
  (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers),
  (select coalesce(sum(delta), 0) from pgbench_history),
  (select count(*) from pgbench_history)`;

interface Copy {
  file: string;
  /** Transactions that were answered before it was asked for, and when it was there. */
  least: { ledger: number; bench: number };
  most: { ledger: number };
}

t.test('copies of a device that databases write to are consistent', { skip }, async t => {
  const box = await Sandbox.start();
  t.teardown(() => box.cleanup.run());
  chmodSync(box.dir, 0o755); // PostgreSQL runs as another user
  await run('truncate', ['--size', String(500 * MIB), box.path('root.img')]);
  const { node } = await box.attach({
    root: box.path('root.img'),
    leaf: box.path('db.leaf'),
    name: 'db',
  });
  await run('mkfs.ext4', ['-q', '-F', node]);
  const place = await box.mount(node, 'mnt');
  const sqlite = new Sqlite(`${place}/ledger`);
  await sqlite.ask(`pragma journal_mode = wal; pragma synchronous = full;
    create table ledger (id integer primary key, text text);`);
  const postgres = await Postgres.startOn(place);
  if (postgres === null) t.comment('PostgreSQL is not installed: SQLite alone');

  let rounds = 0;
  let over = false;
  const ledger = (async () => {
    for (; !over; rounds++)
      await sqlite.ask('insert into ledger (text) values (hex(randomblob(600)));');
  })();
  const bench = (async () => {
    while (!over) await postgres?.bench(1);
  })();
  const copies: Copy[] = [];
  const copy = async (file: string, make: (file: string) => Promise<unknown>): Promise<void> => {
    const before = rounds;
    await until('transactions go on', () => rounds > before + 5);
    const done = await postgres?.ask('select count(*) from pgbench_history');
    const least = { ledger: rounds, bench: Number(done ?? 0) };
    await make(box.path(file));
    copies.push({ file: box.path(file), least, most: { ledger: rounds + 1 } });
  };
  for (let i = 0; i < (QUICK ? 1 : 2); i++) {
    await copy(`still-${i}.img`, file => box.ubd(['export', 'db', file]));
    await copy(`crash-${i}.img`, async file => {
      const image = box.path(`crash-${i}.leaf`);
      await box.ubd(['snapshot', 'db', image, '--no-freeze']);
      await box.ubd(['export', image, file]);
    });
    await sleep(200);
  }
  over = true;
  await ledger;
  await bench;
  sqlite.end();
  await postgres?.stop();
  await box.unmount(place);
  await box.detach('db');
  await box.ubd(['export', box.path('db.leaf'), box.path('last.img')]);
  copies.push({
    file: box.path('last.img'),
    least: { ledger: rounds, bench: 0 },
    most: { ledger: rounds },
  });
  for (const one of copies) await check(t, one, postgres);
});

async function check(t: Test, copy: Copy, postgres: Postgres | null): Promise<void> {
  const { file, least, most } = copy;
  await t.test(file.split('/').at(-1)!, async t => {
    const place = `${file}.mnt`;
    mkdirSync(place);
    await run('mount', ['-o', 'loop', file, place]); // replays its journal
    try {
      const sqlite = new Sqlite(`${place}/ledger`);
      t.equal(await sqlite.ask('pragma integrity_check;'), 'ok');
      const [count, last] = (await sqlite.ask(LEDGER)).split('|').map(Number);
      sqlite.end();
      t.equal(count, last, 'no transaction is missing');
      t.ok(
        last! >= least.ledger && last! <= most.ledger,
        `${last} of ${least.ledger} to ${most.ledger}`,
      );
      if (postgres !== null) {
        const recovered = await postgres.startCopyOn(place);
        const sums = (await recovered.ask(SUMS)).split('|').map(Number);
        t.strictSame(sums.slice(0, 3), Array(3).fill(sums[3]), 'each transaction is all there');
        t.ok(sums[4]! >= least.bench, `${sums[4]} transactions of at least ${least.bench}`);
        await recovered.stop();
        await recovered.checksums();
      }
    } finally {
      await run('umount', [place]);
    }
    const fsck = await tryRun('e2fsck', ['-f', '-n', file]);
    t.equal(fsck.status, 0, fsck.stdout);
  });
}
