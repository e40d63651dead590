/**
 * apart: a process of its own makes the calls, with none of our descriptors but one, and nothing of
 * it stays. Most of all: what waits there does not keep us from dying.
 */
import { spawn } from 'node:child_process';
import { closeSync, constants, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { constants as os } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type ApartStep, apart, KEPT_FD } from '../../src/native/apart.ts';

const { O_RDONLY, O_RDWR, O_EXCL, O_CREAT } = constants;
const { errno } = os;
const FIONREAD = 0x541b;
/** From <linux/fs.h>: clones the file of the descriptor that is the argument: an int, by value. */
const FIGETBSZ = 2;

t.test('each step has its result, and buffers come back', async t => {
  const path = join(t.testdir(), 'file');
  writeFileSync(path, 'abcde');
  const available = new Uint8Array(4);
  const block = new Uint8Array(4);
  const results = await apart(null, [
    { open: path, flags: O_RDONLY },
    { ioctl: FIONREAD, on: 0, argument: available },
    { ioctl: FIGETBSZ, on: 0, argument: block },
  ]);
  t.same(results.slice(1), [0, 0]);
  t.equal(available[0], 5);
  t.ok(new DataView(block.buffer).getUint32(0, true) >= 512);
});

t.test('it writes', async t => {
  const path = join(t.testdir({ file: 'before' }), 'file');
  const results = await apart(null, [
    { open: path, flags: O_RDWR },
    { write: Buffer.from('abc'), on: 0 },
  ]);
  t.equal(results[1], 3);
  t.equal(readFileSync(path, 'utf8'), 'abcore');
});

t.test('it stops at the first failure, and says where that was', async t => {
  const path = join(t.testdir({ file: '' }), 'file');
  t.same(
    await apart(null, [
      { open: path, flags: O_RDONLY },
      { open: path, flags: O_RDWR | O_EXCL | O_CREAT },
      { open: path, flags: O_RDONLY },
    ]).then(results => results.slice(1)),
    [-errno.EEXIST, -errno.ECANCELED],
  );
});

t.test('of our descriptors it has the one that is to be kept, and no other', async t => {
  const path = join(t.testdir({ kept: 'kept' }), 'kept');
  const kept = openSync(path, 'r');
  const open = (fd: number): ApartStep => ({ open: `/proc/self/fd/${fd}`, flags: O_RDONLY });
  const available = new Uint8Array(4);
  const steps = [open(KEPT_FD), { ioctl: FIONREAD, on: 0, argument: available }];
  t.equal((await apart(kept, steps))[1], 0);
  t.equal(available[0], 4, 'it is that file');
  t.same(await apart(kept, [open(KEPT_FD + 1)]), [-errno.ENOENT]);
  t.same(await apart(null, [open(KEPT_FD)]), [-errno.ENOENT]);
  closeSync(kept);
});

t.test('words that make no sense are refused, and nothing is called', async t => {
  const refused = { code: 'internal', message: /ubd-apart/ };
  await t.rejects(apart(null, [{ ioctl: FIONREAD, on: 0, argument: 0 }]), refused);
  const open = { open: '/dev/null', flags: O_RDONLY };
  await t.rejects(apart(null, [open, { ioctl: FIONREAD, on: 1, argument: 0 }]), refused);
  await t.rejects(apart(null, [open, { ioctl: FIONREAD, on: 0, argument: 0, put: 7 }]), refused);
  const long = new Uint8Array(16385);
  await t.rejects(apart(null, [open, { ioctl: FIONREAD, on: 0, argument: long }]), refused);
});

t.test('the result of an earlier step goes into the argument, where `put` says so', async t => {
  // The argument of FIONREAD is written only: -1 in it would stay if the call failed before.
  const path = join(t.testdir({ file: 'xyz' }), 'file');
  const argument = new Uint8Array(8).fill(0xff);
  const [fd = -1, result] = await apart(null, [
    { open: path, flags: O_RDONLY },
    { ioctl: 0x89ff, on: 0, argument, put: 0 }, // nobody's: ENOTTY, and the argument as it was put
  ]);
  t.equal(result, -errno.ENOTTY);
  t.equal(new DataView(argument.buffer).getInt32(0, true), fd);
  t.equal(argument[4], 0xff);
});

t.test('nothing is left of many: no process, no descriptor', async t => {
  const path = join(t.testdir({ file: 'x' }), 'file');
  const count = (): number[] => [
    readdirSync('/proc/self/fd').length,
    readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').split(' ').length,
  ];
  const round = (): Promise<unknown> =>
    Promise.all(Array.from({ length: 20 }, () => apart(null, [{ open: path, flags: O_RDONLY }])));
  await round();
  const before = count();
  await round();
  t.same(count(), before);
});

t.test('a process that waits for one apart ends at once when it is killed', async t => {
  // Opening a FIFO for reading waits for a writer, who never comes.
  const dir = t.testdir();
  const fifo = join(dir, 'fifo');
  await new Promise(done => spawn('mkfifo', [fifo]).on('exit', done));
  const module = new URL('../../src/native/apart.js', import.meta.url).href;
  const child = spawn(process.execPath, [
    '--input-type=module',
    '-e',
    `import { apart } from ${JSON.stringify(module)};
     void apart(null, [{ open: ${JSON.stringify(fifo)}, flags: 0 }]);
     setTimeout(() => console.log('waiting'), 100);
     setInterval(() => {}, 1000);`,
  ]);
  await new Promise(done => child.stdout.once('data', done));
  child.kill('SIGKILL');
  const signal = await new Promise(done => child.on('exit', (_, name) => done(name)));
  t.equal(signal, 'SIGKILL');
  // What waited apart lives on, by itself, until its wait ends: here, until a writer comes.
  closeSync(openSync(fifo, constants.O_WRONLY));
});
