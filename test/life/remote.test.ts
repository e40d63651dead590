/**
 * Goal: work on leaves without a daemon does the same over a root in another place as over one that
 * is here, also with a replica only, and says what is wrong where nobody has it. Method: two leaves
 * that differ in where their root is; every command is run on both, by the command line, and what
 * they say and make is compared.
 */
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { RootBook } from '../../src/daemon/remote/root-book.ts';
import { openIndex } from '../../src/fsindex/open.ts';
import { openDatabase } from '../../src/fsindex/sqlite.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { nbdkit, nginx, qemuNbd } from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { type RunResult, run, tryRun } from '../support/run.ts';
import { S3_KEYS, s3Missing, startS3 } from '../support/s3-server.ts';
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
      UBD_REMOTE_WAIT: '20',
      AWS_ACCESS_KEY_ID: S3_KEYS.accessKeyId,
      AWS_SECRET_ACCESS_KEY: S3_KEYS.secretAccessKey,
      AWS_REGION: 'us-east-1',
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
    await edited('next.img', 'rm data/9', `write ${more} data/next`);
    await makeImageLeaf(bench.root, bench.path('c.leaf'), bench.next);
    return bench;
  }

  /** The same leaves, whose root is there. */
  async over(uri: string): Promise<void> {
    for (const name of ['a', 'b', 'c']) {
      copyFileSync(this.path(`${name}.leaf`), this.path(`${name}.far`));
      await this.ok('info', '--rebase-path', uri, `${name}.far`);
    }
  }

  /** Both roots in a bucket. */
  async bucket(t: Test): Promise<There> {
    const server = await startS3(this.path('s3'), 'images');
    t.teardown(() => server.stop());
    const put = async (file: string): Promise<string> => {
      await server.put('images', file, readFileSync(this.path(file)));
      return `s3://images/${file}?endpoint=${encodeURIComponent(server.endpoint)}`;
    };
    return { root: await put('root.img'), next: await put('next.img') };
  }
}

/** The places of the roots, as a server gives them out. */
interface There {
  root: string;
  next: string;
}

/** What both say of their leaves, without where these are. */
async function alike(t: Test, bench: Bench, uris: There, ...args: string[]): Promise<void> {
  const said = async (swap: (text: string) => string): Promise<string> => {
    const { status, stdout, stderr } = await bench.cli(...args.map(swap));
    if (stderr !== '') t.fail(`ubd ${args.join(' ')}: ${stderr}`);
    // Space on disk is as the copy came out.
    return status + stdout.replace(/"allocated(Bytes|Before|After)": \d+/g, '');
  };
  const swap = (text: string, { root, next }: There): string =>
    text.replace('ROOT', root).replace('NEXT', next);
  const here = await said(text => swap(text, bench));
  const there = await said(text => swap(text.replace('.leaf', '.far'), uris));
  const plain = there
    .replaceAll('.far', '.leaf')
    .replaceAll(uris.root, bench.root)
    .replaceAll(uris.next, bench.next);
  t.equal(plain, here, args.join(' '));
}

/** Finds what begins with "hello". */
const SCANNER = '! grep -H -o -x -m 1 hello';

async function allCommands(t: Test, bench: Bench, uris: There): Promise<void> {
  await bench.over(uris.root);
  const same = (...args: string[]): Promise<void> => alike(t, bench, uris, ...args);
  await same('diff', './a.leaf', '--json');
  await same('diff', './a.leaf', '--blocks', '--json');
  await same('find', './a.leaf', 'motd', '--json');
  await same('find', 'ROOT', '/data/1*', '--json');
  await same('why', './a.leaf', '--json');
  await same('check', './a.leaf', '--root', '--json');
  await same('shrink', './a.leaf', '--dry-run', '--json');
  await same('scan', 'ROOT', '--exec', SCANNER, '--force', '--json');
  await same('scan', './a.leaf', '--exec', SCANNER, '--force', '--json');
  await same('rebase', './a.leaf', '--root', bench.next, '--dry-run', '--json');
  await same('rebase', './a.leaf', '--root', 'NEXT', '--dry-run', '--json');
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
  await bench.ok('rebase', './c.far', '--root', uris.next);
  await bench.ok('export', './c.far', 'c.out');
  t.ok(bytes('c.out').equals(bytes('next.img')), 'rebase');
  const moved = JSON.parse(await bench.ok('info', './c.far', '--json'));
  t.match(moved, { root: { path: uris.next }, changed: 0 }, 'onto the root that is there');
  for (const name of [
    'out.img',
    'back.leaf',
    'back.img',
    'a.ubds',
    'shared.img',
    'a.out',
    'b.out',
    'c.out',
  ])
    rmSync(bench.path(name));
}

t.test('commands over a root in another place', { skip }, async t => {
  const bench = await Bench.make(t);

  t.test('behind HTTP', async t => {
    const server = await (await nginx(bench.path('nginx'), bench.dir)).start();
    t.teardown(() => server.kill());
    await allCommands(t, bench, { root: server.url('root.img'), next: server.url('next.img') });
  });

  t.test('an index beside a root behind HTTP is used, if it is of this root', async t => {
    const server = await (await nginx(bench.path('nginx-2'), bench.dir)).start();
    t.teardown(() => server.kill());
    const root = server.url('root.img');
    const index = bench.path('root.img.ubdindex');
    t.teardown(() => rmSync(index, { force: true }));
    /** What the index here says that it was made of, when files are found for the first time. */
    const madeOf = async (): Promise<string> => {
      rmSync(bench.path('state'), { recursive: true });
      t.equal(await bench.ok('find', root, 'motd'), '/etc/motd\n');
      const { path } = JSON.parse(await bench.ok('index', root, '--json'));
      t.ok(path.startsWith(bench.path('state')), path);
      const database = openIndex(path);
      const sql = "SELECT value FROM meta WHERE key = 'root'";
      const of = database.prepare(sql).pluck().get() as string;
      database.close();
      return of;
    };
    rmSync(index, { force: true });
    t.equal(await madeOf(), root, 'none is there: it is made here');
    await bench.ok('index', '--force', './root.img');
    t.equal(await madeOf(), bench.root, 'the one that is there');
    await bench.ok('index', '--force', './next.img');
    copyFileSync(bench.path('next.img.ubdindex'), index);
    t.equal(await madeOf(), root, "another root's is not used");
    writeFileSync(index, Buffer.alloc(5000, 1));
    t.equal(await madeOf(), root, 'nor what is no index');
    rmSync(index);
    await bench.ok('index', '--force', './root.img');
    copyFileSync(index, bench.path('whole'));
    const changed = openDatabase(index);
    changed.exec("UPDATE entry SET name = '../' || name WHERE name = 'motd'");
    changed.close();
    t.equal(await madeOf(), root, 'nor what has names that lead elsewhere');
    copyFileSync(bench.path('whole'), index);
    truncateSync(index, statSync(bench.root).size + 512);
    t.equal(await madeOf(), root, 'nor what is larger than its root');
    t.same(
      readdirSync(bench.path('state/indexes')).filter(name => name.endsWith('.new')),
      [],
      'nothing is left of it',
    );
  });

  t.test('behind NBD', async t => {
    const server = await nbdkit(bench.root, bench.path('kit.sock')).start();
    t.teardown(() => server.kill());
    const next = await nbdkit(bench.next, bench.path('next.sock')).start();
    t.teardown(() => next.kill());
    await allCommands(t, bench, { root: server.uri, next: next.uri });
  });

  t.test('behind S3', { skip: await s3Missing() }, async t => {
    await allCommands(t, bench, await bench.bucket(t));
  });

  t.test(
    'onto which leaves are moved file by file',
    { skip: await missing(...DEVICES) },
    async t => {
      const uris = await bench.bucket(t);
      await bench.over(uris.root);
      copyFileSync(bench.path('a.leaf'), bench.path('keep'));
      await alike(t, bench, uris, 'rebase', './a.leaf', '--root', 'NEXT', '--json');
      await alike(t, bench, uris, 'diff', './a.leaf', '--json');
      await alike(t, bench, uris, 'check', './a.leaf', '--json');
      await alike(t, bench, uris, 'find', './a.leaf', '*', '--json');
      copyFileSync(bench.path('keep'), bench.path('a.leaf'));

      // The device that the command makes has what is on record of its root.
      const away = await qemuNbd(bench.next, bench.path('away.sock')).start();
      t.teardown(() => away.kill());
      const { identity } = JSON.parse(await bench.ok('info', away.uri, '--json'));
      await away.kill();
      const book = new RootBook(bench.path('state/roots'));
      await book.write({ version: 1, uri: away.uri, identity, replicas: [uris.next] });
      await bench.over(uris.root);
      await bench.ok('rebase', './a.far', '--root', away.uri);
      const moved = JSON.parse(await bench.ok('info', './a.far', '--json'));
      t.match(moved, { root: { path: away.uri } }, 'a root that only a replica has');
      await book.write({ version: 1, uri: away.uri, identity, replicas: [] });
    },
  );

  t.test('which only roots may be', async t => {
    for (const args of [
      ['export', './a.leaf', 's3://x/y'],
      ['reconcile', './a.leaf', '--output', 's3://x/y'],
      ['send', './a.leaf', '--output', 's3://x/y'],
      ['receive', 's3://x/y'],
      ['attach', bench.root, '--leaf', 's3://x/y'],
      ['fork', './a.leaf', '--leaf', 's3://x/y'],
      ['index', bench.root, '--output', 's3://x/y'],
      ['export', 's3://x/y', 'never.img'],
    ]) {
      const { status, stderr } = await bench.cli(...args);
      t.match(
        { status, stderr },
        { status: 2, stderr: /s3:\/\/x\/y is a URI.*\n.*name a/ },
        `${args[0]}`,
      );
    }
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
    await alike(t, bench, { root: first.uri, next: first.uri }, 'diff', './a.leaf', '--json');
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
