/**
 * A device that lives while nobody serves it: its dead daemon, and those who wait for it, can be
 * killed; and where its leaf is lost, it is given up. On each transport whose devices outlive the
 * daemon.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Test } from 'tap';
import { PATIENCE, run, sleep, until } from './run.ts';
import type { Attached, Sandbox } from './sandbox.ts';

export interface Unserved {
  start: (t: Test) => Promise<Sandbox>;
  attach: (sandbox: Sandbox, name: string) => Promise<Attached>;
  /** Whether the kernel has taken the device away. */
  isGone: (node: string) => boolean;
}

/** Whether SIGKILL ends it, soon. */
export async function endsBySigkill(child: ChildProcess): Promise<boolean> {
  if (child.exitCode !== null || child.signalCode !== null) return true;
  const ended = new Promise<true>(resolve => child.once('exit', () => resolve(true)));
  child.kill('SIGKILL');
  return Promise.race([ended, sleep(10_000 * PATIENCE).then((): false => false)]);
}

export interface HalfWay {
  /** Takes an owner and a stage; says a word when it has come there, and goes no further. */
  program: string;
  stages: readonly string[];
  /** What the next daemon does; then nothing of this owner's must be there. */
  clear: (t: Test, owner: string) => Promise<void>;
}

export function testKilledHalfWay(t: Test, { program, stages, clear }: HalfWay): void {
  for (const stage of stages)
    t.test(`a daemon killed with a device that is ${stage} leaves nothing for long`, async t => {
      const owner = `half-way-${stage}`;
      const child = spawn(process.execPath, [program, owner, stage], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      for await (const _ of createInterface({ input: child.stdout })) break;
      t.ok(await endsBySigkill(child), 'it can be killed');
      await clear(t, owner);
    });
}

export function testUnserved(t: Test, { start, attach, isGone }: Unserved): void {
  /** A device with a file system that is mounted; its daemon is dead. */
  async function deserted(t: Test): Promise<{ sandbox: Sandbox; node: string; place: string }> {
    const sandbox = await start(t);
    const { device, node } = await attach(sandbox, 'web');
    await run('mkfs.ext4', ['-q', '-F', device]);
    const place = sandbox.path('mnt');
    mkdirSync(place);
    await run('mount', [device, place]);
    await sandbox.kill(); // throws if it does not end
    return { sandbox, node, place };
  }

  t.test('a daemon can be killed while its device is mounted and nobody serves it', async t => {
    const { sandbox, place } = await deserted(t);
    // Whoever waits for the device can be killed, too, once the device is given up.
    const waiting = spawn('dd', ['if=/dev/zero', `of=${place}/x`, 'bs=1M', 'count=40'], {
      stdio: 'ignore',
    });
    const syncing = spawn('sync', ['-f', place], { stdio: 'ignore' });
    await sleep(500);
    await sandbox.startDaemon();
    await until('it is back', async () => (await sandbox.client.list())[0]?.state === 'attached');
    for (const child of [waiting, syncing]) t.ok(await endsBySigkill(child));
    await run('umount', [place]);
    await sandbox.detach('web');
  });

  t.test('a device that does not come back is given up by a forced detach', async t => {
    const { sandbox, node, place } = await deserted(t);
    rmSync(sandbox.path('state/leaves/web.leaf')); // its leaf is lost
    await sandbox.startDaemon();
    await until('it says so', async () => (await sandbox.client.list())[0]?.state === 'failed');
    const syncing = spawn('sh', ['-c', `echo x > '${place}/x'; sync -f '${place}'`], {
      stdio: 'ignore',
    });
    await sleep(300);
    t.ok(existsSync(node) && !isGone(node), 'who uses it waits');
    await sandbox.client.detach('web', { force: true });
    await until('they get errors', () => syncing.exitCode !== null);
    await run('umount', [place]);
    await until('the device is gone', () => isGone(node));
    t.same(await sandbox.client.list(), []);
  });
}
