/** Goal: devices are what they say, and come and go as they are told, with all that they make. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import t, { type Test } from 'tap';
import type {
  AttachResult,
  Device,
  DeviceInfo,
  Status,
  TransportName,
} from '../../../src/client/api.ts';
import { DEVICES, missing } from '../requires.ts';
import { run, tryRun, until } from '../run.ts';
import { type Host, leads, makeHost, ROOT_BYTES, read, readLink, write } from './host.ts';

export async function testDevices(transport: TransportName): Promise<void> {
  const skip = await missing(...DEVICES);
  const skipPartitions = await missing(...DEVICES, 'sfdisk', 'partx');
  const host = (t: Test): Host => makeHost(t, transport);

  t.test('one command makes a disk, and the daemon that it needs', { skip }, async t => {
    const made = host(t);
    const { ubd, root, dir, json, pid } = made;
    const attach = await ubd('attach', 'root.img', '--name', 'web');
    t.match(attach, { status: 0, stderr: '', stdout: /^\/dev\/ubd\d+\n$/ });
    const link = attach.stdout.trim();
    t.equal(await read(link, 7), 'root sector 7');
    await write(link, 'mine', 7);
    t.equal(await read(link, 7), 'mine');

    const [device] = await json<Device[]>('list');
    t.match(device, {
      device: link,
      node: readlinkSync(link),
      name: 'web',
      root,
      leaf: `${dir}/state/leaves/web.leaf`,
      transport,
      size: ROOT_BYTES,
      changed: 512,
      state: 'attached',
      readOnly: false,
      ephemeral: false,
    });
    for (const target of ['web', link, device!.node!]) {
      const info = await json<DeviceInfo>('info', target);
      t.match(info, {
        kind: 'device',
        name: 'web',
        users: [],
        identity: { sizeBytes: ROOT_BYTES },
      });
      t.ok(info.requests!.writes >= 1);
    }
    t.match(await json<Status>('status'), {
      pid: Number,
      version: /^\d/,
      state: 'running',
      devices: { attached: 1, failed: 0 },
      transports: [
        { name: 'ublk' },
        { name: 'nbd' },
        { name: 'loop', offered: true, reason: null },
      ],
      stateDir: `${dir}/state`,
    });
    const stat = readFileSync(`/proc/${await pid()}/stat`, 'utf8')
      .split(') ')[1]!
      .split(' ');
    t.equal(Number(stat[3]), await pid(), 'the daemon has a session of its own');
    t.equal(readlinkSync(`/proc/${await pid()}/cwd`), '/');

    t.match(await ubd('list'), { stdout: /^NAME +DEVICE .*\nweb +\/dev\/ubd\d+ / });
    t.match(await ubd('detach', 'web'), { status: 0, stdout: '', stderr: '' });
    t.notOk(leads(link, made));
    const again = await ubd('attach', '--name', 'web');
    t.equal(again.status, 0, 'the root is known by the leaf');
    t.equal(await read(again.stdout.trim(), 7), 'mine');
    const original = readFileSync(root)
      .subarray(7 * 512, 7 * 512 + 13)
      .toString();
    t.equal(original, 'root sector 7', 'the root is as it was');
  });

  t.test('one leaf is one device, one name one device', { skip }, async t => {
    const { ubd, dir } = host(t);
    const leaf = `${dir}/a.leaf`;
    t.match(await ubd('attach', 'root.img', '--leaf', leaf), { status: 0 });
    t.match(await ubd('attach', 'root.img', '--leaf', leaf, '--name', 'b'), {
      status: 1,
      stderr: /a\.leaf is in use by device a\n.*ubd detach a/s,
    });
    t.match(await ubd('attach', 'root.img', '--name', 'a'), {
      status: 1,
      stderr: /name a is taken/,
    });
    const other = host(t);
    t.match(await other.ubd('attach', '--leaf', leaf, '--name', 'c'), {
      status: 1,
      stderr: /a\.leaf is in use by process \d+/,
    });
    t.match(await ubd('check', leaf), { status: 1, stderr: /in use/ });
  });

  t.test(
    'what cannot be a root, and a root that is another one, are refused',
    { skip },
    async t => {
      const { ubd, dir, root, json } = host(t);
      t.match(await ubd('attach', root, '--name', 'web'), { status: 0 });
      t.match(await ubd('detach', 'web'), { status: 0 });
      for (const [name, bytes, message] of [
        ['empty.img', 0, /empty\.img: is empty \(0 bytes\)/],
        ['odd.img', 5000, /odd\.img: has 5000 bytes, which is not a multiple of 512/],
      ] as const) {
        writeFileSync(`${dir}/${name}`, Buffer.alloc(bytes, 'x'));
        t.match(await ubd('attach', name), { status: 1, stderr: message });
      }
      t.match(await ubd('attach', 'gone.img'), {
        status: 1,
        stderr: /gone\.img: there is no such root/,
      });
      t.match(await ubd('attach', dir), { status: 1, stderr: /is a directory/ });
      t.match(await ubd('attach', root, '--size', '1M'), {
        status: 2,
        stderr: /smaller than its root/,
      });
      t.match(await ubd('attach', root, '--leaf', root), { status: 1, stderr: /not a leaf/ });

      writeFileSync(root, Buffer.alloc(ROOT_BYTES, 'another'));
      const refused = await ubd('attach', root, '--name', 'web', '--json');
      t.equal(refused.status, 1);
      t.match(JSON.parse(refused.stderr), {
        error: { code: 'root-mismatch', place: { file: root }, next: String },
      });
      t.match(
        JSON.parse(refused.stderr).error.message,
        /fingerprint [0-9a-f]{64}; expected .*[0-9a-f]{64}/,
      );
      truncateSync(root, ROOT_BYTES / 2);
      t.match(await ubd('attach', root, '--name', 'web'), { status: 1, stderr: /4194304 bytes/ });
      t.same(await json('list'), []);
      t.same(readdirSync(`${dir}/state/leaves`), ['web.leaf'], 'refused attaches leave no leaves');
    },
  );

  t.test('unknown devices are named', { skip }, async t => {
    const { ubd } = host(t);
    await ubd('attach', 'root.img', '--ephemeral', '--name', 'a');
    t.match(await ubd('detach', 'b'), { status: 1, stderr: /there is no device b\n.*ubd list/s });
    t.match(await ubd('detach', '/dev/ubd99999'), {
      status: 1,
      stderr: /no device \/dev\/ubd99999/,
    });
    t.match(await ubd('detach', 'a', 'b'), { status: 1, stderr: /no device b/ }, 'a is detached');
    t.match(await ubd('list', '--json'), { stdout: '[]\n' });
  });

  t.test('a mounted device is not detached, and with force it goes later', { skip }, async t => {
    const made = host(t);
    const { ubd, dir, json } = made;
    const image = `${dir}/fs.img`;
    writeFileSync(image, '');
    truncateSync(image, 32 * 1024 * 1024);
    await run('mkfs.ext4', ['-q', '-F', image]);
    const link = (await ubd('attach', image, '--name', 'web', '--ephemeral')).stdout.trim();
    const place = `${dir}/a place`;
    await run('mkdir', [place]);
    await run('mount', [link, place]);
    t.teardown(() => tryRun('umount', ['--lazy', place]));
    const busy = await ubd('detach', 'web', '--json');
    t.equal(busy.status, 1);
    t.match(JSON.parse(busy.stdout), [
      { name: 'web', error: { code: 'busy', message: `mounted on ${place}`, next: /unmount/ } },
    ]);
    t.match(await ubd('detach', '--all'), { status: 1, stderr: /mounted on .*a place/ });
    t.ok(leads(link, made));
    t.match((await json<DeviceInfo>('info', 'web')).users, [/mounted on .*a place/]);
    writeFileSync(`${place}/still`, 'works');

    t.match(await ubd('detach', 'web', '--force'), { status: 0 });
    t.notOk(leads(link, made), 'nobody new finds it');
    t.match(await json('list'), [{ name: 'web', state: 'detaching', device: null }]);
    writeFileSync(`${place}/also`, 'this');
    t.equal(readFileSync(`${place}/still`, 'utf8'), 'works', 'its user goes on');
    await run('umount', [place]);
    await until('the device goes with its user', async () => (await json<[]>('list')).length === 0);
    t.same(readdirSync(`${dir}/state/ephemeral`), []);
  });

  t.test('partitions get links, also those made later', { skip: skipPartitions }, async t => {
    const { ubd, json } = host(t);
    const link = (await ubd('attach', 'root.img', '--name', 'disk')).stdout.trim();
    const table = 'label: gpt\nsize=2MiB\nsize=2MiB\n';
    await run('sfdisk', ['--quiet', '--no-reread', link], { input: table });
    // Also for kernels that read no partition tables themselves.
    await run('partx', ['--update', link]);
    await until('the links are there', () => existsSync(`${link}p1`) && existsSync(`${link}p2`));
    t.same((await json<DeviceInfo>('info', 'disk')).partitions, [`${link}p1`, `${link}p2`]);
    t.equal(readlinkSync(`${link}p2`), `${readlinkSync(link)}p2`);
    await run('mkfs.ext4', ['-q', `${link}p1`]);
    await run('partx', ['--delete', '--nr', '2', link]);
    await until('the link of a deleted one is gone', () => readLink(`${link}p2`) === undefined);
    await ubd('detach', 'disk');
    const again = (await ubd('attach', '--name', 'disk')).stdout.trim();
    await run('partx', ['--update', again]);
    await until('it is there again', () => existsSync(`${again}p1`));
    await run('e2fsck', ['-f', '-n', `${again}p1`]);
  });

  t.test('a hundred devices in one go, each with its result', { skip }, async t => {
    const made = host(t);
    const { ubd, json, dir } = made;
    const hundred = await ubd('attach', 'root.img', '--ephemeral', '--name', 'ci', '-n', '100');
    t.equal(hundred.status, 0);
    const links = hundred.stdout.trim().split('\n');
    t.equal(new Set(links).size, 100);
    t.ok(links.every(link => statSync(link).isBlockDevice()));
    await Promise.all([write(links[3]!, 'three', 0), write(links[70]!, 'seventy', 0)]);
    t.equal(await read(links[3]!, 0), 'three');
    t.equal(await read(links[70]!, 0), 'seventy');
    t.equal(await read(links[71]!, 0), 'root sector 0');
    const partly = await ubd('attach', 'root.img', '--ephemeral', '--name', 'ci-7,new', '--json');
    t.equal(partly.status, 1);
    t.match(JSON.parse(partly.stdout) as AttachResult[], [
      { error: { code: 'exists' } },
      { device: { name: 'new' } },
    ]);
    t.equal((await json<Device[]>('list')).length, 101);
    t.match(await ubd('detach', '--all'), { status: 0 });
    t.same(await json('list'), []);
    t.same(readdirSync(`${dir}/state/ephemeral`), []);
    t.notOk(links.some(link => leads(link, made)));
  });

  t.test('larger, read-only and ephemeral devices are what they say', { skip }, async t => {
    const { ubd, root } = host(t);
    const big = (await ubd('attach', root, '--size', '12M', '--name', 'big')).stdout.trim();
    t.equal((await run('blockdev', ['--getsize64', big])).trim(), String(12 * 1024 * 1024));
    t.equal(await read(big, 20_000), '', 'beyond the root there are zeroes');
    t.match(await ubd('detach', 'big'), { status: 0 });
    t.match(await ubd('attach', '--name', 'big', '--size', '13M'), {
      status: 2,
      stderr: /new leaves/,
    });

    const bare = (await ubd('attach', root, '--read-only', '--name', 'bare')).stdout.trim();
    t.equal((await run('blockdev', ['--getro', bare])).trim(), '1');
    await t.rejects(write(bare, 'no', 0));
    t.equal(await read(bare, 9), 'root sector 9');
    const frozen = (await ubd('attach', '--read-only', '--name', 'big')).stdout.trim();
    t.equal((await run('blockdev', ['--getro', frozen])).trim(), '1', 'with a leaf, too');
  });

  t.test('a leaf lives on a block device as well', { skip }, async t => {
    const { ubd, dir, end } = host(t);
    writeFileSync(`${dir}/disk`, '');
    truncateSync(`${dir}/disk`, 16 * 1024 * 1024);
    const disk = (await run('losetup', ['--find', '--show', `${dir}/disk`])).trim();
    t.teardown(() => tryRun('losetup', ['--detach', disk]));
    const attach = ['attach', 'root.img', '--leaf', disk, '--name', 'web'];
    const link = (await ubd(...attach)).stdout.trim();
    await write(link, 'on a disk', 3);
    t.match(await ubd('detach', 'web'), { status: 0 });
    const again = (await ubd(...attach)).stdout.trim(); // the second time it is a leaf already
    await end('SIGKILL');
    t.match(await ubd('list'), { status: 0, stdout: /web .*attached/ });
    t.equal(await read(again, 3), 'on a disk');
    t.match(await ubd('detach', 'web'), { status: 0 });
    t.ok(statSync(disk).isBlockDevice(), 'the node of the disk is still there');
    await run('dd', [`of=${disk}`, 'bs=4096', 'conv=notrunc'], { input: 'x'.repeat(65_536) });
    t.match(await ubd(...attach), { status: 1, stderr: /not empty.*\n.*wipe/ });
    t.ok(statSync(disk).isBlockDevice());
  });
}
