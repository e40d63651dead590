/**
 * Goal: `check` tells a good leaf from a damaged one, and the root as it was from any other, byte
 * by byte. Method: leaves on files, made and damaged here; the command line runs without a daemon.
 */
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import type { CheckReport } from '../../src/client/api.ts';
import { FileImages } from '../../src/daemon/images.ts';
import { missing } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

t.setTimeout(300_000);
const skipLoop = await missing('root', '/dev/loop-control', 'losetup');
const ROOT_BYTES = 4 * 1024 * 1024;
const images = new FileImages();

interface Pair {
  dir: string;
  root: string;
  leaf: string;
  ubd(...args: string[]): Promise<RunResult>;
  check(...args: string[]): Promise<CheckReport & { status: number }>;
}

async function pair(t: Test): Promise<Pair> {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const [root, leaf] = [`${dir}/root.img`, `${dir}/web.leaf`];
  writeFileSync(root, Buffer.alloc(ROOT_BYTES, 'root content '));
  await make(root, leaf);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const ubd = (...args: string[]): Promise<RunResult> =>
    tryRun(process.execPath, [CLI, ...args], { env, cwd: dir });
  return {
    dir,
    root,
    leaf,
    ubd,
    async check(...args) {
      const { status, stdout, stderr } = await ubd('check', 'web.leaf', '--json', ...args);
      if (stdout === '') throw new Error(stderr);
      return { status, ...JSON.parse(stdout) };
    },
  };
}

async function make(root: string, leaf: string): Promise<void> {
  const opened = await images.openRoot(root);
  await images.createLeaf({ path: leaf, sizeBytes: ROOT_BYTES, root: opened, ephemeral: false });
  opened.close();
}

function poke(file: string, offset: number, text: string): void {
  const fd = openSync(file, 'r+');
  writeSync(fd, text, offset);
  closeSync(fd);
}

t.test('the first full check records the digest, later ones compare it', async t => {
  const { check, root, ubd } = await pair(t);
  t.match(await check(), {
    status: 0,
    ok: true,
    problems: [],
    root: { path: root, result: 'not asked', digest: null },
  });
  const sum = (await run('sha256sum', [root])).slice(0, 64);
  t.match(await check('--root'), {
    status: 0,
    ok: true,
    notes: [new RegExp(`${sum}, recorded in the leaf now`)],
    root: { result: 'recorded', digest: sum },
  });
  t.match(await check('--root'), { status: 0, root: { result: 'matches', digest: sum } });
  const plain = await ubd('check', 'web.leaf', '--root');
  t.match(plain, {
    status: 0,
    stdout: /as recorded\n.*web\.leaf: no problems found\n$/,
    stderr: '',
  });
});

t.test('one changed byte that no fingerprint sees is found', async t => {
  const { check, root, ubd, leaf } = await pair(t);
  await check('--root');
  const before = await images.openRoot(root);
  before.close();
  let offset = 200_000;
  for (; ; offset += 4096) {
    poke(root, offset, 'X');
    const now = await images.openRoot(root);
    now.close();
    if (now.identity.fingerprint === before.identity.fingerprint) break;
    writeFileSync(root, Buffer.alloc(ROOT_BYTES, 'root content '));
  }
  t.match(await check('--root'), {
    status: 1,
    ok: false,
    problems: [/root\.img has changed: its SHA-256 is [0-9a-f]{64}, and was [0-9a-f]{64}/],
    root: { result: 'differs' },
  });
  t.match(await ubd('check', leaf), { status: 0 }, 'the leaf itself is well');
  t.match(await ubd('check', leaf, '--root'), { status: 1, stdout: /problem: .*\n.*DAMAGED/ });
});

t.test('another root and a lost root are told apart', async t => {
  const { check, root } = await pair(t);
  writeFileSync(root, Buffer.alloc(ROOT_BYTES, 'other content'));
  t.match(await check('--root'), {
    status: 1,
    problems: [/not the root of this leaf: .*fingerprint .*expected/],
    root: { result: 'differs' },
  });
  truncateSync(root, 0);
  t.match(await check('--root'), {
    status: 1,
    problems: [/empty/],
    root: { result: 'unreadable' },
  });
  rmSync(root);
  t.match(await check('--root'), {
    status: 1,
    problems: [/no such root/],
    root: { result: 'unreadable', digest: null },
  });
  t.match(await check(), { status: 0 }, 'without --root nobody asks for it');
});

t.test('a damaged leaf is damaged at a place', async t => {
  const { check, leaf, ubd } = await pair(t);
  const good = readFileSync(leaf);
  poke(leaf, 100, 'damage');
  t.match(await check(), { ok: true, notes: [/at offset 0: /] }, 'one superblock is enough');
  poke(leaf, 4196, 'damage');
  const both = await check();
  t.match(both, { status: 1, ok: false, problems: [/web\.leaf: damaged at offset \d+: /] });
  writeFileSync(leaf, good);
  t.match(await check(), { ok: true, notes: [] });
  truncateSync(leaf, 10_000);
  t.match(await check(), { status: 1, ok: false });
  writeFileSync(leaf, Buffer.alloc(100_000, 'no leaf at all'));
  t.match(await ubd('check', 'web.leaf'), { status: 1, stderr: /is not a leaf/ });
});

t.test('an empty disk becomes a leaf, one with data does not', { skip: skipLoop }, async t => {
  const { dir, root, ubd } = await pair(t);
  writeFileSync(`${dir}/disk`, '');
  truncateSync(`${dir}/disk`, 16 * 1024 * 1024);
  const disk = (await run('losetup', ['--find', '--show', `${dir}/disk`])).trim();
  t.teardown(() => tryRun('losetup', ['--detach', disk]));
  const opened = await images.openRoot(root);
  t.teardown(() => opened.close());
  const leaf = { path: disk, sizeBytes: ROOT_BYTES, root: opened, ephemeral: false };
  await images.createLeaf(leaf);
  t.match(await ubd('check', disk, '--root'), { status: 0 });
  const info = JSON.parse((await ubd('info', disk, '--json')).stdout);
  t.match(info, { kind: 'leaf', path: disk, allocated: null, clean: true });
  await t.rejects(images.createLeaf(leaf), { code: 'exists', message: /not empty/ });
  await images.removeLeaf(disk);
  t.match(await ubd('info', disk), { status: 0 }, 'a device is never removed');
});
