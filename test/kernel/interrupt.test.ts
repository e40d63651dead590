/**
 * Goal: a command that asks the daemon for files may be ended at any moment: what it asked for is
 * done wholly or not at all, nothing is left beside, the device goes on, and the same command runs
 * again or says that it is done. Method: the real commands on a device in use, and signals at
 * random moments of each.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, sleep, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES);
t.setTimeout(600_000);
const ENDS = ['SIGINT', 'SIGTERM', 'SIGKILL'] as const;
const ROOT_BYTES = 8 * 2 ** 20;
const DONE = /exists|already|is taken|in use by device|there is a root named|is not being recorded/;

interface Asked {
  args: (number: number) => string[];
  /** Files that are there if it was done: all of them, or none. */
  makes: (number: number) => string[];
  /** Before it, so that it can be done. */
  first?: (number: number) => string[];
  /** After it, so that it can be done again. */
  last?: (number: number) => string[];
}

const ASKED: Readonly<Record<string, Asked>> = {
  attach: {
    args: n => ['attach', 'root.img', '--leaf', `new-${n}`, '--name', `n${n}`],
    makes: n => [`new-${n}`],
    last: n => ['detach', `n${n}`],
  },
  snapshot: { args: n => ['snapshot', 'web', `snap-${n}`], makes: n => [`snap-${n}`] },
  'fork of a device': {
    args: n => ['fork', 'web', '--leaf', `w-${n}`, '-n', '3', '--image', `i-${n}`],
    makes: n => [`i-${n}`, `w-${n}-1`, `w-${n}-2`, `w-${n}-3`],
  },
  'a boot pack': {
    args: n => ['cache', 'record', 'web', '--stop', '--output', `pack-${n}`],
    first: () => ['cache', 'record', 'web'],
    makes: n => [`pack-${n}`],
  },
  'a new root of a device': {
    args: n => ['reconcile', 'web', '--output', `root-${n}`],
    makes: n => [`root-${n}`],
  },
  'a name of a root': {
    args: n => ['root', 'add', `name-${n}`, 'root.img'],
    makes: n => [`state/root-names/name-${n}.json`],
  },
  'a refreshed root': {
    args: n => ['root', 'refresh', `again-${n}`, 'fresh.img'],
    first: n => ['root', 'add', `again-${n}`, 'root.img'],
    makes: () => [],
  },
};

t.test('commands that are ended while the daemon does their work', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const { dir, env } = sandbox;
  const random = new Random(Number(process.env.UBD_SEED ?? 1));
  writeFileSync(sandbox.path('root.img'), noise(random, ROOT_BYTES));
  writeFileSync(sandbox.path('fresh.img'), noise(random, ROOT_BYTES));
  const { device } = await sandbox.attach({
    root: sandbox.path('root.img'),
    leaf: sandbox.path('web.leaf'),
    name: 'web',
  });
  const written = noise(random, 2 ** 20);
  await run('dd', [`of=${device}`, 'bs=1M', 'seek=3', 'oflag=direct', 'conv=notrunc'], {
    input: Buffer.from(written),
  });
  const sum = (): string => createHash('sha256').update(readFileSync(device)).digest('hex');
  const expected = sum();
  const files = (): string[] => readdirSync(dir, { recursive: true, encoding: 'utf8' });
  const unfinished = (): string[] =>
    files().filter(name => /\.ubd-|\.new$/.test(name) && !name.includes('.web.leaf'));
  let number = 0;

  for (const [name, { args, makes, first, last }] of Object.entries(ASKED))
    await t.test(name, async t => {
      const prepare = async (): Promise<void> => {
        if (first) await sandbox.ubd(first(number), { allowFailure: true });
        await run('dd', [`if=${device}`, 'of=/dev/null', 'bs=1M', 'iflag=direct']);
      };
      await prepare();
      const whole = performance.now();
      await sandbox.ubd(args(number));
      const tookMs = performance.now() - whole;
      if (last) await sandbox.ubd(last(number));
      for (const end of QUICK ? [random.pick(ENDS)] : ENDS) {
        number++;
        await prepare();
        const waitMs = random.below(Math.ceil(tookMs));
        const child = spawn(process.execPath, [CLI, ...args(number)], {
          env,
          cwd: dir,
          stdio: 'ignore',
        });
        const ended = once(child, 'exit');
        await sleep(waitMs);
        child.kill(end);
        const [status, signal] = await ended;
        const when = `${end} after ${waitMs} ms`;
        t.ok(status === 0 || signal === end, `${when}: ${status}, ${signal}`);
        await until(`${when}: nothing is left unfinished`, () => unfinished().length === 0);
        let said = '';
        await until(`${when}: it runs again, or is done`, async () => {
          const again = await sandbox.ubd(args(number), { allowFailure: true });
          said = again.stderr;
          return again.status === 0 || DONE.test(said);
        }).catch(() => t.fail(`${when}: ${said}`));
        const all = files();
        for (const file of makes(number)) t.ok(all.includes(file), `${when}: ${file}; ${said}`);
        t.equal(sum(), expected, `${when}: the device reads what it read`);
        if (last)
          await until(`${when}: it can be taken back`, async () => {
            return (await sandbox.ubd(last(number), { allowFailure: true })).status === 0;
          });
      }
      number++;
    });
});
