/**
 * Goal: a daemon can be killed at any moment, also while it attaches, detaches and starts, and the
 * next one is in order. Method: attaches and detaches of many devices at once, SIGKILL at a random
 * moment. The danger is a process that cannot end: it serves its own devices, and a thread of it
 * that waits for one of them in the kernel would wait for ever.
 */
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { basename } from 'node:path';
import t from 'tap';
import type { Client } from '../../src/client/client.ts';
import { MIB, makeRoot, sha256 } from '../support/disk.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { sleep, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const ROUNDS = QUICK ? 8 : 40;
const DEVICES_MAX = 12;

t.setTimeout(600_000); // for what hangs

t.test(
  'SIGKILL in the midst of attaches and detaches',
  { skip: await missing(...DEVICES) },
  async t => {
    const seed = Number(process.env.UBD_SEED ?? Date.now() % 1e9);
    t.comment(`UBD_SEED=${seed}`);
    const random = new Random(seed);
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    const root = sandbox.path('root.img');
    await makeRoot(root, 4 * MIB, 2 * MIB);
    const before = await sha256(root);
    const others = deadLinks();

    for (let round = 0; round < ROUNDS; round++) {
      const work = churn(sandbox.client, root, round);
      await sleep(random.below(500));
      await sandbox.kill(); // returns when the process has ended: one that cannot fails here
      await work;
      await sandbox.startDaemon();
      await until('every device is back, or says why not', async () =>
        (await sandbox.client.list()).every(
          ({ state }) => state === 'attached' || state === 'failed',
        ),
      );
      for (const device of await sandbox.client.list())
        t.equal(device.state, 'attached', `round ${round}: ${device.name} is back`);
      if (round % 4 === 3) await sandbox.client.detachAll();
    }
    await sandbox.client.detachAll();
    t.same(await sandbox.client.list(), []);
    // Other tests kill daemons, too, but theirs come back.
    await until('no link is left that leads nowhere', async () =>
      deadLinks().every(link => others.includes(link)),
    );
    t.equal(await sha256(root), before, 'the root is as it was');
  },
);

/** Names in /dev that a daemon made, of a device that is not there, or of nothing. */
function deadLinks(): string[] {
  const bound = (link: string): boolean =>
    existsSync(`/sys/block/${basename(readlinkSync(`/dev/${link}`))}/loop/backing_file`);
  return readdirSync('/dev').filter(name => {
    try {
      return /^(ubd\d|\.ubd)/.test(name) && !bound(name);
    } catch {
      return false; // it went meanwhile
    }
  });
}

/** Attaches and detaches until the daemon is gone. */
async function churn(client: Client, root: string, round: number): Promise<void> {
  await Promise.all(
    Array.from({ length: DEVICES_MAX }, async (_, i) => {
      const name = `r${round}-${i}`;
      try {
        for (;;) {
          await client.attach({ root, name, ephemeral: i % 2 === 0 });
          if (i % 3 === 0) return; // stays, and is to come back
          await client.detach(name);
        }
      } catch {
        // the daemon was killed
      }
    }),
  );
}
