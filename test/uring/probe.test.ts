/** What is said where io_uring is not to be had, and what is found where it is. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { probeUring, ringRefused } from '../../src/uring/probe.ts';
import { OPCODE } from '../../src/uring/sqe.ts';

const { EINVAL, EMFILE, ENOMEM, ENOSYS, EPERM } = constants.errno;

t.test('the opcodes that the data path needs are there', t => {
  const opcodes = probeUring();
  for (const name of [
    'NOP',
    'FSYNC',
    'SYNC_FILE_RANGE',
    'FALLOCATE',
    'READ',
    'WRITE',
    'ASYNC_CANCEL',
  ] as const)
    t.ok(opcodes.has(OPCODE[name]), name);
  t.notOk(opcodes.has(255));
  t.end();
});

t.test('each refusal is named, with what to do about it', t => {
  const cases = [
    [EPERM, 2, 0, 'unsupported', /disabled on this machine/, /io_uring_disabled=0/],
    [EPERM, 2, 2, 'unsupported', /disabled on this machine/, /io_uring_disabled=0/],
    [EPERM, 1, 0, 'permission', /reserved to privileged/, /root/],
    [EPERM, 0, 2, 'permission', /seccomp/, /seccomp profile/],
    [EPERM, -1, 2, 'permission', /seccomp/, /seccomp profile/],
    [ENOSYS, -1, 2, 'permission', /seccomp/, /seccomp profile/],
    [ENOSYS, -1, 0, 'unsupported', /no io_uring/, /6\.1/],
    [EINVAL, 0, 0, 'unsupported', /too old/, /6\.1/],
    [ENOMEM, 0, 0, 'unsupported', /memory/, /ulimit/],
    [EMFILE, 0, 0, 'unsupported', /EMFILE/, undefined],
    [EPERM, 0, 0, 'unsupported', /EPERM/, undefined],
  ] as const;
  for (const [errno, disabled, seccomp, code, message, next] of cases) {
    const error = ringRefused(errno, { disabled, seccomp });
    t.equal(error.code, code);
    t.match(error.message, message);
    if (next === undefined) t.equal(error.next, undefined);
    else t.match(error.next, next);
  }
  t.end();
});

t.test('under a real seccomp filter it says so', t => {
  // Python has the system calls for it; the addon must not.
  const filter = fileURLToPath(
    new URL('../../../test/uring/fixtures/without-io-uring.py', import.meta.url),
  );
  const probe = fileURLToPath(new URL('./fixtures/probe.js', import.meta.url));
  if (!existsSync('/usr/bin/python3')) {
    t.plan(0, 'python3 is not installed');
    return;
  }
  for (const errno of [EPERM, ENOSYS]) {
    const args = [filter, String(errno), process.execPath, probe];
    const child = spawnSync('/usr/bin/python3', args, { encoding: 'utf8', timeout: 60_000 });
    const answer = JSON.parse(child.stdout || '{}') as Record<string, string>;
    t.equal(answer.code, 'permission', child.stderr);
    t.match(answer.message, /blocked by a seccomp filter/);
    t.match(answer.next, /seccomp profile/);
  }
  t.end();
});
