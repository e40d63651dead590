/**
 * Goal: the daemon is killed again and again, and nobody who uses a ublk device notices: no I/O
 * error, nothing lost that was answered, although other devices are attached, detached and
 * snapshotted meanwhile; and what was half done for those is in order, or gone.
 *
 * Method: at once, ext4 and xfs with a writer that calls fsync and keeps a ledger elsewhere, fio
 * that verifies on a bare device, and clients that attach and detach; SIGKILL every second or so.
 * UBD_TEST_KILLS=60 makes it a minute and more.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Client } from '../../src/client/client.ts';
import { MIB, makeRoot, sha256 } from '../support/disk.ts';
import { here } from '../support/guest.ts';
import { errorsInLog } from '../support/kernel-log.ts';
import { Random } from '../support/random.ts';
import { QUICK } from '../support/requires.ts';
import { run, sleep, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { BLOCK, readBlock, readLedger } from './writer.ts';

const WRITER = fileURLToPath(new URL('./writer.js', import.meta.url));
const KILLS = Number(process.env.UBD_TEST_KILLS ?? (QUICK ? 4 : 12));
const BLOCKS = 1024;

/** A file system on a device, and a writer in it. */
class Mounted {
  readonly #sandbox: Sandbox;
  readonly name: string;
  readonly node: string;
  readonly #ledger: string;
  readonly #file: string;
  #writer: ChildProcess | null = null;

  private constructor(sandbox: Sandbox, name: string, node: string) {
    this.#sandbox = sandbox;
    this.name = name;
    this.node = node;
    this.#ledger = sandbox.path(`${name}.ledger`);
    this.#file = `${sandbox.path(name)}/blocks`;
  }

  static async make(sandbox: Sandbox, name: string, mkfs: string[]): Promise<Mounted> {
    const root = sandbox.path(`${name}.img`);
    await makeRoot(root, 400 * MIB, 0);
    const { device, node } = await sandbox.attach({ root, name, transport: 'ublk' });
    await run(mkfs[0]!, [...mkfs.slice(1), device]);
    mkdirSync(sandbox.path(name));
    await run('mount', [device, sandbox.path(name)]);
    const mounted = new Mounted(sandbox, name, node);
    await run('fallocate', ['--length', `${BLOCKS * BLOCK}`, mounted.#file]);
    return mounted;
  }

  start(): void {
    const { length } = this.name;
    this.#writer = spawn(
      process.execPath,
      [WRITER, this.#file, this.#ledger, `${BLOCKS}`, `${length}`],
      { stdio: 'inherit' },
    );
  }

  /** How many fsyncs were answered, in bytes of ledger. */
  get progress(): number {
    return statSync(this.#ledger, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** Whether the writer has seen no error until now; then it is ended. */
  async end(): Promise<boolean> {
    const writer = this.#writer!;
    const sound = writer.exitCode === null && writer.signalCode === null;
    if (!sound) return false;
    const ended = new Promise(resolve => writer.once('exit', resolve));
    writer.kill('SIGKILL');
    await ended;
    return true;
  }

  /** What was promised and is not there, after the caches were dropped. */
  lost(): string[] {
    const fd = openSync(this.#file, 'r');
    const block = Buffer.alloc(BLOCK);
    const lost: string[] = [];
    for (const [index, round] of readLedger(this.#ledger)) {
      readSync(fd, block, 0, BLOCK, index * BLOCK);
      const rounds = readBlock(block, index);
      if (!rounds.every(one => one !== undefined && one >= round))
        lost.push(`block ${index}: promised ${round}, found ${rounds.join(',')}`);
    }
    closeSync(fd);
    return lost;
  }

  unmount(): Promise<string> {
    return run('umount', [this.#sandbox.path(this.name)]);
  }
}

/** Attaches, snapshots and detaches until it is told to stop; the daemon may die at any moment. */
async function churn(sandbox: Sandbox, root: string, over: () => boolean): Promise<number> {
  let done = 0;
  for (let i = 0; !over(); i++) {
    const name = `churn-${i % 3}`;
    try {
      const client: Client = sandbox.client;
      await client.attach({ root, name, transport: 'ublk', ephemeral: i % 3 === 0 });
      if (i % 3 === 1) {
        const file = sandbox.path(`snapshot-${i}`);
        await client.snapshot({ target: name, file });
      }
      await client.detach(name);
      done++;
    } catch {
      // The daemon was killed, or a device of this name has come back: that one goes first.
      await sleep(50);
      await Promise.resolve()
        .then(() => sandbox.client.detach(name))
        .catch(() => {});
    }
  }
  return done;
}

interface FioReport {
  jobs: { error: number; read: { total_ios: number } }[];
}

const UBLK = { device: '/dev/ublk-control', modules: ['ublk_drv', 'ext4', 'xfs'] };
if (await here(import.meta.url, { ...UBLK, limitSeconds: 200 + 10 * KILLS })) {
  t.test(`${KILLS} times SIGKILL, and nobody on a device notices`, async t => {
    const seed = Number(process.env.UBD_SEED ?? Date.now() % 1e9);
    t.comment(`UBD_SEED=${seed}`);
    const random = new Random(seed);
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    const places = [
      await Mounted.make(sandbox, 'ext4', ['mkfs.ext4', '-q', '-F']),
      await Mounted.make(sandbox, 'xfs', ['mkfs.xfs', '-q', '-f']),
    ];
    const root = sandbox.path('root.img');
    await makeRoot(root, 128 * MIB, 4 * MIB);
    const before = await sha256(root);
    const bare = await sandbox.attach({ root, name: 'bare', transport: 'ublk' });

    let over = false;
    const others = churn(sandbox, root, () => over);
    for (const place of places) {
      place.start();
      sandbox.cleanup.add(`end the writer of ${place.name}`, () => place.end());
    }
    const fio = spawn(
      'fio',
      [
        ...['--name=v', `--filename=${bare.node}`, '--rw=randwrite', '--direct=1', '--bs=4k'],
        ...['--size=64m', '--ioengine=libaio', '--iodepth=8', '--rate=4m', '--time_based'],
        ...['--runtime=3600', '--verify=crc32c', '--verify_fatal=1', '--verify_backlog=32'],
        ...['--verify_state_save=0', `--aux-path=${sandbox.dir}`, '--fsync=64'],
        ...['--output-format=json', `--output=${sandbox.path('fio.json')}`],
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    sandbox.cleanup.add('end fio', () => fio.kill('SIGKILL'));

    for (let kill = 1; kill <= KILLS; kill++) {
      await sleep(random.between(300, 1500));
      await sandbox.kill();
      await sleep(random.below(200));
      const at = places.map(place => place.progress);
      await sandbox.startDaemon();
      await until('the writers go on', () => places.every((one, i) => one.progress > at[i]!));
      t.equal(fio.exitCode, null, `kill ${kill}: fio has found no difference`);
    }
    over = true;
    t.ok((await others) > 0, 'other devices came and went');
    const ended = new Promise(resolve => fio.once('exit', resolve));
    if (fio.exitCode === null && fio.kill('SIGINT')) await ended;
    const said = readFileSync(sandbox.path('fio.json'), 'utf8');
    const report = JSON.parse(said.slice(said.indexOf('{'))) as FioReport;
    t.match(report, { jobs: [{ error: 0 }] }, 'fio verifies what it wrote');
    t.ok(report.jobs[0]!.read.total_ios > 100, 'a good part of it');
    for (const place of places) t.ok(await place.end(), `${place.name}: its writer saw no error`);
    await run('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches']);
    for (const place of places) {
      t.same(place.lost().slice(0, 5), [], `${place.name}: what fsync promised is there`);
      await place.unmount();
    }
    await run('e2fsck', ['-f', '-n', places[0]!.node]);
    await run('xfs_repair', ['-n', places[1]!.node]);
    const nodes = [...places.map(({ node }) => node), bare.node];
    t.same(await errorsInLog(nodes), [], 'the log of the kernel has no error');
    await sandbox.client.detachAll();
    t.same(await sandbox.client.list(), []);
    t.equal(await sha256(root), before, 'the root is as it was');
    const left = readdirSync('/dev').filter(name => /^(ublk[bc]|ubd)/.test(name));
    t.same(left, [], 'nothing is left behind');
  });
}
