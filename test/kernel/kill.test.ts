/**
 * Goal: what an fsync promised is there after the daemon was killed, and the file system's check is
 * clean. Method: writers that log every acknowledged fsync elsewhere, and fio beside them for load;
 * SIGKILL to the daemon at a random moment; a new daemon; then every block of the ledger must have
 * its round, or a later one. Several times over on the same leaf, so that logs of earlier crashes
 * are replayed, too.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { MIB, makeRoot, readDirect, sha256 } from '../support/disk.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, sleep, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';
import { BLOCK, readBlock, readLedger } from './writer.ts';

const writer = fileURLToPath(new URL('./writer.js', import.meta.url));
const ROUNDS = QUICK ? 2 : 5;
const BLOCKS = 2048;

interface Program {
  child: ChildProcess;
  ended: Promise<number>;
  said: () => string;
}

function start(command: string, args: readonly string[]): Program {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  child.stdout.on('data', chunk => {
    said += chunk;
  });
  child.stderr.on('data', chunk => {
    said += chunk;
  });
  const ended = new Promise<number>(resolve => child.on('close', code => resolve(code ?? -1)));
  return { child, ended, said: () => said };
}

/**
 * fio as one process: jobs that are processes of their own live on when it is killed, some for
 * ever, and hold its output.
 */
function startLoad(args: readonly string[]): Program {
  return start('fio', ['--thread', ...args]);
}

function startWriter(file: string, ledger: string, seed: number): Program {
  // rounds of a later writer are larger than those of an earlier one
  const first = seed * 1_000_000;
  return start(process.execPath, [writer, file, ledger, `${BLOCKS}`, `${seed}`, `${first}`]);
}

/** Kills the daemon while everybody writes, and brings up a new one that has the device again. */
async function killAndRestart(sandbox: Sandbox, name: string): Promise<Attached> {
  await sandbox.kill();
  await sandbox.startDaemon();
  let found: Attached | undefined;
  await until('the device is attached again', async () => {
    const device = (await sandbox.client.list()).find(one => one.name === name);
    if (device?.state === 'failed') throw new Error(`failed: ${device.error?.message}`);
    if (device?.state === 'attached' && device.node !== null) found = device as Attached;
    return found !== undefined;
  });
  return found!;
}

/** What the ledger holds is there: that round or a later one, whole. */
async function verify(
  t: Test,
  ledger: string,
  read: (index: number) => Promise<Buffer> | Buffer,
): Promise<void> {
  const durable = readLedger(ledger);
  t.ok(durable.size > 0, `the ledger has ${durable.size} blocks`);
  const lost: string[] = [];
  for (const [index, round] of durable) {
    const rounds = readBlock(await read(index), index);
    const whole = rounds.every(one => one !== undefined && one >= round);
    if (!whole) lost.push(`block ${index}: promised ${round}, found ${rounds.join(',')}`);
  }
  t.same(lost.slice(0, 5), [], 'nothing that was promised is lost');
}

t.setTimeout(900_000); // for what hangs
const skip = await missing(...DEVICES, 'fio', 'mkfs.ext4', 'e2fsck');

t.test('SIGKILL under load, on the bare device', { skip, timeout: 600_000 }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await makeRoot(root, 256 * MIB, 64 * MIB);
  const before = await sha256(root);
  const leaf = sandbox.path('bare.leaf');
  const ledger = sandbox.path('bare.ledger');
  let disk = await sandbox.attach({ root, leaf, name: 'bare' });

  for (let round = 1; round <= ROUNDS; round++) {
    const program = startWriter(disk.node, ledger, round);
    const load = startLoad([
      ...['--name=load', `--filename=${disk.node}`, '--offset=64M', '--rw=randwrite'],
      ...['--bsrange=512-64k', '--blockalign=512', '--direct=1', '--ioengine=libaio'],
      ...['--iodepth=16', '--fsync=20', '--time_based', '--runtime=60', `--randseed=${round}`],
    ]);
    sandbox.cleanup.add('end the load', () => load.child.kill('SIGKILL'));
    sandbox.cleanup.add('end the writer', () => program.child.kill('SIGKILL'));
    await until('something was promised', () => existsSync(ledger));
    await sleep(300 + ((round * 977) % 1500));
    t.equal(program.child.exitCode, null, 'the writer was at work when the daemon died');
    disk = await killAndRestart(sandbox, 'bare');
    t.equal(await program.ended, 0, `the writer saw an I/O error: ${program.said()}`);
    await load.ended;
    const all = await readDirect(disk.node, 0, BLOCKS * BLOCK);
    await t.test(`kill ${round}: all that was fsynced is there`, t =>
      verify(t, ledger, index => all.subarray(index * BLOCK, (index + 1) * BLOCK)),
    );
  }
  await sandbox.detach('bare');
  await sandbox.ubd(['check', leaf]);
  t.equal(await sha256(root), before, 'the root is as it was');
});

t.test('SIGKILL under load, below ext4', { skip, timeout: 600_000 }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await run('mkfs.ext4', ['-q', '-F', root, '512M']);
  const before = await sha256(root);
  const leaf = sandbox.path('ext4.leaf');
  const ledger = sandbox.path('ext4.ledger');
  let disk = await sandbox.attach({ root, leaf, name: 'below-ext4' });
  let place = await sandbox.mount(disk.node, 'mnt');
  const file = join(place, 'blocks');
  await run('fallocate', ['--length', `${BLOCKS * BLOCK}`, file]);
  await run('sync', ['--file-system', file]);

  for (let round = 1; round <= ROUNDS; round++) {
    const program = startWriter(file, ledger, round);
    const load = startLoad([
      ...['--name=load', `--directory=${place}`, '--nrfiles=8', '--size=64M', '--rw=randwrite'],
      ...['--bs=4k', '--ioengine=psync', '--fsync=10', '--time_based', '--runtime=60'],
      ...['--numjobs=2', `--randseed=${round}`],
    ]);
    sandbox.cleanup.add('end the load', () => load.child.kill('SIGKILL'));
    sandbox.cleanup.add('end the writer', () => program.child.kill('SIGKILL'));
    await until('something was promised', () => existsSync(ledger));
    await sleep(500 + ((round * 977) % 1500));
    t.equal(program.child.exitCode, null, 'the writer was at work when the daemon died');
    await sandbox.kill();
    t.equal(await program.ended, 0, `the writer saw an I/O error: ${program.said()}`);
    load.child.kill('SIGKILL');
    await load.ended;
    await sandbox.unmount(place);
    disk = await killAndRestart(sandbox, 'below-ext4');
    await t.test(`kill ${round}: fsynced blocks are there, the check is clean`, async t => {
      place = await sandbox.mount(disk.node, 'mnt'); // replays the journal
      const fd = openSync(file, 'r');
      const block = Buffer.alloc(BLOCK);
      await verify(t, ledger, index => {
        readSync(fd, block, 0, BLOCK, index * BLOCK);
        return block;
      });
      closeSync(fd);
      await sandbox.unmount(place);
      await run('e2fsck', ['-f', '-n', disk.node]);
      place = await sandbox.mount(disk.node, 'mnt');
    });
  }
  await sandbox.unmount(place);
  await sandbox.detach('below-ext4');
  await sandbox.ubd(['check', leaf]);
  t.equal(await sha256(root), before, 'the root is as it was');
});
