/**
 * Goal: the examples do what the README says of them.
 * Method: an image with a shell and little else; both examples run commands in copies of it.
 */
import { cp, mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { sha256 } from '../support/disk.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

t.setTimeout(900_000); // for what hangs

const project = fileURLToPath(new URL('../../..', import.meta.url));
const skip = await missing(...DEVICES, 'mke2fs', 'ldd', 'chroot', '/bin/sh');

/** An ext4 image with /bin/sh and the libraries that it needs. */
async function shellImage(sandbox: Sandbox): Promise<string> {
  const tree = sandbox.path('tree');
  const libraries = (await run('ldd', ['/bin/sh'])).match(/\/\S+/g) ?? [];
  for (const file of ['/bin/sh', ...libraries]) {
    await mkdir(join(tree, dirname(file)), { recursive: true });
    await cp(file, join(tree, file), { dereference: true });
  }
  const image = sandbox.path('shell.img');
  await run('mke2fs', ['-q', '-t', 'ext4', '-d', tree, image, '64M']);
  return image;
}

t.test('the examples run jobs in copies of an image', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const image = await shellImage(sandbox);
  const before = await sha256(image);
  const options = { env: { ...sandbox.env, UBD: `${process.execPath} ${CLI}` }, cwd: sandbox.dir };
  const job = 'test ! -e /made && echo made > /made && read x < /made && echo "$x $1"';

  const program = join(project, 'dist/examples/sandboxes.js');
  const many = await tryRun(process.execPath, [program, image, '3', 'sh', '-c', job], options);
  t.equal(many.status, 0, many.stderr);
  t.match(many.stdout, /^3 disks in \d+ ms$/m);
  t.equal(many.stdout.match(/^sandbox-\d+-\d: made$/gm)?.length, 3, many.stdout);
  t.same(await sandbox.client.list(), [], 'its disks are gone');
  const unknown = await tryRun(process.execPath, [program, '/no/such.img', '1', 'sh'], options);
  t.equal(unknown.status, 1);
  t.match(unknown.stderr, '/no/such.img');

  const script = join(project, 'examples/ci-job.sh');
  for (const word of ['first', 'second']) {
    const one = await tryRun(script, [image, 'sh', '-c', job, 'sh', word], options);
    t.same([one.status, one.stdout.trim()], [0, `made ${word}`], `fresh each time ${one.stderr}`);
  }
  const failing = await tryRun(script, [image, 'sh', '-c', 'exit 7'], options);
  t.equal(failing.status, 7, 'the status is the job’s');
  t.same(await sandbox.client.list(), [], 'its disk is gone, too');
  t.equal(await sha256(image), before, 'the image is as it was');
});

const HOST = join(project, 'examples/host');

t.test('the unit is one that systemd understands', async t => {
  if ((await tryRun('systemd-analyze', ['--version'])).status !== 0)
    return t.plan(0, 'systemd-analyze is not there');
  const { status, stderr } = await tryRun('systemd-analyze', [
    'verify',
    '--man=no',
    join(HOST, 'ubd.service'),
  ]);
  t.same([status, stderr.split('\n').filter(line => line.includes('ubd.service'))], [0, []]);
});

t.test('the rules are some that udev understands', async t => {
  if ((await tryRun('udevadm', ['verify', '--help'])).status !== 0)
    return t.plan(0, 'udevadm verify is not there (systemd 254 or newer)');
  const { status, stderr } = await tryRun('udevadm', ['verify', join(HOST, '60-ubd.rules')]);
  t.equal(status, 0, stderr);
});
