/**
 * Goal: an export stands on whatever a device may stand on: a root behind HTTP or NBD, and one that
 * is called by its name; and its leaf keeps to its quota. Method: real servers, which go away and
 * come back; real clients; what they read is compared with the root.
 */
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { CMD, ERROR, SIMPLE_REPLY } from '../../src/transport/nbd/wire.ts';
import { ExportSandbox, ROOT_BYTES } from '../support/export-sandbox.ts';
import { NbdCaller } from '../support/nbd-caller.ts';
import { request } from '../support/nbd-words.ts';
import { nbdkit, nginx } from '../support/remote-servers.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';

const MIB = 1024 * 1024;

t.setTimeout(900_000); // for what hangs

const skip = await missing('root', 'qemu-img', 'qemu-io');
const skipNginx = skip || (await missing('nginx'));
const skipNbdkit = skip || (await missing('nbdkit'));

function io(uri: string, ...commands: string[]): Promise<{ status: number; stdout: string }> {
  const readOnly = commands.every(one => one.startsWith('read')) ? ['-r'] : [];
  return tryRun('qemu-io', [
    ...readOnly,
    '-f',
    'raw',
    ...commands.flatMap(one => ['-c', one]),
    uri,
  ]);
}

async function closed({ sandbox }: ExportSandbox, name: string): Promise<void> {
  await until(`the export ${name} is closed`, async () => {
    const found = (await sandbox.client.exports()).find(one => one.name === name);
    return found === undefined || found.state === 'closed';
  });
}

/** What an export of a remote root must be able to do, whatever it comes from. */
async function worksOver(t: Test, made: ExportSandbox, name: string, root: string): Promise<void> {
  const { client } = made.sandbox;
  await client.addTemplate({ root, dir: made.path('leaves'), prefix: `${name}-` });
  const uri = made.uri(`${name}-1`);
  const compare = ['compare', '-f', 'raw', '-F', 'raw', uri];
  t.match(await run('qemu-img', [...compare, made.root]), /identical/);
  t.equal((await io(uri, 'write -P 7 1M 64k', 'write -z 2M 64k', 'flush')).status, 0);
  const expected = Buffer.from(made.content);
  expected.fill(7, MIB, MIB + 65_536);
  expected.fill(0, 2 * MIB, 2 * MIB + 65_536);
  const image = made.file(`${name}.img`, expected);
  t.match(await run('qemu-img', [...compare, image]), /identical/);
  t.match(await client.exports(), [{ name: `${name}-1`, root, changed: 131_072 }]);
  await client.removeTemplate(`${name}-`, { force: true });
}

t.test('over a root behind HTTP', { skip: skipNginx }, async t => {
  const made = await ExportSandbox.start(t);
  const server = await (await nginx(made.path('nginx'), made.sandbox.dir)).start();
  t.teardown(() => server.kill());
  await worksOver(t, made, 'web', server.url('root.img'));
});

t.test(
  'over a root behind NBD, whose server goes away and comes back',
  {
    skip: skipNbdkit,
  },
  async t => {
    const made = await ExportSandbox.start(t);
    const server = await nbdkit(made.root, made.path('kit.sock')).start();
    t.teardown(() => server.kill());
    await worksOver(t, made, 'kit', server.uri);
    const { client } = made.sandbox;
    await client.setCache({ sizeBytes: 0 });
    await client.addExport({ name: 'ro', root: server.uri, readOnly: true });
    t.equal((await io(made.uri('ro'), 'read 0 4k')).status, 0);
    await server.kill();
    const out = made.path('out.img');
    const copying = run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', made.uri('ro'), out]);
    await until('it is missed', async () =>
      (await client.replicas()).some(({ replicas }) => replicas.some(one => one.state === 'down')),
    );
    await server.start();
    await copying;
    t.ok(readFileSync(out).equals(made.content), 'its reads have waited');
  },
);

t.test(
  'of a root by its name: the version that counts, from the next new leaf on',
  {
    skip,
  },
  async t => {
    const made = await ExportSandbox.start(t);
    const { client } = made.sandbox;
    const content = Buffer.from(made.content);
    content.fill('the next one', 0, MIB);
    const next = made.file('next.img', content);
    await client.addRoot({ name: 'golden', root: made.root });
    await client.addExport({ name: 'seen', root: 'golden', readOnly: true });
    await client.addTemplate({ root: 'golden', dir: made.path('leaves'), prefix: 'vm-' });
    const same = async (name: string, image: string): Promise<void> => {
      const args = ['compare', '-f', 'raw', '-F', 'raw', made.uri(name), image];
      t.match(await run('qemu-img', args), /identical/, `${name} shows ${image}`);
    };
    await same('seen', made.root);
    await same('vm-old', made.root);
    t.equal((await io(made.uri('vm-old'), 'write -P 9 4M 4k', 'flush')).status, 0);
    await closed(made, 'seen');
    await closed(made, 'vm-old');
    await client.changeRoot('golden', { root: next });
    await same('vm-new', next);
    await same('seen', next);
    const expected = Buffer.from(made.content);
    expected.fill(9, 4 * MIB, 4 * MIB + 4096);
    await same('vm-old', made.file('old.img', expected));
  },
);

t.test('the cache and boot packs are told of a root by its name', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox } = made;
  const { client } = sandbox;
  await client.setCache({ sizeBytes: 64 * MIB });
  await client.addRoot({ name: 'golden', root: made.root });
  await client.addExport({ name: 'web', root: 'golden', readOnly: true });
  const cli = async (...args: string[]): Promise<Record<string, unknown>> =>
    JSON.parse((await sandbox.ubd(['cache', ...args, '--json'])).stdout);
  t.match(await cli('warm', 'golden', '--range', '0-1M'), { root: made.root, readBytes: MIB });
  await cli('record', 'golden');
  t.equal((await io(made.uri('web'), 'read 0 64k', 'read 8M 64k')).status, 0);
  t.match(await cli('record', 'golden', '--stop'), { root: made.root, readBytes: 131_072 });
  await closed(made, 'web');
  t.ok(Number((await cli('drop', 'golden')).droppedBytes) >= MIB);
  t.match(await cli('warm', 'golden', '--boot'), { readBytes: 131_072 });
  const unknown = await sandbox.ubd(['cache', 'warm', 'silver'], { allowFailure: true });
  t.equal(unknown.status, 1);
  t.match(unknown.stderr, /no device silver, and no root of that name/);
});

t.test(
  'a quota: a write beyond it fails, says why, and goes through once it is larger',
  {
    skip,
  },
  async t => {
    const made = await ExportSandbox.start(t);
    const { client } = made.sandbox;
    const { root } = made;
    const quota = { name: 'web', root, quotaBytes: 2 * MIB };
    await client.addExport(quota);
    const uri = made.uri('web');
    t.equal((await io(uri, 'write -P 1 0 1M', 'flush')).status, 0);
    const over = await io(uri, 'write -P 2 4M 2M');
    t.not(over.status, 0);
    t.match(over.stdout, /No space left on device/);
    t.equal(
      (await io(uri, 'write -P 3 0 1M', 'flush')).status,
      0,
      'what is there can be rewritten',
    );
    t.match(made.sandbox.log(), /export web: .*has used up its quota/);
    const stays = await NbdCaller.connect({ path: made.socket });
    await stays.begin();
    await stays.go('web');
    const write = async (): Promise<number> => {
      stays.socket.write(
        request({ type: CMD.WRITE, offset: 4 * MIB, data: Buffer.alloc(2 * MIB, 2) }),
      );
      return (await stays.take(SIMPLE_REPLY.size)).readUInt32BE(SIMPLE_REPLY.at.error);
    };
    t.equal(await write(), ERROR.ENOSPC);
    const changed = await client.changeExport('web', { quota: { bytes: 4 * MIB } });
    t.match(changed, { state: 'open', quota: { bytes: 4 * MIB } });
    t.equal(await write(), 0, 'the client that was refused goes on, on the same connection');
    stays.end();
    await closed(made, 'web');
    t.not((await io(uri, 'write -P 2 8M 2M')).status, 0, 'the next opening has the same quota');
    t.equal((await io(uri, 'read -P 3 0 1M', 'read -P 2 4M 2M')).status, 0);
    const left = readFileSync(root);
    t.ok(left.equals(made.content) && left.length === ROOT_BYTES, 'the root is as it was');

    const { leaf } = await client.removeExport('web', { force: true });
    const unknown = await made.sandbox.ubd(['set', 'nobody', '--quota', '1G'], {
      allowFailure: true,
    });
    t.equal(unknown.status, 1);
    t.match(unknown.stderr, /no device nobody, and no export that is open\n.*ubd list --exports/);
    const asking = { bytes: 5 * MIB, warnBytes: 4 * MIB, action: 'reconcile' } as const;
    await client.changeLeaf({ leaf: leaf!, quota: asking });
    await client.addExport({ name: 'web' });
    t.not((await io(uri, 'write -P 5 0 4M')).status, 0);
    const said = /export web: not reconciled: .*ubd reconcile .*web\.leaf/;
    await until('the log says why', () => said.test(made.sandbox.log()));
    t.equal((await client.exports())[0]?.root, root, 'it stands where it stood');
  },
);
