/**
 * Goal: an index is shared: several who make it at once do no harm, one who is killed leaves what
 * hurts nobody, and who may not write beside the root reads the one that lies there.
 * Method: the command, several at a time, on an image of ext4; readers meanwhile.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { FoundFile } from '../../src/index.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

const skip = await missing('mkfs.ext4');
const FILES = 3000;
const MAKERS = 4;

t.test('makers at once, and one that is killed', { skip, timeout: 120_000 }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-shared-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const [tree, place] = [join(dir, 'tree'), join(dir, 'images')];
  for (const directory of [tree, place, join(dir, 'state')]) mkdirSync(directory);
  for (let i = 0; i < FILES; i++) writeFileSync(join(tree, `file-${i}`), `${i}`);
  const root = join(place, 'root.img');
  await run('mkfs.ext4', ['-q', '-F', '-N', '8000', '-d', tree, root, '64M']);
  const env = { ...process.env, UBD_STATE_DIR: join(dir, 'state') };
  const make = (): ChildProcess =>
    spawn(process.execPath, [CLI, 'index', '--force', root], { env, stdio: 'ignore' });
  const find = async (): Promise<number> => {
    const { stdout, stderr } = await tryRun(
      process.execPath,
      [CLI, 'find', root, 'file-*', '--json'],
      { env },
    );
    if (stderr !== '') throw new Error(stderr);
    return (JSON.parse(stdout) as FoundFile[]).length;
  };
  chmodSync(root, 0o640);
  t.equal(await find(), FILES, 'it is made when it is first needed');
  t.equal(statSync(`${root}.ubdindex`).mode & 0o777, 0o640, 'for those who may read the root');

  const makers = Array.from({ length: MAKERS }, make);
  const ends = makers.map(async maker => (await once(maker, 'exit'))[0] as number);
  t.equal(await find(), FILES, 'a reader meanwhile sees a whole one');
  t.same(
    await Promise.all(ends),
    makers.map(() => 0),
  );
  t.equal(await find(), FILES);
  t.same(readdirSync(place).sort(), ['root.img', 'root.img.ubdindex']);

  const killed = make();
  const gone = once(killed, 'exit');
  while (!readdirSync(place).some(name => name.endsWith('.new')) && killed.exitCode === null)
    await new Promise(resolve => setTimeout(resolve, 1));
  killed.kill('SIGKILL');
  await gone;
  t.equal(await find(), FILES, 'after one that was killed the old one counts');

  await t.test('read from where nobody may write', { skip: notRoot() }, async t => {
    await run('rm', [
      '-f',
      ...readdirSync(place).flatMap(name => (/new$/.test(name) ? [join(place, name)] : [])),
    ]);
    chmodSync(dir, 0o755);
    chmodSync(place, 0o555);
    chmodSync(root, 0o444);
    chmodSync(`${root}.ubdindex`, 0o444);
    const { stdout, stderr } = await tryRun('setpriv', [
      ...['--reuid=65534', '--regid=65534', '--clear-groups'],
      ...['env', 'UBD_STATE_DIR=/nonexistent', process.execPath, CLI],
      ...['find', root, 'file-2999', '--json'],
    ]);
    t.equal((JSON.parse(stdout || '[]') as FoundFile[]).length, 1, stderr);
  });
});

function notRoot(): string | false {
  return process.getuid?.() === 0 ? false : 'needs root, to be somebody else';
}
