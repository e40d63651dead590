/**
 * Goal: work on leaves without a daemon does the same over a root in another place as over one that
 * is here, also with a replica only, and says what is wrong where nobody has it. Method: two leaves
 * that differ in where their root is; every command is run on both, by the command line, and what
 * they say and make is compared.
 */
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { RootBook } from '../../src/daemon/remote/root-book.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { nbdkit, nginx, qemuNbd } from '../support/remote-servers.ts';
import { missing } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

t.setTimeout(600_000);

const skip = await missing('mke2fs', 'debugfs', 'nbdkit', 'nginx', 'qemu-nbd');
const KIB = 1024;

class Bench {
  readonly dir: string = mkdtempSync(join(tmpdir(), 'ubd-remote-'));
  readonly root = this.path('root.img');
  readonly next = this.path('next.img');

  path(name: string): string {
    return join(this.dir, name);
  }

  cli(...args: string[]): Promise<RunResult> {
    const env = {
      ...process.env,
      UBD_STATE_DIR: this.path('state'),
      UBD_RUNTIME_DIR: this.path('run'),
      UBD_REMOTE_WAIT: '2',
    };
    return tryRun(process.execPath, [CLI, ...args], { env, cwd: this.dir });
  }

  async ok(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.cli(...args);
    if (status !== 0) throw new Error(`ubd ${args.join(' ')}: ${status}: ${stderr}`);
    return stdout;
  }

  /** A root with files, another version of it, and leaves that have changed files of it. */
  static async make(t: Test): Promise<Bench> {
    const bench = new Bench();
    t.teardown(() => rmSync(bench.dir, { recursive: true, force: true }));
    const random = new Random(3);
    const tree = bench.path('tree');
    for (const dir of ['', 'state', 'run', 'tree', 'tree/etc', 'tree/data'])
      mkdirSync(bench.path(dir), { recursive: true });
    writeFileSync(join(tree, 'etc/motd'), 'hello\n');
    writeFileSync(join(tree, 'etc/gone'), 'soon\n');
    for (let i = 0; i < 40; i++)
      writeFileSync(join(tree, `data/${i}`), noise(random, 40_000 + 4 * i));
    await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, bench.root, '24M']);
    const edited = async (name: string, ...commands: string[]): Promise<string> => {
      const image = bench.path(name);
      copyFileSync(bench.root, image);
      for (const command of commands) await run('debugfs', ['-w', '-R', command, image]);
      return image;
    };
    const more = bench.path('more');
    writeFileSync(more, noise(random, 100 * KIB));
    const change = [
      `write ${more} etc/new`,
      'rm etc/gone',
      'rm etc/motd',
      `write ${more} etc/motd`,
    ];
    await makeImageLeaf(bench.root, bench.path('a.leaf'), await edited('a.img', ...change));
    const same = await edited('b.img', ...change, 'rm data/7');
    await makeImageLeaf(bench.root, bench.path('b.leaf'), same);
    await edited('next.img', 'rm data/9');
    return bench;
  }

  /** The same leaves, whose root is there. */
  async over(uri: string): Promise<void> {
    for (const name of ['a', 'b']) {
      copyFileSync(this.path(`${name}.leaf`), this.path(`${name}.far`));
      await this.ok('info', '--rebase-path', uri, `${name}.far`);
    }
  }
}

/** What both say of their leaves, without where these are. */
async function alike(t: Test, bench: Bench, uri: string, ...args: string[]): Promise<void> {
  const said = async (swap: (text: string) => string): Promise<string> => {
    const { status, stdout, stderr } = await bench.cli(...args.map(swap));
    if (status !== 0) t.fail(`ubd ${args.join(' ')}: ${stderr}`);
    return stdout.replace(/"allocatedBytes": \d+/, ''); // as the copy came out
  };
  const here = await said(text => text.replace('ROOT', bench.root));
  const there = await said(text => text.replace('.leaf', '.far').replace('ROOT', uri));
  const plain = there.replaceAll('.far', '.leaf').replaceAll(uri, bench.root);
  t.equal(plain, here, args.join(' '));
}

async function allCommands(t: Test, bench: Bench, uri: string): Promise<void> {
  await bench.over(uri);
  const same = (...args: string[]): Promise<void> => alike(t, bench, uri, ...args);
  await same('diff', './a.leaf', '--json');
  await same('diff', './a.leaf', '--blocks', '--json');
  await same('find', './a.leaf', 'motd', '--json');
  await same('find', 'ROOT', '/data/1*', '--json');
  await same('why', './a.leaf', '--json');
  await same('check', './a.leaf', '--root', '--json');
  await same('rebase', './a.leaf', '--root', bench.next, '--dry-run', '--json');
  const bytes = (name: string): Buffer => readFileSync(bench.path(name));
  await bench.ok('export', './a.far', 'out.img', '--json');
  t.ok(bytes('out.img').equals(bytes('a.img')), 'export');
  await bench.ok('send', './a.far', '--output', 'a.ubds');
  await bench.ok('receive', 'back.leaf', '--input', 'a.ubds');
  await bench.ok('export', './back.leaf', 'back.img');
  t.ok(bytes('back.img').equals(bytes('a.img')), 'send and receive');
  await bench.ok('reconcile', './a.far', './b.far', '--output', 'shared.img');
  for (const name of ['a', 'b']) {
    await bench.ok('export', `./${name}.far`, `${name}.out`);
    t.ok(bytes(`${name}.out`).equals(bytes(`${name}.img`)), `reconcile: ${name}`);
  }
  for (const name of ['out.img', 'back.leaf', 'back.img', 'a.ubds', 'shared.img', 'a.out', 'b.out'])
    rmSync(bench.path(name));
}

t.test('commands over a root in another place', { skip }, async t => {
  const bench = await Bench.make(t);

  t.test('behind HTTP', async t => {
    const server = await (await nginx(bench.path('nginx'), bench.dir)).start();
    t.teardown(() => server.kill());
    await allCommands(t, bench, server.url('root.img'));
  });

  t.test('behind NBD', async t => {
    const server = await nbdkit(bench.root, bench.path('kit.sock')).start();
    t.teardown(() => server.kill());
    await allCommands(t, bench, server.uri);
  });

  t.test('of which only a replica answers; and nobody', async t => {
    const first = await qemuNbd(bench.root, bench.path('one.sock')).start();
    t.teardown(() => first.kill());
    const second = await nbdkit(bench.root, bench.path('two.sock')).start();
    t.teardown(() => second.kill());
    await bench.over(first.uri);
    await first.kill();
    const found = await bench.cli('diff', './a.far');
    t.equal(found.status, 1);
    t.match(found.stderr, /one\.sock.*nobody listens there|one\.sock.*cannot be found/);
    const { identity } = JSON.parse(await bench.ok('info', second.uri, '--json'));
    const book = new RootBook(bench.path('state/roots'));
    await book.write({ version: 1, uri: first.uri, identity, replicas: [second.uri] });
    await alike(t, bench, first.uri, 'diff', './a.leaf', '--json');
    await second.kill();
    const nobody = await bench.cli('export', './a.far', 'never.img');
    t.equal(nobody.status, 1);
    t.match(nobody.stderr, /two\.sock/);
  });

  t.test('that is another root by now', async t => {
    const server = await nbdkit(bench.root, bench.path('kit.sock')).start();
    await bench.over(server.uri);
    await server.kill();
    const other = await nbdkit(bench.next, bench.path('kit.sock')).start();
    t.teardown(() => other.kill());
    const refused = await bench.cli('export', './a.far', 'never.img');
    t.equal(refused.status, 1);
    t.match(refused.stderr, /is not the root that .*a\.far was made on/);
  });
});
