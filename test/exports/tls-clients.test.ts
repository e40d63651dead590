/**
 * Goal: qemu's and libnbd's TLS (GnuTLS) and ours understand each other: certificates and keys in
 * the files that their users have. Method: the programs, over TCP and a unix socket.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { Authority } from '../support/certificates.ts';
import { ExportSandbox } from '../support/export-sandbox.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';

t.setTimeout(900_000); // for what hangs

const skip = await missing('root', 'openssl', 'nbdcopy', 'nbdinfo', 'qemu-img');
const skipKeys = skip || (await missing('psktool'));

t.test('certificates', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root, content } = made;
  const { client } = sandbox;
  const authority = await Authority.make(made.path('ca'));
  const { uri } = await client.listen({
    uri: 'nbds://127.0.0.1:0',
    tlsDir: await authority.server(),
  });
  const port = /:(\d+)$/.exec(uri)![1]!;
  const pki = await authority.client('web');
  await client.addExport({ name: 'web', root });
  await client.addExport({ name: 'shared', root, readOnly: true, allow: ['*'] });
  await client.addTemplate({ root, dir: made.path('vms') });
  const at = (name: string): string => `nbds://localhost:${port}/${name}?tls-certificates=${pki}`;

  t.test('nbdcopy writes and reads a whole disk over several connections', async t => {
    const image = Buffer.from(content).reverse();
    const source = made.file('image', image);
    const out = made.path('out');
    await run('nbdcopy', ['--connections=4', source, at('web')]);
    await run('nbdcopy', ['--connections=4', at('web'), out]);
    t.ok(readFileSync(out).equals(image));
    await run('nbdcopy', [at('shared'), out]);
    t.ok(readFileSync(out).equals(content));
  });

  t.test('qemu-img, too', async t => {
    const disk = `driver=nbd,host=localhost,port=${port},export=web,tls-creds=tls`;
    const object = ['--object', `tls-creds-x509,id=tls,dir=${pki},endpoint=client`];
    const out = made.path('qemu.img');
    await run('qemu-img', ['convert', ...object, '--image-opts', disk, '-O', 'raw', out]);
    t.ok(readFileSync(out).equals(readFileSync(made.path('image'))));
  });

  t.test('a client gets its own name and no other, and nothing without TLS', async t => {
    const refused = async (uri: string): Promise<string> =>
      (await tryRun('nbdinfo', ['--size', uri])).stderr;
    t.match(await refused(at('vm-1')), /policy/);
    const list = JSON.parse(await run('nbdinfo', ['--json', '--list', at('')]));
    t.same(
      list.exports.map((one: Record<string, string>) => one['export-name']),
      ['web', 'shared'],
    );
    t.match(await refused(`nbd://localhost:${port}/web`), /requires TLS/);
    const stranger = await Authority.make(made.path('stranger'));
    const theirs = await stranger.client('web');
    const foreign = `nbds://localhost:${port}/web?tls-certificates=${theirs}&tls-verify-peer=false`;
    t.not((await tryRun('nbdinfo', [foreign])).status, 0);
  });
});

t.test('keys', { skip: skipKeys }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root } = made;
  const keys = made.path('keys.psk');
  for (const user of ['web', 'bob']) await run('psktool', ['-u', user, '-p', keys]);
  const { uri } = await sandbox.client.listen({ uri: 'nbds://127.0.0.1:0', tlsPsk: keys });
  const port = /:(\d+)$/.exec(uri)![1]!;
  await sandbox.client.addExport({ name: 'web', root });
  const at = (user: string): string =>
    `nbds://${user}@localhost:${port}/web?tls-psk-file=${encodeURIComponent(keys)}`;
  await run('nbdinfo', [at('web')]);
  t.match((await tryRun('nbdinfo', ['--size', at('bob')])).stderr, /policy/);
  const dir = made.path('qemu-keys');
  await run('mkdir', [dir]);
  await run('cp', [keys, `${dir}/keys.psk`]);
  const object = `tls-creds-psk,id=tls,dir=${dir},username=web,endpoint=client`;
  const disk = `driver=nbd,host=localhost,port=${port},export=web,tls-creds=tls`;
  const info = ['info', '--output=json', '--object', object, '--image-opts', disk];
  t.match(JSON.parse(await run('qemu-img', info)), { 'virtual-size': 16 * 1024 * 1024 });
});
