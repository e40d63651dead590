/**
 * Goal: where a rebase would have to merge files in what it cannot merge, it says what is there and
 * what to do instead, and changes nothing. Method: images that begin as these contents do, and a
 * leaf that has a block of its own; the command itself.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

const KINDS: readonly [what: string, at: number, magic: string][] = [
  ['xfs', 0, 'XFSB'],
  ['btrfs', 65_600, '_BHRfS_M'],
  ['a GPT partition table', 512, 'EFI PART'],
];

for (const [what, at, magic] of KINDS)
  t.test(`${what}: the refusal names the next step`, async t => {
    const dir = mkdtempSync(join(tmpdir(), 'ubd-rebase-'));
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    for (const name of ['state', 'run']) mkdirSync(join(dir, name));
    const image = (name: string, marked: number): string => {
      const bytes = Buffer.alloc(1 << 20);
      bytes.write(magic, at, 'latin1');
      bytes.write('changed', marked);
      writeFileSync(join(dir, name), bytes);
      return join(dir, name);
    };
    const leaf = join(dir, 'a.leaf');
    await makeImageLeaf(image('old', 900_000), leaf, image('changed', 500_000));
    const before = readFileSync(leaf);
    image('new', 700_000);
    const env = {
      ...process.env,
      UBD_STATE_DIR: join(dir, 'state'),
      UBD_RUNTIME_DIR: join(dir, 'run'),
    };
    const { status, stdout, stderr } = await tryRun(
      process.execPath,
      [CLI, 'rebase', './a.leaf', '--root', 'new'],
      { env, cwd: dir },
    );
    const said = stdout + stderr;
    t.equal(status, 1);
    t.match(said, `it holds ${what}, whose blocks belong together`);
    t.match(said, 'files are merged in ext2, ext3 and ext4 on the whole device');
    t.match(said, 'next: `ubd diff LEAF` lists what it changed; attach a fresh leaf');
    t.ok(readFileSync(leaf).equals(before), 'the leaf is as it was');
  });
