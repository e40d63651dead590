/**
 * Goal: a command that writes files can be ended at any moment: by Ctrl-C, SIGTERM or a kill. What
 * was there is there and reads the same, what it makes is there whole or not at all, nothing is
 * left beside (after a kill: not beyond the next run), and the same command runs again.
 * Method: the real commands over an ext4 with changes, and signals at random moments of each.
 *
 *     UBD_SEED=17 UBD_COMMAND=export UBD_ROUNDS=9 node dist/test/life/interrupt.test.js
 */
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { type Content, type Interrupted, Interrupting, moment } from '../support/interrupting.ts';
import { Random } from '../support/random.ts';
import { missing, QUICK } from '../support/requires.ts';
import { run } from '../support/run.ts';

t.setTimeout(600_000);
const skip = await missing('mkfs.ext4', 'debugfs');
const skipQcow2 = await missing('qemu-img');
const { UBD_SEED, UBD_COMMAND, UBD_ROUNDS } = process.env;
const rounds = Number(UBD_ROUNDS ?? 1);

const COMMANDS: Readonly<Record<string, Interrupted>> = {
  'reconcile one': { args: ['reconcile', 'a.leaf', '--output', 'new.img'] },
  'reconcile several': { args: ['reconcile', 'a.leaf', 'b.leaf', '--output', 'new.img'] },
  'rebase of blocks': { args: ['rebase', 'a.leaf', '--root', 'fresh.img', '--force-block'] },
  'rebase of an empty leaf': { args: ['rebase', 'empty.leaf', '--root', 'fresh.img'] },
  export: { args: ['export', 'a.leaf', 'out.img', '--sha256'] },
  'export over another': { args: ['export', 'a.leaf', 'old.img', '--force'] },
  'export to stdout': { args: ['export', 'a.leaf', '-'], output: 'out.img' },
  'export as qcow2': { args: ['export', 'a.leaf', 'out.qcow2', '--format', 'qcow2'] },
  send: { args: ['send', 'a.leaf', '--output', 'a.stream'] },
  'send to stdout': { args: ['send', 'a.leaf'], output: 'a.stream' },
  receive: { args: ['receive', 'got.leaf', '--input', 'b.stream'] },
  'receive from stdin': { args: ['receive', 'got.leaf'], input: 'b.stream' },
  shrink: { args: ['shrink', 'a.leaf'], inPlace: ['a.leaf'] },
  'check --repair': {
    args: ['check', 'hurt.leaf', '--repair'],
    inPlace: ['hurt.leaf'],
    keeps: /^hurt\.leaf\.before-repair-\d$/,
  },
  'check --root': { args: ['check', 'a.leaf', '--root'] },
  'index of a root': { args: ['index', 'root.img', '--digests'] },
  'index of a leaf': { args: ['index', 'a.leaf'] },
  find: { args: ['find', 'a.leaf', '*7*'] },
  diff: { args: ['diff', 'a.leaf'] },
  'diff of a file': { args: ['diff', 'a.leaf', '--content', '/large'] },
  why: { args: ['why', 'a.leaf'] },
  scan: { args: ['scan', 'a.leaf', '--exec', '! grep -l nowhere'] },
  manifest: { args: ['info', 'root.img', '--manifest'] },
};
const ENDS = ['SIGINT', 'SIGTERM', 'SIGKILL'] as const;

async function makePlace(dir: string): Promise<Interrupting> {
  const place = new Interrupting(dir);
  const at = (name: string): string => join(place.place, name);
  mkdirSync(at('state'), { recursive: true });
  const tree = join(dir, 'tree');
  mkdirSync(tree);
  await run('bash', ['-euc', 'for i in {1..600}; do echo $i > f$i; done'], { cwd: tree });
  await run('bash', ['-euc', 'seq 3000000 | head -c 9000000 > large'], { cwd: tree });
  await run('mkfs.ext4', ['-q', '-O', '^has_journal', '-d', tree, at('root.img'), '32M']);
  const changed = async (name: string, from: string, ...commands: string[]): Promise<void> => {
    copyFileSync(at(from), at(name));
    const file = join(dir, 'commands');
    await run('bash', ['-euc', `printf '%s\\n' "$@" > ${file}`, 'bash', ...commands]);
    await run('debugfs', ['-w', '-f', file, at(name)]);
  };
  await run('bash', ['-euc', 'seq 2000000 | tail -c 5000000 > larger'], { cwd: dir });
  const write = `write ${dir}/larger`;
  await changed('fresh.img', 'root.img', `${write} more`);
  // What `freed` had is in the leaf, and in no file.
  await changed('a.img', 'root.img', 'rm large', `${write} large`, `${write} freed`, 'rm freed');
  await changed('b.img', 'a.img', `write ${tree}/f2 other`, 'rm f7');
  copyFileSync(at('fresh.img'), at('old.img'));
  await makeImageLeaf(at('root.img'), at('a.leaf'), at('a.img'));
  await makeImageLeaf(at('root.img'), at('b.leaf'), at('b.img'));
  await makeImageLeaf(at('root.img'), at('empty.leaf'));
  for (const image of ['a.img', 'b.img']) rmSync(at(image));
  copyFileSync(at('a.leaf'), at('hurt.leaf'));
  const fd = openSync(at('hurt.leaf'), 'r+');
  writeSync(fd, Buffer.alloc(512, 0xa5), 0, 512, 0); // one copy of its superblock
  closeSync(fd);
  const { status, said } = await place.run({ args: ['send', 'b.leaf', '--output', 'b.stream'] });
  if (status !== 0) throw new Error(said);
  await place.keep();
  return place;
}

/** What of a command's result is the same each time, and how long it takes. */
async function wholeRun(place: Interrupting, command: Interrupted) {
  const results: Content[] = [];
  let tookMs = 0;
  for (let i = 0; i < 2; i++) {
    await place.restore();
    const ended = await place.run(command);
    if (ended.status !== 0) throw new Error(`${command.args.join(' ')}: ${ended.said}`);
    ({ tookMs } = ended);
    const { content, temporary } = await place.look();
    if (temporary.length > 0) throw new Error(`it leaves ${temporary.join(', ')}`);
    results.push(content);
  }
  const [first, second] = results as [Content, Content];
  const same = [...second].filter(([name, digest]) => first.get(name) === digest);
  return { after: second, same: new Map(same), tookMs };
}

async function endIt(
  t: Test,
  place: Interrupting,
  command: Interrupted,
  whole: Awaited<ReturnType<typeof wholeRun>>,
  end: [(typeof ENDS)[number], number],
): Promise<void> {
  const { after, same } = whole;
  await place.restore();
  const { content: before } = await place.look();
  const ended = await place.run(command, end);
  const when = `${end[0]} after ${Math.round(end[1])} ms`;
  const isDone = ended.status === 0;
  const mayEnd = isDone || ended.signal === end[0] || /interrupted/.test(ended.said);
  t.ok(mayEnd, `${when}: ${JSON.stringify(ended)}`);
  const found = await place.look();
  if (end[0] !== 'SIGKILL') t.same(found.temporary, [], `${when}: nothing is left`);
  const partial = new Set([command.output, ...(command.inPlace ?? [])]);
  for (const [name, digest] of found.content) {
    if (partial.has(name)) continue;
    const isOld = before.get(name) === digest;
    const isNew = after.has(name) && (!same.has(name) || same.get(name) === digest);
    t.ok(isOld || isNew, `${when}: ${name} is as before, or as it is to be`);
  }
  for (const name of before.keys())
    t.ok(found.content.has(name) || !after.has(name), `${when}: ${name} is there`);

  place.age(found.temporary);
  const again = await place.run(command);
  const hadEnded = [...after.keys()].every(name => found.content.has(name));
  t.ok(again.status === 0 || hadEnded, `${when}: it runs again: ${again.said}`);
  const last = await place.look();
  // What is left of an index stays until it is some minutes old, which cannot be pretended.
  const left = last.temporary.filter(path => !/\.ubdindex\.[0-9a-f]+\.new(-journal)?$/.test(path));
  t.same(left, [], `${when}: and leaves nothing`);
  // What it keeps of a file as it was is there already, if it was ended late; and once more.
  const isKept = (name: string): boolean => command.keeps?.test(name) === true;
  const isMore = (name: string): boolean => isKept(name) && !after.has(name);
  const mayBeMore = [...found.content.keys()].some(isKept);
  const names = [...last.content.keys()].filter(name => !mayBeMore || !isMore(name));
  t.same(names, [...after.keys()], `${when}: all is there`);
  for (const [name, digest] of same) t.equal(last.content.get(name), digest, `${when}: ${name}`);
}

t.test('commands that are ended in the middle', { skip }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-interrupt-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const place = await makePlace(dir);
  const random = new Random(Number(UBD_SEED ?? 1));
  for (const [name, command] of Object.entries(COMMANDS)) {
    if (UBD_COMMAND !== undefined && UBD_COMMAND !== name) continue;
    await t.test(name, { skip: name === 'export as qcow2' && skipQcow2 }, async t => {
      const whole = await wholeRun(place, command);
      for (let round = 0; round < rounds; round++)
        for (const signal of QUICK ? [random.pick(ENDS)] : ENDS)
          await endIt(t, place, command, whole, [signal, moment(random, whole.tookMs)]);
    });
  }
});
