/**
 * Goal: the life of exports, from the command line to the last client: made, found again, shared,
 * refused, removed; durable over the daemon's end and its death. Method: a daemon, nbdsh or qemu-io
 * as the client, and what the interface says of it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import t from 'tap';
import { ExportSandbox, ROOT_BYTES } from '../support/export-sandbox.ts';
import { missing } from '../support/requires.ts';
import { run, sleep, tryRun, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

t.setTimeout(900_000); // for what hangs

const skip = await missing('root', 'qemu-io', 'nbdinfo');

/** Writes to an export, and flushes. */
async function write(uri: string, pattern: number, at: string, length: string): Promise<void> {
  const commands = [`write -P ${pattern} ${at} ${length}`, 'flush'];
  await run('qemu-io', ['-f', 'raw', ...commands.flatMap(one => ['-c', one]), uri]);
}

/** Is it this pattern that is there? qemu-io fails where it is another. */
async function holds(uri: string, pattern: number, at: string, length: string): Promise<boolean> {
  const read = `read -P ${pattern} ${at} ${length}`;
  const { status, stdout } = await tryRun('qemu-io', ['-f', 'raw', '-c', read, uri]);
  return status === 0 && !stdout.includes('verification failed');
}

async function allClosed({ sandbox }: ExportSandbox): Promise<void> {
  await until('exports are closed', async () =>
    (await sandbox.client.exports()).every(({ state }) => state === 'closed'),
  );
}

t.test('exports', { skip }, async t => {
  t.test('leaves of a template are private, and found again after each end', async t => {
    const made = await ExportSandbox.start(t);
    const { sandbox, root } = made;
    const { client } = sandbox;
    const again = async (): Promise<void> => {
      await sandbox.startDaemon();
      await sandbox.client.listen({ uri: `nbd+unix://${made.socket}` });
      await sandbox.client.addTemplate({ root, dir: made.path('vms'), prefix: 'web-' });
    };
    t.match(await client.addTemplate({ root, dir: made.path('vms'), prefix: 'web-' }), {
      prefix: 'web-',
      open: 0,
    });
    const [one, two] = [made.uri('web-1'), made.uri('web-2')];
    await write(one, 1, '1M', '64k');
    await write(two, 2, '1M', '64k');
    t.match(await client.exports(), [
      { name: 'web-1', template: 'web-', changed: 65_536, size: ROOT_BYTES },
      { name: 'web-2', template: 'web-', changed: 65_536 },
    ]);
    t.ok(await holds(one, 1, '1M', '64k'));
    t.ok(await holds(two, 2, '1M', '64k'));
    await sandbox.stopDaemon();
    t.same(readdirSync(made.path('vms')).sort(), ['web-1.leaf', 'web-2.leaf']);
    for (const name of ['web-1', 'web-2'])
      t.match((await sandbox.ubd(['check', made.path(`vms/${name}.leaf`)])).stdout, /no problems/);
    await again();
    t.ok(await holds(one, 1, '1M', '64k'), 'after an orderly end');
    await write(one, 3, '2M', '64k');
    await sandbox.kill();
    await again();
    t.ok(await holds(one, 3, '2M', '64k'), 'after a crash: what was flushed');
    t.ok(await holds(two, 2, '1M', '64k'));
    t.ok(made.rootIsUntouched());
  });

  t.test('closed after the last client, it costs nothing and can be attached', async t => {
    const made = await ExportSandbox.start(t);
    const { sandbox, root } = made;
    const { client } = sandbox;
    await client.addExport({ name: 'web', root, sizeBytes: 2 * ROOT_BYTES });
    await write(made.uri('web'), 1, '20M', '64k');
    t.match(await client.exports(), [{ state: 'open', size: 2 * ROOT_BYTES }]);
    t.match((await sandbox.ubd(['list', '--exports'])).stdout, /^NAME .*\nweb +open .* 32M +64K /);
    t.match(JSON.parse((await sandbox.ubd(['list', '--exports', '--json'])).stdout), [
      { name: 'web', state: 'open' },
    ]);
    t.match((await sandbox.ubd(['status'])).stdout, /exports: +\d clients?, at nbd\+unix:/);
    await t.rejects(client.attach({ root, name: 'web' }), { code: 'busy' }, 'not both at once');
    await allClosed(made);
    t.match(await client.exports(), [{ state: 'closed', connections: 0, size: null }]);
    if (await missing('/dev/fuse', '/dev/loop-control')) return;
    await client.attach({ root, name: 'web' });
    const refused = await tryRun('nbdinfo', [made.uri('web')]);
    t.not(refused.status, 0, 'nor the other way round');
    t.match(sandbox.log(), /web\.leaf is in use by device web/);
    await t.rejects(
      client.addExport({ name: 'two', leaf: sandbox.path('state/leaves/web.leaf') }),
      {
        code: 'busy',
        message: /device web/,
      },
    );
    await client.detach('web');
    t.ok(await holds(made.uri('web'), 1, '20M', '64k'));
  });

  t.test('an ephemeral export lasts as long as its clients', async t => {
    const made = await ExportSandbox.start(t);
    const { sandbox, root } = made;
    await sandbox.client.addExport({ name: 'ci', root, ephemeral: true });
    await write(made.uri('ci'), 1, '0', '64k');
    t.ok(await holds(made.uri('ci'), 1, '0', '64k'), 'the next client may come at once');
    await allClosed(made);
    t.notOk(await holds(made.uri('ci'), 1, '0', '64k'));
    await write(made.uri('ci'), 1, '0', '64k');
    await sandbox.kill();
    t.equal(readdirSync(made.path('state/ephemeral')).length, 1);
    await sandbox.startDaemon();
    await until(
      'what a crash left is removed',
      () => readdirSync(made.path('state/ephemeral')).length === 0,
    );
  });

  t.test('removed with force, its clients are cut off and its leaf is clean', async t => {
    const made = await ExportSandbox.start(t);
    const { sandbox, root } = made;
    const { client } = sandbox;
    await client.addExport({ name: 'web', root });
    const bench = spawn('qemu-img', [
      ...['bench', '-w', '-f', 'raw', '-c', '100000000', '-d', '8', made.uri('web')],
    ]);
    const ended = new Promise<number>(resolve => bench.on('exit', code => resolve(code ?? -1)));
    await until('it writes', async () => {
      const [found] = await client.exports();
      return (found?.requests?.writes ?? 0) > 100;
    });
    await t.rejects(client.removeExport('web'), { code: 'busy', message: /client/ });
    t.match(await client.removeExport('web', { force: true }), { name: 'web', state: 'open' });
    t.not(await ended, 0);
    t.same(await client.exports(), []);
    const leaf = sandbox.path('state/leaves/web.leaf');
    t.match(await client.info(leaf), { kind: 'leaf', clean: true, inUseBy: null });
  });

  t.test('the interface refuses what makes no sense, field by field', async t => {
    const made = await ExportSandbox.start(t);
    const { sandbox, root } = made;
    const { client } = sandbox;
    const usage = { code: 'usage' };
    await t.rejects(client.addExport({ name: '../x', root }), usage);
    await t.rejects(client.addExport({ name: 'x' } as never), usage, 'no root, and no leaf');
    await t.rejects(client.addExport({ name: 'x', root, sizeBytes: 100 }), usage);
    await t.rejects(client.addExport({ name: 'x', root, ephemeral: true, readOnly: true }), usage);
    await t.rejects(client.addExport({ name: 'x', root, nosuch: 1 } as never), usage);
    await t.rejects(client.addExport({ name: 'x', root: `${root}-not` }), { code: 'not-found' });
    await t.rejects(client.addTemplate({ root }), usage);
    await t.rejects(client.addTemplate({ root, dir: '/x', ephemeral: true }), usage);
    await t.rejects(client.addTemplate({ root, dir: '/x', prefix: '../' }), usage);
    await t.rejects(client.addTemplate({ root, dir: '/x', leavesMax: 0 }), usage);
    await t.rejects(client.listen({ uri: 'http://x' }), usage);
    await t.rejects(client.listen({ uri: 'nbd://0.0.0.0:0' }), usage);
    await t.rejects(client.unlisten('nbd://127.0.0.1:1'), { code: 'not-found' });
    await t.rejects(client.removeExport('nosuch'), { code: 'not-found' });
    t.same(await client.exports(), []);
    t.same(await client.templates(), []);
    const [listener] = await client.listeners();
    t.match(listener, { uri: `nbd+unix:///?socket=${made.socket}`, tls: 'none' });
    t.match(await client.status(), { exports: { listeners: [listener!.uri], connections: 0 } });
    await client.unlisten(listener!.uri);
    await until('the socket is removed', () => !existsSync(made.socket));
  });
});

t.test('ubd serve', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  await sandbox.stopDaemon();
  const root = sandbox.path('root.img');
  await run('truncate', ['-s', '8M', root]);
  const socket = sandbox.path('s');
  let serving: ChildProcess | undefined;
  t.teardown(() => serving?.kill('SIGKILL'));

  t.test('its line makes listeners, exports and templates', async t => {
    const args = [
      ...['serve', '--listen', `nbd+unix://${socket}`, '--listen', 'nbd://127.0.0.1:0'],
      ...['--export', `web=${root},size=16M,description=a disk,, really`],
      ...['--export', `later=${root}-not-there`],
      ...['--template', `${root},dir=${sandbox.path('vms')},prefix=vm-,max=2`],
    ];
    serving = spawn(process.execPath, [CLI, ...args], { env: sandbox.env, stdio: 'ignore' });
    const client = await sandbox.connect().catch(() => undefined);
    t.equal(client, undefined, 'it takes its time');
    await until('it listens', () => existsSync(socket));
    const connected = await sandbox.connect();
    t.equal((await connected.listeners()).length, 2);
    const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
    const info = JSON.parse(await run('nbdinfo', ['--json', uri('web')]));
    t.match(info.exports, [{ 'export-size': 16 * 1024 * 1024, description: 'a disk, really' }]);
    await run('nbdinfo', [uri('vm-1')]);
    await run('nbdinfo', [uri('vm-2')]);
    t.not((await tryRun('nbdinfo', [uri('vm-3')])).status, 0, 'no more than max');
    t.not((await tryRun('nbdinfo', [uri('later')])).status, 0);
    await run('truncate', ['-s', '8M', `${root}-not-there`]);
    await run('nbdinfo', [uri('later')]);
    t.match(sandbox.log(), /export later: .*not-there/, 'a warning at the start');
    const ended = new Promise(resolve => serving!.once('exit', resolve));
    serving.kill('SIGTERM');
    t.equal(await ended, 0);
    t.notOk(existsSync(socket));
  });

  t.test('mistakes on its line end it at once, with status 2 and a reason', async t => {
    const listen = ['--listen', `nbd+unix://${socket}`];
    const cases: [string[], RegExp][] = [
      [['--export', `web=${root}`], /there is no --listen/],
      [['--listen', 'nbd://0.0.0.0'], /without TLS/],
      [['--listen', 'nbds://127.0.0.1'], /no certificate/],
      [['--listen', 'tcp://127.0.0.1'], /begins with nbd/],
      [[...listen, '--export', `=${root}`], /name/],
      [[...listen, '--export', `web=${root},leaf`], /leaf needs a value/],
      [[...listen, '--export', `web=${root},readonly=1`], /takes no value/],
      [[...listen, '--export', `web=${root},size=big`], /no size/],
      [[...listen, '--export', `web=${root},nosuch=1`], /none of/],
      [
        [...listen, '--export', `web=${root}`, '--export', `web=${root}`],
        /two exports of the name web/,
      ],
      [[...listen, ...listen], /two listeners at nbd\+unix:/],
      [[...listen, '--template', root], /dir=DIR/],
      [[...listen, '--template', `${root},dir=/x,max=none`], /a count/],
      [[...listen, '--tls-psk', '/x', '--tls-dir', '/y'], /not with both/],
    ];
    for (const [args, why] of cases) {
      const { status, stderr } = await sandbox.ubd(['serve', ...args], { allowFailure: true });
      t.match(stderr, why, args.join(' '));
      t.equal(status, 2);
    }
    const { status, stderr } = await sandbox.ubd(['serve', ...listen, '--tls-dir', '/nosuch'], {
      allowFailure: true,
    });
    t.match(stderr, /server-cert\.pem/);
    t.equal(status, 1);
    await sleep(0);
  });

  t.test('a port that is taken ends it, in order', async t => {
    const { createServer } = await import('node:net');
    const other = createServer();
    await new Promise<void>(resolve => other.listen(0, '127.0.0.1', resolve));
    const { port } = other.address() as { port: number };
    const { status, stderr } = await sandbox.ubd(['serve', '--listen', `nbd://127.0.0.1:${port}`], {
      allowFailure: true,
    });
    other.close();
    t.equal(status, 1);
    t.match(stderr, /another server listens there|EADDRINUSE/);
  });
});
