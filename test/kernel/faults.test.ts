/**
 * Goal: when a leaf's disk is full, a root gets shorter, or a leaf is gone or damaged, the one
 * concerned gets a clear error, nothing that was written is lost, and the other devices do not
 * notice. Method: a tmpfs that is too small, truncate and overwriting, below live devices, each
 * beside a neighbour that is written and read all the time.
 */
import { open, rm, truncate } from 'node:fs/promises';
import t, { type Test } from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { fillNoise, MIB, makeRoot, readDirect } from '../support/disk.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

t.setTimeout(900_000); // for what hangs

const skip = await missing(...DEVICES, 'dd');

/** Writes noise past the page cache; what dd said, if it failed. */
async function write(
  disk: Attached,
  offset: number,
  length: number,
  seed: number,
): Promise<string | undefined> {
  const data = Buffer.alloc(length);
  fillNoise(data, seed);
  const result = await tryRun(
    'dd',
    [
      ...[`of=${disk.node}`, 'bs=64k', 'iflag=fullblock', 'oflag=direct,seek_bytes'],
      ...[`seek=${offset}`, 'conv=notrunc,fsync', 'status=none'],
    ],
    { input: data },
  );
  return result.status === 0 ? undefined : result.stderr.trim();
}

async function holds(
  disk: Attached,
  offset: number,
  length: number,
  seed: number,
): Promise<boolean> {
  const data = Buffer.alloc(length);
  fillNoise(data, seed);
  return (await readDirect(disk.node, offset, length)).equals(data);
}

/**
 * A device on the same root that must not notice: writes and reads back, with a new seed each time.
 */
class Neighbour {
  readonly #disk: Attached;
  #seed = 500;

  constructor(disk: Attached) {
    this.#disk = disk;
  }

  async unharmed(t: Test): Promise<void> {
    const seed = this.#seed++;
    t.equal(await write(this.#disk, 8 * MIB, MIB, seed), undefined, 'the neighbour writes');
    t.ok(await holds(this.#disk, 8 * MIB, MIB, seed), 'and reads what it wrote');
  }
}

async function sandboxOf(t: Test): Promise<Sandbox> {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  return sandbox;
}

t.test('the leaf’s disk is full: ENOSPC, nothing lost, goes on with space', { skip }, async t => {
  const sandbox = await sandboxOf(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 256 * MIB, 16 * MIB);
  const small = await sandbox.mountTmpfs('small', '24m');
  const full = await sandbox.attach({ root, leaf: `${small}/full.leaf`, name: 'full' });
  const neighbour = new Neighbour(
    await sandbox.attach({ root, leaf: sandbox.path('other.leaf'), name: 'other' }),
  );

  t.equal(await write(full, 0, 4 * MIB, 1), undefined, 'there is room at first');
  const said = await write(full, 64 * MIB, 64 * MIB, 2);
  t.match(said, /No space left on device/, 'the writer is told what it is');
  await until('the log says so', () => /ENOSPC|no space/i.test(sandbox.log()));
  t.match(sandbox.log(), /full/, 'and names the device');
  t.ok(await holds(full, 0, 4 * MIB, 1), 'what was written before is there');
  await neighbour.unharmed(t);

  await run('mount', ['-o', 'remount,size=160m', small]);
  t.equal(await write(full, 64 * MIB, 64 * MIB, 3), undefined, 'with space it goes on');
  await sandbox.detach('full');
  const again = await sandbox.attach({ leaf: `${small}/full.leaf`, name: 'full' });
  t.ok(await holds(again, 0, 4 * MIB, 1), 'after attach: the first writes');
  t.ok(await holds(again, 64 * MIB, 64 * MIB, 3), 'and the last');
  t.same(
    await readDirect(again.node, 16 * MIB, MIB),
    Buffer.alloc(MIB),
    'what was never written is the root’s',
  );
  await neighbour.unharmed(t);
  await sandbox.detach('full');
});

t.test('a leaf that finds no space at all is refused, and leaves nothing', { skip }, async t => {
  const sandbox = await sandboxOf(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 64 * MIB, MIB);
  const place = await sandbox.mountTmpfs('none', '64k');
  await run('dd', ['if=/dev/zero', `of=${place}/ballast`, 'bs=4k', 'count=16']).catch(() => '');
  await t.rejects(sandbox.attach({ root, leaf: `${place}/new.leaf` }), { code: 'no-space' });
  t.notMatch(await run('ls', [place]), /new\.leaf/, 'no half-made leaf is left');
  t.same(await sandbox.client.list(), []);
});

t.test('a root that gets shorter: EIO for what is gone, a log line, no more', { skip }, async t => {
  const sandbox = await sandboxOf(t);
  const root = sandbox.path('root.img');
  const other = sandbox.path('other.img');
  await makeRoot(root, 64 * MIB, 64 * MIB, 7);
  await makeRoot(other, 64 * MIB, 16 * MIB, 9);
  const leaf = sandbox.path('cut.leaf');
  const cut = await sandbox.attach({ root, leaf, name: 'cut' });
  const neighbour = new Neighbour(
    await sandbox.attach({ root: other, leaf: sandbox.path('other.leaf'), name: 'other' }),
  );
  t.equal(await write(cut, 40 * MIB, MIB, 11), undefined);

  await truncate(root, 32 * MIB);
  const gone = await tryRun('dd', [
    ...[`if=${cut.node}`, 'of=/dev/null', 'iflag=direct', 'bs=1M', 'skip=48', 'count=1'],
  ]);
  t.match(gone.stderr, /Input\/output error/, 'the reader is told');
  await until('the log names the root', () => sandbox.log().includes(root));
  t.match(sandbox.log(), /cut/, 'and the device');
  t.equal((await readDirect(cut.node, 16 * MIB, MIB)).length, MIB, 'what is there is served');
  t.ok(await holds(cut, 40 * MIB, MIB, 11), 'so is the leaf');
  t.equal(await write(cut, 50 * MIB, MIB, 12), undefined, 'and it takes writes');
  t.ok(await holds(cut, 50 * MIB, MIB, 12), 'over what is gone, too');
  await neighbour.unharmed(t);

  await sandbox.detach('cut');
  await t.rejects(sandbox.attach({ leaf }), { code: 'root-mismatch' }, 'then it is another root');
  await neighbour.unharmed(t);
});

t.test('leaves that are gone, damaged or no leaves are refused, naming them', { skip }, async t => {
  const sandbox = await sandboxOf(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 32 * MIB, MIB);
  const leaf = sandbox.path('used.leaf');
  const disk = await sandbox.attach({ root, leaf, name: 'used' });
  t.equal(await write(disk, 0, MIB, 21), undefined);
  const same = await refusal(sandbox, { root, leaf });
  t.equal(same.code, 'busy', 'the same leaf twice');
  t.match(same.message, leaf);
  await sandbox.detach('used');
  const copy = sandbox.path('copy.leaf');
  const damage = async (offset: number, bytes: Buffer): Promise<void> => {
    await run('cp', ['--sparse=always', leaf, copy]);
    const file = await open(copy, 'r+');
    await file.write(bytes, 0, bytes.length, offset);
    await file.close();
  };

  const gone = await refusal(sandbox, { leaf: sandbox.path('gone.leaf') });
  t.equal(gone.code, 'usage', 'a leaf that is not there cannot name its root');
  t.match(JSON.stringify(gone.toJSON()), 'gone.leaf');

  const file = await open(sandbox.path('noise.leaf'), 'w');
  await file.write(Buffer.alloc(MIB, 'noise'));
  await file.close();
  const noise = await refusal(sandbox, { leaf: sandbox.path('noise.leaf') });
  t.equal(noise.code, 'not-a-leaf');
  t.match(noise.message, 'noise.leaf');

  await damage(0, Buffer.alloc(4096, 0xa5));
  const first = await sandbox.attach({ leaf: copy, name: 'first' });
  t.ok(await holds(first, 0, MIB, 21), 'one damaged superblock: the other one serves');
  await sandbox.detach('first');

  await damage(0, Buffer.alloc(8192, 0xa5));
  const both = await refusal(sandbox, { leaf: copy });
  t.match(both.code, /^(corrupt|not-a-leaf)$/, 'both damaged');
  t.match(both.message, copy);

  await rm(root);
  const rootless = await refusal(sandbox, { leaf });
  t.equal(rootless.code, 'not-found', 'its root is gone');
  t.match(rootless.message, root);
  await makeRoot(root, 32 * MIB, MIB, 99);
  const replaced = await refusal(sandbox, { leaf });
  t.equal(replaced.code, 'root-mismatch', 'its root was replaced');
  t.match(replaced.message, root);
  t.same(await sandbox.client.list(), [], 'nothing is attached by a refused call');
});

t.test('roots that cannot be roots are refused, naming them', { skip }, async t => {
  const sandbox = await sandboxOf(t);
  for (const [name, size] of [
    ['empty', 0],
    ['odd', MIB + 77],
  ] as const) {
    const root = sandbox.path(`${name}.img`);
    await makeRoot(root, size, size);
    const refused = await refusal(sandbox, { root, leaf: sandbox.path(`${name}.leaf`) });
    t.equal(refused.code, 'bad-root', `${name}: ${refused.message}`);
    t.match(refused.message, root);
    t.notMatch(await run('ls', [sandbox.dir]), `${name}.leaf`, 'no leaf is left');
  }
});

async function refusal(
  sandbox: Sandbox,
  spec: Parameters<Sandbox['attach']>[0],
): Promise<UbdError> {
  try {
    await sandbox.attach(spec);
  } catch (error) {
    if (error instanceof UbdError) return error;
    throw error;
  }
  throw new Error(`attached: ${JSON.stringify(spec)}`);
}
