/**
 * Goal: the daemon with real devices: it starts by itself and once, keeps its promises to those who
 * stop or kill it, and lives beside others; on each transport. Method: the real program, in
 * directories of its own.
 */
import {
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import type {
  AttachResult,
  Device,
  DeviceInfo,
  Status,
  TransportName,
} from '../../src/client/api.ts';
import { connect } from '../../src/client/client.ts';
import { IN_GUEST } from './guest.ts';
import { DEVICES, missing } from './requires.ts';
import { type RunResult, run, tryRun, until } from './run.ts';
import { CLI } from './sandbox.ts';

const ROOT_BYTES = 8 * 1024 * 1024;
/** A guest starts programs slowly: more at once would not begin within the client's patience. */
const AT_ONCE = IN_GUEST ? 4 : 10;

interface Host {
  dir: string;
  root: string;
  env: NodeJS.ProcessEnv;
  ubd(...args: string[]): Promise<RunResult>;
  /** Runs a command that must succeed, and reads its JSON. */
  json<T>(...args: string[]): Promise<T>;
  pid(): Promise<number>;
  /** Sends a signal to the daemon, and waits for its end. */
  end(signal: NodeJS.Signals): Promise<void>;
}

/** Directories and a root; no daemon yet. At the end everything is put back. */
function makeHost(t: Test, transport: TransportName): Host {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const root = `${dir}/root.img`;
  const content = Buffer.alloc(ROOT_BYTES);
  for (let i = 0; i < content.length; i += 512) content.write(`root sector ${i / 512}`, i);
  writeFileSync(root, content);
  const ubd = (...args: string[]): Promise<RunResult> => {
    const chosen = args[0] === 'attach' ? ['--transport', transport] : [];
    return tryRun(process.execPath, [CLI, ...args, ...chosen], { env, cwd: dir });
  };
  const made: Host = {
    dir,
    root,
    env,
    ubd,
    async json(...args) {
      const { status, stdout, stderr } = await ubd(...args, '--json');
      if (status !== 0) throw new Error(`ubd ${args.join(' ')}: ${status}: ${stderr}${stdout}`);
      return JSON.parse(stdout);
    },
    async pid() {
      return (await made.json<Status>('status')).pid;
    },
    async end(signal) {
      const pid = await made.pid();
      process.kill(pid, signal);
      await until(`process ${pid} ends after ${signal}`, () => !isAlive(pid));
    },
  };
  t.teardown(async () => {
    await ubd('detach', '--all', '--force');
    if ((await ubd('status')).status === 0) await made.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });
  return made;
}

function isAlive(pid: number): boolean {
  try {
    // A zombie (in a container without an init that reaps) has ended.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** What a link points to, whether that exists or not. */
function readLink(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch {
    return undefined;
  }
}

/**
 * Does the link lead to a device of this host? Other daemons may work at the same time, and take
 * numbers that were given back.
 */
function leads(link: string, { dir }: Host): boolean {
  const node = readLink(link);
  if (node === undefined || !existsSync(node)) return false;
  if (!node.startsWith('/dev/loop')) return true; // a guest of our own: no other daemons
  const owner = readFileSync(`${dir}/state/id`, 'utf8').trim();
  const file = `/sys/block/${node.slice('/dev/'.length)}/loop/backing_file`;
  return existsSync(file) && readFileSync(file, 'utf8').trim().endsWith(`:${owner}`);
}

async function write(device: string, text: string, sector: number): Promise<void> {
  const args = [`of=${device}`, 'bs=512', `seek=${sector}`, 'conv=fsync,notrunc', 'oflag=direct'];
  await run('dd', args, { input: text.padEnd(512, '\0') });
}

async function read(device: string, sector: number): Promise<string> {
  const args = [`if=${device}`, 'bs=512', `skip=${sector}`, 'count=1', 'iflag=direct'];
  return (await run('dd', args)).replace(/\0+$/, '');
}

export async function testLife(transport: TransportName): Promise<void> {
  const skip = await missing(...DEVICES);
  const skipPartitions = await missing(...DEVICES, 'sfdisk', 'partx');
  /** For all: starting programs is slow where others keep the machine busy. */
  if (!IN_GUEST) t.setTimeout(600_000); // a guest may be emulated, and has its own limit
  const host = (t: Test): Host => makeHost(t, transport);
  const outlives = transport !== 'loop';

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
