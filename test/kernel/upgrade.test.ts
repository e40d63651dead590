/**
 * Goal: twenty leaves in different states move to a root with a real `apt upgrade`: each mounts and
 * passes e2fsck, has its own changes and the upgraded files; what both changed, the packages'
 * database first of all, is listed and decided, never merged.
 * Method: a Debian of the release alone; a copy of it with the security archive's upgrades; leaves
 * in which packages were installed and removed by dpkg, files edited, trees moved. It needs this
 * machine's own Debian mirror and takes minutes, so it runs on demand (UBD_TEST_UPGRADE=1).
 * UBD_TEST_DEBIAN_TAR: what mmdebstrap made before.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { FileRebaseReport } from '../../src/life/file-rebase.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(1_200_000);
const LEAVES = 20;
/** Of programs in the image; a place for files that is there. */
const SETTINGS = ['DEBIAN_FRONTEND=noninteractive', 'TMPDIR=/tmp'];
const TIMEOUT_MS = 600_000;

const skip =
  process.env.UBD_TEST_UPGRADE === undefined
    ? 'a real upgrade of Debian: on demand: UBD_TEST_UPGRADE=1'
    : await missing(...DEVICES, 'mmdebstrap', 'mkfs.ext4', 'e2fsck', 'chroot', 'tar');

/** Lines for apt: of this machine's release as it was published, and of all that came later. */
async function sources(): Promise<{ release: string; published: string; later: string }> {
  const release = /^VERSION_CODENAME=(.*)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1];
  const format = 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)';
  const args = ['indextargets', '--format', format, 'Created-By: Packages'];
  const all = [...new Set((await run('apt-get', args)).trim().split('\n'))];
  const of = (line: string): string | undefined => line.split(' ')[2];
  return {
    release: release ?? '',
    published: all.filter(line => of(line) === release).join('\n'),
    later: all.filter(line => of(line)?.startsWith(`${release}-`)).join('\n'),
  };
}

/** Packages as `dpkg-query` lists them: name and version. */
function packages(place: string): Map<string, string> {
  const text = readFileSync(join(place, 'var/lib/dpkg/status'), 'utf8');
  const found = new Map<string, string>();
  for (const stanza of text.split('\n\n')) {
    const field = (name: string): string | undefined =>
      new RegExp(`^${name}: (.*)$`, 'm').exec(stanza)?.[1];
    const name = field('Package');
    if (name !== undefined && field('Status') === 'install ok installed')
      found.set(name, field('Version') ?? '');
  }
  return found;
}

/** What is done in a leaf, by its number; every leaf has a file of its own, too. */
const WORKS: readonly ((place: string, deb: string) => Promise<unknown>)[] = [
  async place => {
    writeFileSync(join(place, 'etc/hostname'), 'mine\n');
  },
  async (place, deb) => {
    await run('cp', [deb, join(place, 'tmp/own.deb')]);
    await run('chroot', [place, 'dpkg', '--force-depends', '-i', '/tmp/own.deb']);
  },
  async place => {
    await run('chroot', [place, 'dpkg', '--force-all', '--purge', 'less']);
  },
  async place => {
    await run('mv', [join(place, 'usr/share/doc'), join(place, 'usr/share/documents')]);
  },
  async place => {
    await run('bash', ['-c', 'echo "# mine" >> etc/ssl/openssl.cnf; rm -r usr/share/man'], {
      cwd: place,
    });
  },
];

t.test('twenty leaves move to an upgraded Debian', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const [tar, base, fresh] = ['base.tar', 'base.img', 'fresh.img'].map(n => sandbox.path(n)) as [
    string,
    string,
    string,
  ];
  const { release, published, later } = await sources();
  const given = process.env.UBD_TEST_DEBIAN_TAR;
  const made = given
    ? await tryRun('cp', [given, tar])
    : await tryRun(
        'mmdebstrap',
        [
          ...['-q', '--variant=apt', '--include=openssl,ca-certificates,less,perl'],
          ...[release, tar, ...published.split('\n')],
        ],
        { timeoutMs: TIMEOUT_MS },
      );
  if (made.status !== 0) {
    t.pass('', { skip: `no Debian can be had here: ${made.stderr.slice(-300)}` });
    return;
  }
  const place = sandbox.path('mnt');
  mkdirSync(place);
  const mounted = async <T>(what: string[], work: () => Promise<T>): Promise<T> => {
    await run('mount', [...what, place]);
    try {
      return await work();
    } finally {
      await run('umount', [place]);
    }
  };

  await run('mkfs.ext4', ['-q', '-F', base, '2G']);
  await mounted(['-o', 'loop', base], () => run('tar', ['-xpf', tar, '-C', place]));
  await run('cp', ['--sparse=always', base, fresh]);
  const deb = sandbox.path('own.deb');
  const upgraded = await mounted(['-o', 'loop', fresh], async () => {
    const before = packages(place);
    writeFileSync(join(place, 'etc/apt/sources.list.d/later.list'), `${later}\n`);
    const resolv = join(place, 'etc/resolv.conf');
    const keep = existsSync(resolv) ? readFileSync(resolv) : null;
    await run('cp', ['-L', '/etc/resolv.conf', resolv]);
    const apt = (...args: string[]): Promise<string> =>
      run('chroot', [place, 'env', ...SETTINGS, 'apt-get', '-q', ...args], {
        timeoutMs: TIMEOUT_MS,
      });
    await apt('update');
    await apt('-y', 'upgrade');
    await apt('-y', 'download', 'jq');
    await run('bash', ['-c', `mv ${place}/jq*.deb ${deb}`]);
    if (keep !== null) writeFileSync(resolv, keep);
    const after = packages(place);
    return [...after].filter(([name, version]) => before.get(name) !== version);
  });
  t.ok(upgraded.length > 0, `upgraded: ${upgraded.map(one => one.join(' ')).join(', ')}`);
  const theirs = await mounted(['-o', 'loop,ro', fresh], () => sums(place));
  const before = await mounted(['-o', 'loop,ro', base], () => sums(place));

  for (let i = 0; i < LEAVES; i++) {
    const leaf = sandbox.path(`${i}.leaf`);
    const disk = await sandbox.attach({ root: base, leaf });
    await mounted([disk.device], async () => {
      writeFileSync(join(place, `root/own-${i}`), `of leaf ${i}\n`);
      await WORKS[i % WORKS.length]!(place, deb);
    });
    const ours = await mounted([disk.device], () => sums(place));
    await sandbox.detach(disk.name);
    const rebase = async (...options: string[]): Promise<FileRebaseReport> => {
      const args = ['rebase', leaf, '--root', fresh, '--json', ...options];
      const { stdout, stderr } = await sandbox.ubd(args, {
        allowFailure: true,
        timeoutMs: TIMEOUT_MS,
      });
      if (stderr !== '') throw new Error(stderr);
      return JSON.parse(stdout)[0].files as FileRebaseReport;
    };
    const first = await rebase();
    const kind = i % WORKS.length;
    const touchesPackages = kind === 1 || kind === 2;
    const databases = first.conflicts.filter(one => one.kind === 'packages');
    t.equal(databases.length > 0, touchesPackages, `leaf ${i}: package databases as such`);
    const report = first.done ? first : await rebase('--theirs', '/');
    t.ok(report.done, `leaf ${i} moves`);
    const inConflict = new Set(report.conflicts.map(({ path }) => path));

    const moved = await sandbox.attach({ leaf });
    await run('e2fsck', ['-fn', moved.device]);
    const result = await mounted(['-o', 'ro', moved.device], () => sums(place));
    await sandbox.detach(moved.name);
    t.match(result.get(`/root/own-${i}`), /./, `leaf ${i}: its own file`);
    const wrong: string[] = [];
    for (const path of new Set([...before.keys(), ...ours.keys(), ...theirs.keys()])) {
      const [b, o, h] = [before.get(path), ours.get(path), theirs.get(path)];
      const wanted = o === b || inConflict.has(path) ? h : o;
      if (result.get(path) !== wanted) wrong.push(`${path}: ${result.get(path)}, not ${wanted}`);
    }
    t.same(wrong.slice(0, 20), [], `leaf ${i}: each file is the one side's that changed it`);
    t.same(
      [...inConflict].filter(path => {
        const [b, o, h] = [before.get(path), ours.get(path), theirs.get(path)];
        return !(b !== o && b !== h) && !/^\/usr\/share\/doc/.test(path);
      }),
      [],
      `leaf ${i}: only what both changed is a conflict`,
    );
  }
});

/** Files by path: kind, owner, mode, size and digest; what a link leads to. */
async function sums(place: string): Promise<Map<string, string>> {
  const script =
    `find . -mindepth 1 ! -type d -printf '%P\\t%y %U:%G %m %s %l\\n' | LC_ALL=C sort;` +
    `echo; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r md5sum`;
  const text = await run('bash', ['-c', script], { cwd: place, timeoutMs: TIMEOUT_MS });
  const [facts, digests] = text.split('\n\n') as [string, string];
  const found = new Map<string, string>();
  for (const line of facts.split('\n')) {
    const tab = line.indexOf('\t');
    found.set(`/${line.slice(0, tab)}`, line.slice(tab + 1));
  }
  for (const line of digests.split('\n')) {
    const path = `/${line.slice(36)}`;
    found.set(path, `${found.get(path)} ${line.slice(0, 32)}`);
  }
  return found;
}
