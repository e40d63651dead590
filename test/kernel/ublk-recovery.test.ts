/**
 * Goal: a ublk device outlives its server: no I/O error, nothing lost that was answered; and a
 * server that dies half-way leaves nothing that cannot be cleared. Method: SIGKILL at odd moments
 * under fio verify and under a mounted file system, a new server each time.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { removeDevice, UblkDevice } from '../../src/transport/ublk/device.ts';
import { listOwned } from '../../src/transport/ublk/marks.ts';
import { openUblk } from '../../src/transport/ublk/probe.ts';
import { CONTROL } from '../../src/transport/ublk/wire.ts';
import { here } from '../support/guest.ts';
import { copyAndCompare, errorsInLog, fioVerify, killUnder } from '../support/recovery.ts';
import { QUICK } from '../support/requires.ts';
import { run, sleep } from '../support/run.ts';
import { UblkProcess } from '../support/ublk-process.ts';

const MIB = 1024 * 1024;
const OWNER = `ublk-recovery-test-${process.pid}`;
const KILLS = QUICK ? 4 : 12;

/** Kills and replaces the server until `work` ends; returns the last one. */
async function killServer(
  t: Test,
  first: UblkProcess,
  again: () => Promise<UblkProcess>,
  work: Promise<unknown>,
): Promise<UblkProcess> {
  let server = first;
  await killUnder(work, KILLS, [100, 900], async count => {
    await server.kill();
    t.ok(existsSync(first.node), `kill ${count}: the device is there without a server`);
    server = await again();
    t.equal(server.node, first.node);
  });
  return server;
}

if (await here(import.meta.url, { device: '/dev/ublk-control' })) {
  t.test('SIGKILL under fio: what was answered is there, and no I/O failed', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const devices = [{ name: 'fio', sizeBytes: 256 * MIB, leaf: join(directory, 'leaf') }];
    const again = (): Promise<UblkProcess> => UblkProcess.start(OWNER, devices);
    const first = await again();
    const fio = fioVerify(first.node, directory, '16m');
    const last = await killServer(t, first, again, fio);
    t.same(await errorsInLog(first.node), []);
    await last.stop();
    await rm(directory, { recursive: true });
  });

  t.test('SIGKILL under a mounted file system: files and checks are fine', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const devices = [{ name: 'fs', sizeBytes: 256 * MIB, leaf: join(directory, 'leaf') }];
    const again = (): Promise<UblkProcess> => UblkProcess.start(OWNER, devices);
    const first = await again();
    const place = join(directory, 'mnt');
    await run('mkdir', [place]);
    await run('mkfs.ext4', ['-q', '-F', first.node]);
    await run('mount', [first.node, place]);
    const last = await killServer(t, first, again, copyAndCompare(place));
    await run('umount', [place]);
    await run('e2fsck', ['-f', '-n', first.node]);
    t.same(await errorsInLog(first.node), []);
    await last.stop();
    await rm(directory, { recursive: true });
  });

  t.test('a server that leaves hands its device on, with I/O under way', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const devices = [{ name: 'on', sizeBytes: 256 * MIB, leaf: join(directory, 'leaf') }];
    const first = await UblkProcess.start(OWNER, devices);
    const fio = run('fio', [
      ...['--name=v', `--filename=${first.node}`, '--rw=randwrite', '--direct=1', '--bs=4k'],
      ...['--size=64m', '--io_size=16m', '--iodepth=8', '--ioengine=libaio', '--verify=crc32c'],
      ...['--verify_fatal=1', '--verify_state_save=0', `--aux-path=${directory}`],
    ]);
    await sleep(300);
    await first.leave();
    const second = await UblkProcess.start(OWNER, devices);
    t.equal(second.node, first.node);
    await fio;
    t.same(await errorsInLog(first.node), []);
    await second.stop();
    await rm(directory, { recursive: true });
  });

  for (const stage of ['made', 'opened', 'starting']) {
    t.test(
      `a server killed when its device is ${stage} leaves one that can be removed`,
      async t => {
        const helper = await startHalfWay(stage);
        helper.child.kill('SIGKILL');
        await new Promise(resolve => helper.child.once('exit', resolve));
        const { control } = await openUblk();
        const owned = await listOwned(control, OWNER);
        t.same(
          owned.map(({ id }) => id),
          [helper.id],
        );
        t.same(await listOwned(control, 'somebody else'), []);
        await removeDevice(control, helper.id);
        t.same(await listOwned(control, OWNER), []);
        t.notOk(existsSync(`/dev/ublkc${helper.id}`));
        control.close();
      },
    );
  }

  t.test('a command that the kernel does not end is given up, and says so', async t => {
    const ublk = await openUblk();
    const options = { owner: OWNER, name: 'late', sizeSectors: 2048, readOnly: false };
    const device = await UblkDevice.create(ublk, options);
    const what = 'starting without a server';
    const value = process.pid;
    const command = { code: CONTROL.START_DEV, what, device: device.id, value, timeoutMs: 300 };
    // The event loop goes on meanwhile: other commands are answered.
    const late = t.rejects(ublk.control.send(command), {
      code: 'io',
      message: `${what}: the kernel did not answer within 0.3 s`,
    });
    t.equal((await listOwned(ublk.control, OWNER)).length, 1);
    await late;
    await device.remove();
    t.same(await listOwned(ublk.control, OWNER), []);
    ublk.control.close();
  });

  t.test('nothing is left behind', async t => {
    const entries = readdirSync('/dev').filter(name => /^ublk[bc]/.test(name));
    t.same(entries, []);
  });
}

async function startHalfWay(stage: string): Promise<{ child: ChildProcess; id: number }> {
  const program = fileURLToPath(new URL('../support/ublk-half-way.js', import.meta.url));
  const child = spawn(process.execPath, [program, OWNER, stage], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  for await (const line of createInterface({ input: child.stdout! }))
    return { child, id: Number(line) };
  throw new Error('the helper ended');
}
