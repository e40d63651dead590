/** Goal: a daemon starts by itself and once, keeps its promises to those who stop or kill it. */
import {
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import t, { type Test } from 'tap';
import type { Device, TransportName } from '../../../src/client/api.ts';
import { connect } from '../../../src/client/client.ts';
import { DEVICES, missing } from '../requires.ts';
import { run, tryRun } from '../run.ts';
import { AT_ONCE, type Host, leads, makeHost, read, write } from './host.ts';

export async function testDaemons(transport: TransportName): Promise<void> {
  const skip = await missing(...DEVICES);
  const host = (t: Test): Host => makeHost(t, transport);
  const outlives = transport !== 'loop';

  t.test(`${AT_ONCE} commands at once start one daemon`, { skip }, async t => {
    const { ubd, json } = host(t);
    const results = await Promise.all(
      Array.from({ length: AT_ONCE }, (_, i) =>
        ubd('attach', 'root.img', '--ephemeral', '--name', `d${i}`),
      ),
    );
    t.same(
      results.filter(({ status }) => status !== 0),
      [],
    );
    t.equal(new Set(results.map(({ stdout }) => stdout)).size, AT_ONCE);
    t.equal((await json<Device[]>('list')).length, AT_ONCE, 'all at the same daemon');
  });

  t.test('a second daemon in the same place is refused', { skip }, async t => {
    const { ubd, dir, pid } = host(t);
    await ubd('attach', 'root.img', '--ephemeral');
    const first = await pid();
    t.match(await ubd('serve'), { status: 1, stderr: `another daemon is running (pid ${first}` });
    t.match(await ubd('serve', '--runtime-dir', `${dir}/run2`), {
      status: 1,
      stderr: /another daemon/,
    });
    t.match(await ubd('serve', '--state-dir', `${dir}/state2`), {
      status: 1,
      stderr: /another daemon/,
    });
    t.match(await ubd('list', '--state-dir', `${dir}/state2`), {
      status: 1,
      stderr: /keeps its state in .*state, not in .*state2\n.*UBD_RUNTIME_DIR/s,
    });
    t.equal(await pid(), first);
  });

  t.test('two daemons live side by side', { skip }, async t => {
    const [a, b] = [host(t), host(t)];
    const devices = await Promise.all(
      [a, b].map(one => one.json<Device>('attach', 'root.img', '--name', 'web')),
    );
    t.not(devices[0]!.device, devices[1]!.device);
    await write(devices[0]!.device!, 'of a', 1);
    await a.end('SIGKILL');
    t.equal(await read(devices[1]!.device!, 1), 'root sector 1', 'the other one does not notice');
    t.match(await a.json('list'), [{ name: 'web', device: devices[0]!.device }]);
    t.match(await b.json('list'), [{ name: 'web', device: devices[1]!.device }]);
    t.equal(await read(devices[0]!.device!, 1), 'of a');
  });

  t.test('a killed daemon is followed by one that brings the devices back', { skip }, async t => {
    const made = host(t);
    const { ubd, json, end, dir } = made;
    const links = (await ubd('attach', 'root.img', '--name', 'a,b,c')).stdout.trim().split('\n');
    await ubd('attach', 'root.img', '--name', 'gone', '--ephemeral');
    const before = await json<Device[]>('list');
    for (const [i, link] of links.entries()) await write(link, `kept ${i}`, 5);
    await ubd('detach', 'b');
    await end('SIGKILL');
    t.ok(existsSync(`${dir}/run/ubd.sock`), 'it had no time to clean up');
    const after = await json<Device[]>('list');
    t.same(
      after.map(({ name, device, leaf }) => ({ name, device, leaf })),
      before
        .filter(({ name }) => name !== 'b')
        .map(({ name, device, leaf }) => ({ name, device, leaf })),
      'same names, same links',
    );
    t.equal(await read(links[0]!, 5), 'kept 0');
    t.equal(await read(links[2]!, 5), 'kept 2');
    t.notOk(leads(links[1]!, made));
    const again = (await ubd('attach', '--name', 'b')).stdout.trim();
    t.equal(await read(again, 5), 'kept 1');
  });

  t.test(
    'SIGTERM ends it in order, and the devices come back with the next one',
    { skip },
    async t => {
      const made = host(t);
      const { ubd, json, end, dir } = made;
      const link = (await ubd('attach', 'root.img', '--name', 'web')).stdout.trim();
      await write(link, 'kept', 5);
      await ubd('attach', 'root.img', '--name', 'fails', '--leaf', `${dir}/fails.leaf`);
      await end('SIGTERM');
      t.notOk(leads(link, made));
      t.notOk(existsSync(`${dir}/run/ubd.sock`));
      t.match(readFileSync(`${dir}/state/ubd.log`, 'utf8'), /web: stopped, its leaf is durable/);
      t.match(await json('info', `${dir}/fails.leaf`), {
        clean: true,
        inUseBy: null,
        device: null,
      });
      t.match(await ubd('status'), { status: 1 }, 'a look at a file starts no daemon');
      rmSync(`${dir}/fails.leaf`);
      const after = await json<Device[]>('list');
      t.match(after, [
        { name: 'web', device: String, state: 'attached' },
        { name: 'fails', device: null, state: 'failed', error: { code: 'not-found' } },
      ]);
      t.equal(await read(after[0]!.device!, 5), 'kept');
      t.match(await ubd('list'), {
        status: 0,
        stdout: /fails .* failed/,
        stderr: /fails: .*fails\.leaf/,
      });
      t.match(await ubd('detach', 'fails'), { status: 0 });
    },
  );

  t.test('SIGTERM with a mounted device makes its leaf durable, and ends', { skip }, async t => {
    const { ubd, dir, end, json } = host(t);
    const image = `${dir}/fs.img`;
    writeFileSync(image, '');
    truncateSync(image, 32 * 1024 * 1024);
    await run('mkfs.ext4', ['-q', '-F', image]);
    const link = (await ubd('attach', image, '--name', 'web')).stdout.trim();
    const place = `${dir}/place`;
    await run('mkdir', [place]);
    await run('mount', [link, place]);
    t.teardown(() => tryRun('umount', ['--lazy', place]));
    writeFileSync(`${place}/file`, 'synced');
    await run('sync', ['-f', place]);
    await end('SIGTERM');
    const log = readFileSync(`${dir}/state/ubd.log`, 'utf8');
    if (outlives) {
      t.match(log, /waits for the next daemon \(in use: mounted on /);
      // Nobody serves it: what is asked of it waits.
      const late = run('sh', ['-c', 'echo late > "$1" && sync -f "$1"', 'sh', `${place}/late`]);
      const [back] = await json<Device[]>('list');
      t.match(back, { name: 'web', device: link, state: 'attached' });
      await late;
      t.equal(readFileSync(`${place}/file`, 'utf8'), 'synced');
      await run('umount', [place]);
      await run('e2fsck', ['-f', '-n', link]);
      return;
    }
    t.match(log, /goes away while in use: mounted on .*place/);
    await tryRun('umount', [place]);
    const [back] = await json<Device[]>('list');
    t.match(back, { name: 'web', device: String, state: 'attached' });
    await run('mount', [back!.device!, place]);
    t.equal(readFileSync(`${place}/file`, 'utf8'), 'synced');
    await run('umount', [place]);
  });

  t.test('a daemon that cannot start says why', { skip }, async t => {
    const { ubd, dir } = host(t);
    writeFileSync(`${dir}/state`, 'a file where the directory should be');
    t.match(await ubd('attach', 'root.img'), { status: 1, stderr: /log|state/ });
    rmSync(`${dir}/state`);
    mkdirSync(`${dir}/run`);
    chownSync(`${dir}/run`, 65_534, 65_534);
    t.match(await ubd('attach', 'root.img'), {
      status: 1,
      stderr:
        /ended at its start \(exit status 1\)\n.* it ends with:\n.*run belongs to user 65534/s,
    });
    chownSync(`${dir}/run`, 0, 0);
    t.match(await ubd('attach', 'root.img', '--ephemeral'), { status: 0 });
  });

  t.test('a TypeScript program has the same at hand', { skip }, async t => {
    const { dir, root } = host(t);
    const ubd = await connect({ stateDir: `${dir}/state`, runtimeDir: `${dir}/run` });
    const disk = await ubd.attach({ root, name: 'web', transport });
    await write(disk.device!, 'mine', 0);
    t.match(await ubd.list(), [{ name: 'web', changed: 512 }]);
    t.match(await ubd.info('web'), { kind: 'device' });
    t.match(await ubd.status(), { state: 'running' });
    await t.rejects(ubd.attach({ root, name: 'web', transport }), {
      name: 'UbdError',
      code: 'exists',
    });
    const { leaf } = await ubd.detach('web');
    t.match(await ubd.check({ leaf: leaf!, root: true }), {
      ok: true,
      root: { result: 'recorded' },
    });
    t.match(await ubd.check({ leaf: leaf!, root: true }), {
      ok: true,
      root: { result: 'matches' },
    });
    await t.rejects(connect({ stateDir: `${dir}/x`, runtimeDir: `${dir}/x`, start: false }), {
      code: 'daemon',
    });
  });
}
