/**
 * Goal: the command line says what is wrong, with the right exit status, where there is no device
 * to work on. Method: the real program, with directories of its own; no daemon is started.
 */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import t from 'tap';
import { missing } from '../support/requires.ts';
import { type RunResult, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

/** For the whole file: starting programs is slow where others keep the machine busy. */
t.setTimeout(300_000);
const needsRoot = await missing('root');
const needsSetpriv = await missing('root', 'setpriv');

interface Shell {
  dir: string;
  ubd(...args: string[]): Promise<RunResult>;
  as(user: string, ...args: string[]): Promise<RunResult>;
}

function shell(teardown: (fn: () => void) => void): Shell {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  teardown(() => rmSync(dir, { recursive: true, force: true }));
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    UBD_STATE_DIR: `${dir}/state`,
    UBD_RUNTIME_DIR: `${dir}/run`,
  };
  // A test runner's own hooks write where another user may not.
  delete env.NODE_OPTIONS;
  return {
    dir,
    ubd: (...args) => tryRun(process.execPath, [CLI, ...args], { env, cwd: dir }),
    as: (user, ...args) =>
      tryRun(
        'setpriv',
        [
          ...['--reuid', user, '--regid', 'nogroup', '--clear-groups'],
          ...[process.execPath, CLI, ...args],
        ],
        { env, cwd: '/' },
      ),
  };
}

t.test(
  'a daemon that ends with its input removes no state directory',
  { skip: needsRoot },
  async t => {
    const { dir, ubd } = shell(t.teardown);
    mkdirSync(`${dir}/state/leaves`, { recursive: true });
    writeFileSync(`${dir}/state/leaves/web.leaf`, 'precious');
    const refused = await ubd('serve', '--while-input', '--scrap', `${dir}/state`);
    t.equal(refused.status, 2);
    t.match(refused.stderr, /would remove .*\/state at its end/);
    t.equal(readFileSync(`${dir}/state/leaves/web.leaf`, 'utf8'), 'precious');
  },
);

t.test('without arguments, and with --help, there is help', async t => {
  const { ubd } = shell(t.teardown);
  for (const args of [[], ['--help'], ['-h'], ['help']]) {
    const { status, stdout, stderr } = await ubd(...args);
    t.equal(status, 0);
    t.equal(stderr, '');
    for (const verb of ['attach', 'detach', 'list', 'info', 'check', 'status', 'serve'])
      t.match(stdout, new RegExp(`\\bubd ${verb}\\b`), `${args.join(' ')}: ${verb}`);
  }
  for (const args of [
    ['attach', '--help'],
    ['attach', '-h'],
    ['help', 'attach'],
  ]) {
    const { status, stdout } = await ubd(...args);
    t.equal(status, 0);
    t.match(stdout, /--ephemeral/);
    t.match(stdout, /hundred/);
  }
});

t.test('--version says the version', async t => {
  const { status, stdout } = await shell(t.teardown).ubd('--version');
  t.equal(status, 0);
  t.match(stdout, /^ubd \d+\.\d+\.\d+\n$/);
});

t.test('completion knows the commands and their options', async t => {
  const { ubd } = shell(t.teardown);
  t.match((await ubd('completion')).stdout, /complete .*ubd/);
  t.match((await ubd('--get-yargs-completions', 'ubd', 'sta')).stdout, /status/);
  t.match((await ubd('--get-yargs-completions', 'ubd', 'attach', '--e')).stdout, /--ephemeral/);
});

t.test('usage errors have status 2, a message and a hint', async t => {
  const { ubd } = shell(t.teardown);
  for (const [args, message] of [
    [['frobnicate'], /no command 'frobnicate'/],
    [['replica', 'add', 'web', '/a/copy.img'], /no URI: .*\n.*file:\/\/\/a\/copy\.img/],
    [['constructor'], /no command 'constructor'/],
    [['list', '--colour'], /--colour/],
    [['attach', 'a', 'b'], /unexpected argument 'b'/],
    [['attach', '--size', 'big', 'a'], /no size/],
    [['detach'], /DEV\|NAME is missing/],
    [['detach', '--all', 'web'], /--all goes without names/],
    [['help', 'nothing'], /no command 'nothing'/],
    [['list', '--runtime-dir', `/${'x'.repeat(200)}`], /socket's path is longer/],
  ] as const) {
    const { status, stdout, stderr } = await ubd(...args);
    t.equal(status, 2, args.join(' '));
    t.equal(stdout, '');
    t.match(stderr, message);
    t.match(stderr, /^ubd: .*\n {5}\S/, 'a next step below the message');
  }
});

t.test('with --json errors are JSON too', async t => {
  const { ubd } = shell(t.teardown);
  const { status, stdout, stderr } = await ubd('status', '--json');
  t.equal(status, 1);
  t.equal(stdout, '');
  t.match(JSON.parse(stderr), {
    error: { code: 'daemon', message: /not running/, next: /ubd/, place: { file: /ubd\.sock$/ } },
  });
});

t.test('without daemon and devices nothing is started', { skip: needsRoot }, async t => {
  const { ubd, dir } = shell(t.teardown);
  const list = await ubd('list', '--json');
  t.match(list, { status: 0, stdout: '[]\n', stderr: '' });
  t.match(await ubd('list'), { status: 0, stdout: '', stderr: '' });
  t.match(await ubd('status'), { status: 1, stderr: /not running/ });
  t.match(await ubd('detach', 'web'), { status: 1, stderr: /not running/ });
  t.match(await ubd('detach', '--all'), { status: 1, stderr: /not running/ });
  t.notOk(existsSync(`${dir}/state`), 'no daemon, no state');
});

t.test('a dead socket counts as no daemon', { skip: needsRoot }, async t => {
  const { ubd, dir } = shell(t.teardown);
  mkdirSync(`${dir}/run`);
  // Bound and never listened on any more: what kill -9 leaves.
  const server = createServer();
  await new Promise<void>(resolve => server.listen(`${dir}/real`, resolve));
  renameSync(`${dir}/real`, `${dir}/run/ubd.sock`);
  await new Promise(resolve => server.close(resolve));
  t.match(await ubd('status'), { status: 1, stderr: /not running/ });
  t.match(await ubd('list', '--json'), { status: 0, stdout: '[]\n' });
});

t.test('others than root are told so', { skip: needsSetpriv }, async t => {
  const { as, dir } = shell(t.teardown);
  chmodSync(dir, 0o755);
  for (const args of [['attach', '/x'], ['detach', 'x'], ['list'], ['status'], ['serve']]) {
    const { status, stderr } = await as('nobody', ...args);
    t.equal(status, 1, args.join(' '));
    t.match(stderr, /needs root/);
    t.match(stderr, /sudo ubd/);
  }
  t.match(JSON.parse((await as('nobody', 'list', '--json')).stderr), {
    error: { code: 'permission' },
  });
  t.match(await as('nobody', '--version'), { status: 0 });
  t.match(await as('nobody', 'attach', '--help'), { status: 0 });
});

t.test('info and check look at files without a daemon', { skip: needsRoot }, async t => {
  const { ubd, dir, as } = shell(t.teardown);
  writeFileSync(`${dir}/root.img`, Buffer.alloc(65_536, 'data'));
  chmodSync(dir, 0o755);
  const info = JSON.parse((await ubd('info', 'root.img', '--json')).stdout);
  t.match(info, { kind: 'root', path: /root\.img$/, size: 65_536, type: 'file', devices: [] });
  t.match(info.identity, { sizeBytes: 65_536, fingerprint: /^[0-9a-f]{64}$/ });
  t.match(await ubd('info', './root.img'), { status: 0, stdout: /fingerprint: +[0-9a-f]{64}/ });
  t.match(await as('nobody', 'info', `${dir}/root.img`), { status: 0 }, 'also for a common user');
  t.match(await ubd('info', 'nothing'), { status: 1, stderr: /nothing|not running/ });
  t.match(await ubd('info', '/no/such/file'), { status: 1 });
  t.match(await ubd('check', 'root.img'), { status: 1, stderr: /not a leaf/ });
  t.match(await ubd('check', 'gone.leaf'), { status: 1, stderr: /there is no .*gone\.leaf/ });
  t.match(await ubd('check', '.'), {
    status: 1,
    stderr: /neither a regular file.*\n.*name a leaf/,
  });
  t.match(await ubd('attach', 'root.img', '--name', 'a/b'), {
    status: 2,
    stderr: /--name: up to 63 letters.*, not 'a\/b'/,
  });
  for (const [name, bytes, message] of [
    ['empty.img', 0, /empty \(0 bytes\)/],
    ['odd.img', 1000, /1000 bytes, which is not a multiple of 512/],
  ] as const) {
    writeFileSync(`${dir}/${name}`, Buffer.alloc(bytes, 'x'));
    t.match(await ubd('info', name), { status: 1, stderr: message }, name);
  }
});

t.test('a reader that goes away is no error', { skip: needsRoot }, async t => {
  const { dir } = shell(t.teardown);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/s`, UBD_RUNTIME_DIR: `${dir}/r` };
  const line = `"${process.execPath}" "${CLI}" attach --help | true; exit "\${PIPESTATUS[0]}"`;
  t.match(await tryRun('bash', ['-c', line], { env }), { status: 0, stderr: '' });
});

t.test(
  '`ubd list` loads little: no addon, no yargs, no node:http',
  { skip: needsRoot },
  async t => {
    const { dir } = shell(t.teardown);
    const coverage = `${dir}/coverage`;
    const env = {
      ...process.env,
      UBD_STATE_DIR: `${dir}/s`,
      UBD_RUNTIME_DIR: `${dir}/r`,
      NODE_V8_COVERAGE: coverage,
    };
    t.match(await tryRun(process.execPath, [CLI, 'list'], { env }), { status: 0 });
    const report = JSON.parse(readFileSync(`${coverage}/${readdirSync(coverage)[0]}`, 'utf8'));
    const loaded = (report.result as { url: string }[])
      .map(({ url }) => url.replace(/.*\/dist\/src\//, ''))
      .filter(url => !url.startsWith('node:'));
    t.ok(loaded.includes('cli/commands/list.js'));
    t.same(
      loaded.filter(url => /yargs|daemon|native|leaf|image|launch/.test(url)),
      [],
    );
    t.ok(loaded.length <= 15, `${loaded.length} files: ${loaded.join(', ')}`);
  },
);
