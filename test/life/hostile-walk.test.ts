/**
 * Goal: whatever an image holds that only the kernel can read, `ubd index` ends in a bounded time,
 * with an index or with an error that names the image; nothing is left mounted, attached or lying
 * about; and what files are called moves no cursor. Method: small images of what this kernel
 * mounts, with random bytes of their metadata changed and its checksums made right again, given to
 * the command itself.
 *
 * UBD_FUZZ_SEED repeats a run (the seed is printed), UBD_FUZZ_SECONDS makes each kind last.
 */
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { crc32c } from '../support/crc32c.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';

const SECONDS = Number(process.env.UBD_FUZZ_SECONDS ?? 0);
const SEED = Number(process.env.UBD_FUZZ_SEED ?? (SECONDS > 0 ? Date.now() % 1_000_000 : 1));
/** Of each kind, where no time is given. */
const RUNS = QUICK ? 1 : 3;
/** A run takes one second or two; a machine may be busy. */
const RUN_MS_MAX = 90_000;
t.setTimeout((8 * SECONDS + 600) * 1000);
t.comment(`UBD_FUZZ_SEED=${SEED}`);

const skip = await missing(...DEVICES, 'mount');
const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const EVIL = 'evil \x1b[31m\nM 0 forged \u202e';
/** A directory in memory, where there is one: the images are read again and again. */
const TOP = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** A piece of metadata that can be damaged, and given the checksum of what it holds then. */
interface Target {
  at: number;
  bytes: number;
  /** Where in it its CRC-32C is, and from where on it counts; null: it has none. */
  sum: { at: number; from: number } | null;
}

interface Kind {
  name: string;
  needs: string;
  bytes: number;
  make(image: string, tree: string): Promise<unknown>;
  /** Is there metadata in the 512 bytes at this place? */
  target(sector: Buffer, at: number): Target | null;
}

/** Made empty, and filled through a mount. */
async function filled(image: string, tree: string, mkfs: readonly string[]): Promise<void> {
  await run(mkfs[0]!, [...mkfs.slice(1), image]);
  const mnt = join(tree, '../mnt');
  await run('mount', ['-o', 'loop', image, mnt]);
  try {
    await run('cp', ['-a', `${tree}/.`, mnt]);
  } finally {
    await run('umount', [mnt]);
  }
}

/** xfs_format.h, xfs_da_format.h: what begins so is so long, and has its CRC there. */
const XFS: ReadonlyMap<string, readonly [bytes: number, sumAt: number]> = new Map([
  ['IN', [512, 100]],
  ['XFSB', [512, 224]],
  ['XDB3', [4096, 4]],
  ['XDD3', [4096, 4]],
  ['XSLM', [4096, 12]],
  ['XAGI', [512, 312]],
]);

const KINDS: readonly Kind[] = [
  {
    name: 'xfs',
    needs: 'mkfs.xfs',
    bytes: 300 << 20,
    make: (image, tree) => filled(image, tree, ['mkfs.xfs', '-q', '-f']),
    target(sector, at) {
      for (const [magic, [bytes, sumAt]] of XFS)
        if (sector.toString('latin1', 0, magic.length) === magic)
          return { at, bytes, sum: { at: sumAt, from: 0 } };
      return null;
    },
  },
  {
    name: 'btrfs',
    needs: 'mkfs.btrfs',
    bytes: 24 << 20,
    make: (image, tree) => filled(image, tree, ['mkfs.btrfs', '-q', '-f', '-M', '-n', '4096']),
    target(sector, at) {
      // btrfs_tree.h: btrfs_super_block, and btrfs_header: position, generation, owner and level.
      const isSuper = sector.toString('latin1', 64, 72) === '_BHRfS_M';
      const [position, generation, owner] = [48, 80, 88].map(i => sector.readBigUInt64LE(i));
      const isNode =
        at % 4096 === 0 && position! > 0n && position! % 4096n === 0n && position! < 1n << 32n;
      const isOurs = generation! > 0n && generation! < 1000n && owner! > 0n && owner! < 1000n;
      if (!isSuper && !(isNode && isOurs && sector[100]! < 8)) return null;
      return { at, bytes: 4096, sum: { at: 0, from: 32 } };
    },
  },
  {
    name: 'squashfs',
    needs: 'mksquashfs',
    bytes: 1 << 20,
    // Not packed: so what is changed is metadata, and not its packing alone.
    make: (image, tree) =>
      run('mksquashfs', [
        ...[tree, image, '-quiet', '-no-progress', '-noappend'],
        ...['-noI', '-noD', '-noF', '-noX'],
      ]),
    target: (sector, at) =>
      sector.every(byte => byte === 0 || byte === 0x78) ? null : { at, bytes: 512, sum: null },
  },
  {
    name: 'erofs',
    needs: 'mkfs.erofs',
    bytes: 1 << 20,
    make: (image, tree) => run('mkfs.erofs', ['--quiet', '-E', '^sb_csum', image, tree]),
    target: (sector, at) =>
      sector.every(byte => byte === 0 || byte === 0x78) ? null : { at, bytes: 512, sum: null },
  },
];

function tree(dir: string): string {
  const top = join(dir, 'tree');
  mkdirSync(join(top, 'etc/deep/er'), { recursive: true });
  mkdirSync(join(top, 'many'));
  for (let i = 0; i < 150; i++) writeFileSync(join(top, `many/name ${i}`), 'x'.repeat(10 * i));
  writeFileSync(join(top, 'etc/passwd'), 'x'.repeat(9000));
  symlinkSync('../passwd', join(top, 'etc/deep/link'));
  mkdirSync(join(top, EVIL));
  writeFileSync(join(top, EVIL, EVIL), 'x');
  symlinkSync(EVIL, join(top, 'etc/deep/er/evil'));
  mkdirSync(join(dir, 'mnt'));
  return top;
}

interface Place {
  dir: string;
  root: string;
  ubd(...args: string[]): Promise<RunResult>;
  /** The loop devices that our private daemons have now. */
  loops(): string[];
  /** What their loop devices are called after, as far as it was seen. */
  owners: ReadonlySet<string>;
}

function daemons(state: string): string[] {
  return existsSync(state) ? readdirSync(state).filter(name => name.startsWith('private-')) : [];
}

function ownerIn(state: string): string {
  try {
    return readFileSync(join(state, 'id'), 'utf8').trim();
  } catch {
    return ''; // just made, or just removed
  }
}

async function place(t: Test, kind: Kind): Promise<Place> {
  const dir = mkdtempSync(join(TOP, 'ubd-hostile-'));
  const root = join(dir, 'root');
  t.teardown(async () => {
    await tryRun('umount', ['-q', join(dir, 'mnt')]);
    rmSync(dir, { recursive: true, force: true });
  });
  writeFileSync(root, '');
  if (kind.make.length > 0) truncateSync(root, kind.bytes);
  await kind.make(root, tree(dir));
  truncateSync(root, kind.bytes);
  const dirs = { stateDir: join(dir, 'state'), runtimeDir: join(dir, 'run') };
  const own = ['--state-dir', dirs.stateDir, '--runtime-dir', dirs.runtimeDir];
  const owners = new Set<string>();
  const watch = setInterval(() => {
    for (const name of daemons(dirs.stateDir)) owners.add(ownerIn(join(dirs.stateDir, name)));
    owners.delete('');
  }, 20);
  t.teardown(() => clearInterval(watch));
  return {
    dir,
    root,
    ubd: (...args) =>
      tryRun(process.execPath, [main, ...args, ...own], {
        timeoutMs: RUN_MS_MAX,
        env: { ...process.env, UBD_STATE_DIR: dirs.stateDir, UBD_RUNTIME_DIR: dirs.runtimeDir },
      }),
    loops: () =>
      readdirSync('/sys/block')
        .filter(name => name.startsWith('loop'))
        .map(name => backing(name))
        .filter(file => owners.has(file.split(':')[2] ?? '')),
    owners,
  };
}

function backing(loop: string): string {
  try {
    return readFileSync(`/sys/block/${loop}/loop/backing_file`, 'utf8').trim();
  } catch {
    return ''; // it is attached to nothing
  }
}

/** Changes some bytes of some metadata. @returns what was done, and how to undo it */
function damage(image: string, targets: readonly Target[], random: Random) {
  const fd = openSync(image, 'r+');
  const said: string[] = [];
  const undo: { at: number; bytes: Buffer }[] = [];
  try {
    for (let n = random.between(1, 3); n > 0; n--) {
      const { at, bytes, sum } = random.pick(targets);
      const piece = Buffer.alloc(bytes);
      readSync(fd, piece, 0, bytes, at);
      undo.unshift({ at, bytes: Buffer.from(piece) });
      for (let i = random.between(1, 6); i > 0; i--) {
        // Most of what says something stands near the beginning.
        const where = random.chance(0.7) ? random.below(Math.min(bytes, 256)) : random.below(bytes);
        piece[where] = random.chance(0.3) ? random.pick([0, 0x7f, 0xff]) : random.below(256);
        said.push(`${at + where}=${piece[where]}`);
      }
      if (sum !== null && random.chance(0.9)) {
        if (sum.from === 0) piece.writeUInt32LE(0, sum.at);
        piece.writeUInt32LE(crc32c(piece.subarray(sum.from)), sum.at);
      }
      writeSync(fd, piece, 0, bytes, at);
    }
  } finally {
    closeSync(fd);
  }
  return {
    said: said.join(' '),
    undo(): void {
      const again = openSync(image, 'r+');
      for (const { at, bytes } of undo) writeSync(again, bytes, 0, bytes.length, at);
      closeSync(again);
    },
  };
}

function targetsOf(image: string, { target }: Kind): Target[] {
  const all = readFileSync(image);
  const found: Target[] = [];
  for (let at = 0; at < all.length; at += 512) {
    const one = target(all.subarray(at, at + 512), at);
    if (one !== null) found.push(one);
  }
  return found;
}

/** No byte of them moves a cursor or changes a colour; a line is one name. */
function harmless(t: Test, { stdout, stderr }: RunResult): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there
  t.notMatch(stdout + stderr, /[\x00-\x09\x0b-\x1f\x7f\u202e]/);
}

const lacksKind = async ({ name, needs }: Kind): Promise<string | false> =>
  skip || (await missing(needs, `fs:${name}`));

for (const kind of KINDS)
  t.test(
    `${kind.name}: damaged as it may be, an index or an error that names it; nothing is left`,
    { skip: await lacksKind(kind) },
    async t => {
      const { dir, root, ubd, loops, owners } = await place(t, kind);
      const targets = targetsOf(root, kind);
      t.ok(targets.length > 3, `${targets.length} places to damage`);
      const files = readdirSync(dir).sort();
      const output = join(dir, 'index');
      const run = async (): Promise<RunResult> => {
        const result = await ubd('index', root, '--force', '--output', output, '--json');
        rmSync(output, { force: true });
        return result;
      };
      const whole = await run();
      t.equal(whole.status, 0, whole.stderr);
      t.ok(owners.size > 0, 'its daemon was seen');
      const codes = new Map<string, number>();
      const end = Date.now() + SECONDS * 1000;
      for (let seed = SEED; SECONDS > 0 ? Date.now() < end : seed < SEED + RUNS; seed++) {
        const { said, undo } = damage(root, targets, new Random(seed));
        const result = await run();
        undo();
        const what = `seed ${seed}: ${said}`;
        harmless(t, result);
        t.equal(result.signal, null, `${what}: it ended`);
        let code = 'index';
        if (result.status !== 0) {
          const { error } = JSON.parse(result.stderr) as {
            error: { code: string; message: string; next?: string };
          };
          code = error.code;
          t.match(code, /^(corrupt|io|unsupported)$/, `${what}: ${result.stderr}`);
          t.ok(error.message.includes(root), `${what}: ${error.message}`);
          t.ok(error.next, `${what}: a next step`);
        }
        codes.set(code, (codes.get(code) ?? 0) + 1);
        t.same(loops(), [], `${what}: no loop device`);
        const now = readdirSync(dir).filter(name => !['state', 'run'].includes(name));
        t.same(now.sort(), files, `${what}: no file`);
        t.same(daemons(join(dir, 'state')), [], `${what}: no daemon`);
      }
      t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), dir, 'no mount');
      t.comment(`${kind.name}: ${[...codes].map(([code, n]) => `${code} ${n}`).join(', ')}`);
    },
  );

const BTRFS = KINDS.find(({ name }) => name === 'btrfs')!;

t.test(
  'names that would move the cursor are shown escaped by all commands, and exact in JSON',
  { skip: await lacksKind(BTRFS) },
  async t => {
    const { dir, root, ubd } = await place(t, BTRFS);
    const [copy, leaf, mnt] = ['copy', 'leaf', 'mnt'].map(name => join(dir, name)) as [
      ...[string, string, string],
    ];
    copyFileSync(root, copy);
    await run('mount', ['-o', 'loop', copy, mnt]);
    writeFileSync(join(mnt, EVIL, 'new'), 'n'.repeat(50_000));
    writeFileSync(join(mnt, EVIL, EVIL), 'changed\n');
    await run('umount', [mnt]);
    await makeImageLeaf(root, leaf, copy);
    const shown = 'evil \\x1b[31m\\nM 0 forged \\u{202e}';
    const scanner = ['--exec', 'f() { echo "$@"; return 1; }; f'];
    const inC = 'evil \\033[31m\\012M 0 forged \\342\\200\\256';
    const commands: [args: string[], status: number, text: string][] = [
      [['find', root, 'evil'], 0, `/${shown}/${shown}`],
      [['find', leaf, 'evil', '--long'], 0, `/${shown}/${shown}`],
      [['find', leaf, 'evil', '--changed'], 0, `/${shown}/${shown}`],
      [['find', root, 'evil', '--leaves', '--in', dir], 0, `/${shown}/${shown}`],
      [['diff', leaf], 0, `/${shown}/${shown}`],
      [['diff', leaf, '--tree'], 0, `M ${shown}`],
      [['diff', leaf, '--content', `/${EVIL}/${EVIL}`], 0, `+++ "b/${inC}/${inC}"\n`],
      [['why', leaf], 0, `/${shown}`],
      [['scan', leaf, ...scanner], 1, `/${shown}/${shown}: `],
    ];
    for (const [args, status, text] of commands) {
      const what = args.slice(0, 3).join(' ');
      const result = await ubd(...args);
      t.equal(result.status, status, `${what}: ${result.stderr}`);
      harmless(t, result);
      t.ok(result.stdout.includes(text), `${what}: ${result.stdout}`);
      const json = await ubd(...args, '--json');
      t.equal(json.status, status, json.stderr);
      harmless(t, json);
      const names = JSON.stringify(JSON.parse(json.stdout));
      t.ok(names.includes(JSON.stringify(`/${EVIL}`).slice(1, -1)), `${what} --json: ${names}`);
    }
  },
);
