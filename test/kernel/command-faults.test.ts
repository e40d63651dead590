/**
 * Goal: every command on a leaf that meets a full disk, a missing parent, or another command at the
 * same leaf says so and what to do, changes nothing, leaves nothing, and does it when it is run
 * again without the fault. Method: a table of commands by faults, by the real command line, on a
 * tmpfs.
 */
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import t, { type Test } from 'tap';
import { exportLeaf } from '../../src/life/export.ts';
import { sendLeaf } from '../../src/life/send.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import type { RunResult } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const skip = await missing('mount');
t.setTimeout(200_000);
const MIB = 2 ** 20;
const LEAVES = ['image.leaf', 'a.leaf'] as const;

interface Fault {
  /** Brings it about, and returns what ends it. */
  make: (place: string) => () => void;
  /** What is said: the fault with its place; what to do. */
  says: RegExp;
}

const FAULTS: Record<string, Fault> = {
  'the disk is full': {
    make: place => {
      const filler = `${place}/filler`;
      writeFileSync(filler, '');
      for (let bytes = MIB; bytes >= 4096; bytes /= 2)
        try {
          for (;;) writeFileSync(filler, Buffer.alloc(bytes), { flag: 'a' });
        } catch {
          // So large a piece does not fit any more.
        }
      return () => rmSync(filler);
    },
    says: /ENOSPC.*\n.*make room|needs .* (has|free)/s,
  },
  'the parent is missing': {
    make: place => {
      renameSync(`${place}/image.leaf`, `${place}/moved`);
      return () => renameSync(`${place}/moved`, `${place}/image.leaf`);
    },
    says: /image\.leaf.*(--rebase-path|bring it here)/s,
  },
  'another command has the leaf': {
    make: place => {
      const file = diskWorld.open(`${place}/a.leaf`);
      return () => file.close();
    },
    says: /a\.leaf is in use by process \d+\n/,
  },
};

interface Command {
  args: readonly string[];
  /** Faults that do not concern it: it is done. */
  despite?: readonly string[];
  input?: string;
}

const FULL = 'the disk is full';
const MISSING = 'the parent is missing';
const COMMANDS: Record<string, Command> = {
  fork: { args: ['fork', 'P/a.leaf', '--leaf', 'P/f.leaf'], despite: [MISSING] },
  reconcile: { args: ['reconcile', 'P/a.leaf', '--output', 'P/new.img'] },
  rebase: { args: ['rebase', 'P/a.leaf', '--root', 'D/fresh.img', '--force-block'] },
  export: { args: ['export', 'P/a.leaf', 'P/out.img'] },
  send: { args: ['send', 'P/a.leaf', '--output', 'P/out.stream'] },
  receive: {
    args: ['receive', 'P/in.leaf', '--base', 'P/image.leaf'],
    input: 'in.stream',
    despite: ['another command has the leaf'],
  },
  diff: { args: ['diff', 'P/a.leaf', '--blocks'], despite: [FULL] },
  'set --size': { args: ['set', 'P/a.leaf', '--size', '32M'], despite: [MISSING] },
  'set --quota': { args: ['set', 'P/a.leaf', '--quota', '1G'], despite: [FULL, MISSING] },
  'check --repair': { args: ['check', 'P/a.leaf', '--repair'], despite: [FULL] },
};

t.test('commands by faults', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const dir = sandbox.path('templates');
  mkdirSync(dir);
  const bytes = noise(new Random(1), 4 * MIB);
  writeFileSync(`${dir}/root.img`, bytes);
  writeFileSync(`${dir}/fresh.img`, Buffer.concat([bytes.subarray(0, 3 * MIB), bytes]));
  truncateSync(`${dir}/fresh.img`, 6 * MIB);
  const image = await ModelLeaf.make(diskWorld, `${dir}/image.leaf`, `${dir}/root.img`);
  image.write(0, noise(new Random(2), MIB));
  const leaf = image
    .fork(`${dir}/a.leaf`)
    .write(1000, noise(new Random(3), 2 * MIB))
    .end();
  await sendLeaf({ leaf: leaf.path, since: image.path, target: `${dir}/in.stream` });
  const place = await sandbox.mountTmpfs('place', '24M');

  const ubd = (command: Command): Promise<RunResult> => {
    const args = command.args.map(arg => arg.replace(/^P/, place).replace(/^D/, dir));
    const { input } = command;
    return sandbox.ubd(args, {
      allowFailure: true,
      ...(input !== undefined && { input: readFileSync(`${dir}/${input}`) }),
    });
  };
  const isWhole = async (t: Test, when: string): Promise<void> => {
    const target = sandbox.path('found');
    await exportLeaf({ leaf: `${place}/a.leaf`, target });
    t.ok(readFileSync(target).subarray(0, leaf.model.length).equals(leaf.model), when);
    rmSync(target);
  };
  for (const [name, command] of Object.entries(COMMANDS))
    for (const [what, { make, says }] of Object.entries(FAULTS))
      await t.test(`${name}: ${what}`, async t => {
        for (const file of readdirSync(place)) rmSync(`${place}/${file}`);
        for (const file of LEAVES) copyFileSync(`${dir}/${file}`, `${place}/${file}`);
        const end = make(place);
        const first = await ubd(command);
        const left = readdirSync(place).filter(file => !/^(filler|moved)$/.test(file));
        end();
        const said = `status ${first.status}: ${first.stdout}${first.stderr}`;
        if (command.despite?.includes(what)) t.equal(first.status, 0, said);
        else {
          t.equal(first.status, 1, said);
          t.match(first.stdout + first.stderr, says, said);
          t.same(left.sort(), LEAVES.filter(file => left.includes(file)).sort(), 'nothing is left');
          await isWhole(t, 'it is as it was');
          const again = await ubd(command);
          t.equal(again.status, 0, `run again: ${again.stderr}`);
        }
        if (name !== 'rebase') await isWhole(t, 'and it is what it should be');
      });
});
