/**
 * Goal: `scripts/vm` does what its first lines promise, on every kernel: what a guest says and how
 * it ends reaches us, what it writes does not last, and nothing of it is left.
 * Method: one guest per kernel that looks at all that it should see; then guests that end badly.
 */

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { QUICK } from '../support/requires.ts';
import { tryRun, until } from '../support/run.ts';
import { inGuest, KERNELS, type Kernel, lacksKernel, requiresKernel, VM } from '../support/vm.ts';
import type { Report } from './fixtures/report.ts';

const top = fileURLToPath(new URL('../../..', import.meta.url)).replace(/\/$/, '');
const REPORT = fileURLToPath(new URL('fixtures/report.js', import.meta.url));
t.jobs = 2;
/** For one test: a limit for what hangs, not a measurement. */
const TIMEOUT_MS = 600_000;
t.setTimeout(3 * TIMEOUT_MS);

/** A directory of a test's own, removed with it. */
function scratch(t: Test): string {
  const dir = mkdtempSync(join(process.env.TMPDIR ?? '/tmp', 'ubd-vm-test-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Modules that the tests of block devices need, and what shows that they are there. */
const MODULES = {
  ext4: 'grep -qw ext4 /proc/filesystems',
  xfs: 'grep -qw xfs /proc/filesystems',
  btrfs: 'grep -qw btrfs /proc/filesystems',
  nbd: 'test -b /dev/nbd0',
  loop: 'test -c /dev/loop-control',
  fuse: 'test -c /dev/fuse',
  'dm-snapshot': 'dmsetup targets | grep -qw ^snapshot',
  'dm-flakey': 'dmsetup targets | grep -qw ^flakey',
  'dm-log-writes': 'dmsetup targets | grep -qw ^log-writes',
  ublk_drv: 'test -c /dev/ublk-control',
} as const;
/** Linux 6.1 of Debian is older than its configuring of ublk. */
const LACKS: Partial<Record<Kernel, readonly (keyof typeof MODULES)[]>> = {
  'debian-6.1': ['ublk_drv'],
};

for (const kernel of KERNELS) {
  const skip = QUICK && kernel !== 'uml' ? 'left out of short runs' : false;

  t.test(
    `${kernel}: a guest sees this machine, and tells what it saw`,
    { skip, timeout: TIMEOUT_MS },
    async t => {
      if (!(await requiresKernel(t, kernel))) return;
      const out = scratch(t);
      const modules = (Object.keys(MODULES) as (keyof typeof MODULES)[]).filter(
        name => !(LACKS[kernel] ?? []).includes(name),
      );
      const mark = `vm-test-${process.pid}-${kernel}`;
      // A megabyte of random text: more than any buffer on the way.
      const script = `
      echo to stderr >&2
      node ${REPORT} >/out/report.json
      for check in ${modules.map(name => `'${MODULES[name]}'`).join(' ')}; do
        bash -c "$check" || echo "$check" >>/out/failed
      done
      echo gone >/etc/${mark}
      echo gone >>${top}/package.json
      echo gone >${top}/${mark}
      echo "by name" >/dev/stderr
      base64 -w 0 /dev/urandom | head -c 1000000 | tee >(sha256sum >/out/sum) || true
      while [ ! -s /out/sum ]; do sleep 0.05; done
      exit 7`;
      const before = readFileSync(join(top, 'package.json'), 'utf8');
      const log = join(out, 'kernel.log');
      const guest = await inGuest(kernel, script, {
        modules,
        outDir: out,
        logFile: log,
        cwd: join(top, 'test'),
      });
      t.equal(guest.status, 7, `the exit status is the command's: ${guest.stderr}`);
      t.equal(guest.stderr, 'to stderr\nby name\n', 'its messages come apart from its output');
      t.equal(guest.stdout.length, 1_000_000, 'its whole output comes');
      const sum = createHash('sha256').update(guest.stdout).digest('hex');
      t.match(readFileSync(join(out, 'sum'), 'utf8'), sum, 'as it was written');
      t.ok(existsSync(log), 'the log of the kernel is kept where asked');

      const report = JSON.parse(readFileSync(join(out, 'report.json'), 'utf8')) as Report;
      t.equal(report.node, process.version, "this machine's Node runs");
      t.equal(report.cwd, join(top, 'test'), 'in the current directory');
      t.equal(report.vm, kernel, 'it can tell where it is');
      const version = /^debian-(.*)/.exec(kernel)?.[1];
      if (version !== undefined) {
        t.ok(report.release.startsWith(`${version}.`), `the kernel is what was asked for`);
      }
      t.ok(report.opcodes > 40, `io_uring knows ${report.opcodes} operations`);
      t.ok(report.ringReads, 'and reads files');
      const failed = join(out, 'failed');
      t.equal(existsSync(failed) ? readFileSync(failed, 'utf8') : '', '', 'modules and devices');

      t.notOk(existsSync(`/etc/${mark}`), 'a file made in /etc is gone');
      t.notOk(existsSync(join(top, mark)), 'a file made in the working tree is gone');
      t.equal(
        readFileSync(join(top, 'package.json'), 'utf8'),
        before,
        'a file changed is as before',
      );
    },
  );

  t.test(
    `${kernel}: a panic ends the guest with status 125 and its log`,
    { skip, timeout: TIMEOUT_MS },
    async t => {
      if (!(await requiresKernel(t, kernel))) return;
      const crash = 'echo c >/proc/sysrq-trigger; sleep 60';
      const guest = await inGuest(kernel, crash, { limitSeconds: 120 });
      t.equal(guest.status, 125);
      t.match(guest.stderr, /the guest died before its command ended/);
      t.match(guest.stderr, /Kernel panic - not syncing: sysrq triggered crash/);
    },
  );

  t.test(
    `${kernel}: a guest that hangs is ended at its time limit`,
    { skip, timeout: TIMEOUT_MS },
    async t => {
      if (!(await requiresKernel(t, kernel))) return;
      const dir = scratch(t);
      const env = { ...process.env, TMPDIR: dir };
      const guest = await inGuest(kernel, ['sleep', '1000'], { limitSeconds: 3, env });
      t.equal(guest.status, 124);
      t.match(guest.stderr, /the time limit of 3 s has passed/);
      t.same(readdirSync(dir), [], 'its files are gone');
      t.equal(await processesOf(dir), '', 'and its processes');
    },
  );
}

/** Command lines of this machine's processes that name a directory. */
async function processesOf(dir: string): Promise<string> {
  const { stdout } = await tryRun('ps', ['-eo', 'args']);
  return stdout
    .split('\n')
    .filter(line => line.includes(dir))
    .join('\n');
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGKILL'] as const) {
  t.test(
    `nothing is left of a guest whose scripts/vm gets ${signal}`,
    { timeout: TIMEOUT_MS },
    async t => {
      if (!(await requiresKernel(t, 'uml'))) return;
      const dir = scratch(t);
      const child = spawn(VM, ['-k', 'uml', 'bash', '-c', 'echo up; exec sleep 1000'], {
        env: { ...process.env, TMPDIR: dir },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const ended = new Promise(resolve => child.once('exit', resolve));
      await new Promise(resolve => child.stdout.once('data', resolve));
      t.not(await processesOf(dir), '', 'the guest runs');
      child.kill(signal);
      await ended;
      // After SIGKILL the kernel and a reader clean up, when we have seen the end already.
      await until('its files are gone', () => readdirSync(dir).length === 0);
      await until('its processes are gone', async () => (await processesOf(dir)) === '');
      t.pass('gone');
    },
  );
}

for (const kernel of ['uml', 'debian-6.1'] as const) {
  const skip = QUICK && kernel !== 'uml' ? 'left out of short runs' : false;
  const options = { skip, timeout: TIMEOUT_MS };
  t.test(`${kernel}: a reader that goes away ends the guest`, options, async t => {
    if (!(await requiresKernel(t, kernel))) return;
    const pipeline = '"$0" -k "$1" -t 300 yes | head -n 1';
    const { status, stdout } = await tryRun('bash', ['-o', 'pipefail', '-c', pipeline, VM, kernel]);
    t.equal(stdout, 'y\n');
    t.equal(status, 141);
  });
}

t.test('several guests run at once, and keep apart', { timeout: TIMEOUT_MS }, async t => {
  if (!(await requiresKernel(t, 'uml'))) return;
  const guests = [1, 2, 3, 4].map(n => inGuest('uml', `echo ${n} | tee /etc/vm-test; exit ${n}`));
  const results = await Promise.all(guests);
  t.same(
    results.map(({ status, stdout }) => [status, stdout]),
    [1, 2, 3, 4].map(n => [n, `${n}\n`]),
  );
});

t.test('words reach the command as they are', { timeout: TIMEOUT_MS }, async t => {
  if (!(await requiresKernel(t, 'uml'))) return;
  const words = ['', 'two words', '$HOME', "it's", 'line\nfeed', '*', '"', '\\', '-x', 'ü'];
  const guest = await inGuest('uml', ['printf', '%s\\0', ...words]);
  t.same(guest.stdout.split('\0').slice(0, -1), words);
});

t.test('a command that does not exist has status 127', { timeout: TIMEOUT_MS }, async t => {
  if (!(await requiresKernel(t, 'uml'))) return;
  const guest = await inGuest('uml', ['no-such-command']);
  t.equal(guest.status, 127);
  t.match(guest.stderr, /no-such-command: not found/);
});

const slow = { skip: QUICK ? 'left out of short runs' : false, timeout: TIMEOUT_MS };

t.test('a module that the kernel lacks fails, the command does not run', { ...slow }, async t => {
  if (!(await requiresKernel(t, 'debian-7'))) return;
  const guest = await inGuest('debian-7', 'echo ran', { modules: ['no_such_module'] });
  t.equal(guest.status, 1);
  t.equal(guest.stdout, '');
  t.match(guest.stderr, /no_such_module not found/);
});

t.test('with --icount time counts instructions', { ...slow }, async t => {
  if (!(await requiresKernel(t, 'debian-6.12'))) return;
  const script = `
    from=\${EPOCHREALTIME/[.,]/}
    for ((i = 0; i < 20000; i++)); do :; done
    echo $((\${EPOCHREALTIME/[.,]/} - from))`;
  // The same loop, once with 1 ns and once with 8 ns an instruction.
  const [one, eight] = await Promise.all(
    ['shift=0,sleep=off', 'shift=3,sleep=off'].map(async icount => {
      const guest = await inGuest('debian-6.12', script, { icount });
      t.equal(guest.status, 0, guest.output);
      return Number(guest.stdout);
    }),
  );
  const ratio = (eight ?? 0) / (one ?? 0);
  t.ok(ratio > 7 && ratio < 9, `${one} µs at 1 ns an instruction, ${eight} µs at 8 ns`);
});

t.test('a guest has the CPUs, memory and variables that it is given', async t => {
  if (!(await requiresKernel(t, 'uml'))) return;
  const env = { ...process.env, VM_TEST: 'two\nlines' };
  const script = 'nproc; grep MemTotal /proc/meminfo; printenv VM_TEST';
  const guest = await inGuest('uml', script, { cpus: 2, memory: '700M', env });
  t.equal(guest.status, 0, guest.output);
  const [cpus, memory, ...variable] = guest.stdout.trim().split('\n');
  t.equal(cpus, '2');
  const kib = Number(/(\d+) kB/.exec(memory ?? '')?.[1]);
  t.ok(kib > 600 * 1024 && kib <= 700 * 1024, `${memory} of 700 MiB`);
  t.same(variable, ['two', 'lines']);
});

t.test('wrong use has status 2 and says what to do', { timeout: TIMEOUT_MS }, async t => {
  const cases: readonly [args: readonly string[], message: RegExp][] = [
    [[], /no command/],
    [['--nonsense', 'true'], /no such option: --nonsense/],
    [['-t', 'soon', 'true'], /-t soon: not a number of seconds/],
    [['-m', 'much', 'true'], /-m much: not a size such as 512M or 2G/],
    [['-k', 'hurd', 'true'], /hurd: no such kernel; known: uml debian-7/],
    [['-k'], /-k needs a value/],
  ];
  for (const [args, message] of cases) {
    const { status, stderr } = await tryRun(VM, args);
    t.equal(status, 2, args.join(' '));
    t.match(stderr, message);
  }
});

t.test(
  'a kernel that is not there is named, with the way to get it',
  { timeout: TIMEOUT_MS },
  async t => {
    const empty = scratch(t);
    const env = { ...process.env, UBD_CACHE_DIR: empty, UBD_UML: join(empty, 'none') };
    const { status, stdout } = await tryRun(VM, ['--list'], { env });
    t.equal(status, 0);
    t.match(stdout, /^uml +no +.*scripts\/build-uml/);
    t.equal(await lacksKernelIn(env), `uml: no User-Mode Linux at ${join(empty, 'none')}`);
  },
);

async function lacksKernelIn(env: NodeJS.ProcessEnv): Promise<string> {
  const { stdout } = await tryRun(VM, ['--why-not', 'uml'], { env });
  return `uml: ${stdout.split(':')[0]}`;
}

t.test(
  'a test whose kernel is missing is skipped with the reason',
  { timeout: TIMEOUT_MS },
  async t => {
    const reason = await lacksKernel('no-such-kernel' as Kernel);
    t.match(reason, /^no-such-kernel: no such kernel; known: /);
  },
);
