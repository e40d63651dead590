/**
 * Goal: a root that is one device's alone is known as such until somebody else opens it. Method: a
 * file.
 */
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { openRoot } from '../../src/image/raw-image.ts';
import { isSole, markSole, removeSole, takeMark, takeMarkAt } from '../../src/image/sole.ts';
import { deviceWorld, diskWorld } from '../../src/life/world.ts';
import { native } from '../../src/native/binding.ts';

const dir = mkdtempSync(`${tmpdir()}/ubd-sole-`);
t.teardown(() => rmSync(dir, { recursive: true }));
const root = `${dir}/root.img`;
writeFileSync(root, Buffer.alloc(2 ** 20, 7), { mode: 0o640 });

t.test('it stays its device’s while that alone opens it', async t => {
  t.notOk(isSole(root), 'no root is, unless it was made so');
  markSole(root);
  t.ok(isSole(root));
  (await deviceWorld.openRoot(root)).file.close();
  t.ok(isSole(root));
});

t.test('whoever else opens it, or needs it, takes the mark away', async t => {
  const ways: Record<string, () => Promise<void>> = {
    'the daemon': async () => closeSync((await openRoot(root)).fd),
    'offline work': async () => (await diskWorld.openRoot(root)).file.close(),
    'a stream': async () => takeMarkAt(root),
  };
  for (const [who, open] of Object.entries(ways)) {
    markSole(root);
    await open();
    t.notOk(isSole(root), who);
    t.equal(statSync(root).mode & 0o7777, 0o640, 'and nothing else of its mode');
  }
});

t.test('what is not there, or no file, has no mark', t => {
  t.notOk(isSole(`${dir}/none`));
  t.notOk(isSole('/tmp'), 'a directory with that very bit');
  markSole(`${dir}/none`);
  takeMarkAt('nbd://host/export');
  t.end();
});

t.test('another program that has it locked is not waited for without end', async t => {
  markSole(root);
  const theirs = openSync(root, 'r');
  native.flock(theirs, 2); // LOCK_EX
  await t.rejects(openRoot(root), { code: 'busy', message: /locked/, next: /lslocks/ });
  t.ok(isSole(root), 'it is as it was');
  closeSync(theirs);
  closeSync((await openRoot(root)).fd);
  t.notOk(isSole(root));
});

t.test('it is removed while it has the mark, and nobody has it by then', async t => {
  const made = `${dir}/made.img`;
  const make = (): number => {
    writeFileSync(made, Buffer.alloc(2 ** 20, 7));
    markSole(made);
    return openSync(made, 'r');
  };
  const shared = 1;
  const first = make();
  native.flock(first, shared);
  t.notOk(removeSole(made), 'somebody is taking the mark away');
  closeSync(first);
  const second = openSync(made, 'r');
  t.ok(removeSole(made));
  t.notOk(existsSync(made));
  t.throws(() => takeMark(second, made), { code: 'not-found', message: /made\.img: was removed/ });
  closeSync(second);
  closeSync(make());
  closeSync((await openRoot(made)).fd);
  t.notOk(removeSole(made), 'it was opened, and has no mark');
  t.ok(existsSync(made));
});
