/**
 * apart: a child makes the calls, with none of our descriptors but one, and nothing of it stays. Most of
 * all: whoever waits in it does not keep us from dying.
 */
import { spawn } from 'node:child_process';
import { closeSync, constants, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { constants as os } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type ApartStep, apart } from '../../src/native/apart.ts';

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
  const results = await apart(-1, [
    { open: path, flags: O_RDONLY },
    { ioctl: FIONREAD, on: 0, argument: available },
    { ioctl: FIGETBSZ, on: 0, argument: block },
  ]);
  t.same(results.slice(1), [0, 0]);
  t.equal(available[0], 5);
  t.ok(new DataView(block.buffer).getUint32(0, true) >= 512);
});

t.test('it stops at the first failure, and says where that was', async t => {
  const path = join(t.testdir({ file: '' }), 'file');
  t.same(
    await apart(-1, [
      { open: path, flags: O_RDONLY },
      { open: path, flags: O_RDWR | O_EXCL | O_CREAT },
      { open: path, flags: O_RDONLY },
    ]).then(results => results.slice(1)),
    [-errno.EEXIST, -errno.ECANCELED],
  );
});

t.test('of our descriptors the child has the one that is to be kept, and no other', async t => {
  const dir = t.testdir({ kept: 'kept', other: '' });
  const other = openSync(join(dir, 'other'), 'r');
  const kept = openSync(join(dir, 'kept'), 'r');
  t.ok(kept > 0 && other !== kept);
  const open = (fd: number): ApartStep => ({ open: `/proc/self/fd/${fd}`, flags: O_RDONLY });
  t.ok((await apart(kept, [open(kept)]))[0]! >= 0);
  t.same(await apart(kept, [open(other)]), [-errno.ENOENT]);
  t.same(await apart(-1, [open(kept)]), [-errno.ENOENT]);
  closeSync(kept);
  closeSync(other);
});

t.test('the result of an earlier step goes into the argument, where `put` says so', async t => {
  // The argument of FIONREAD is written only: -1 in it would stay if the call failed before.
  const path = join(t.testdir({ file: 'xyz' }), 'file');
  const argument = new Uint8Array(8).fill(0xff);
  const [fd = -1, result] = await apart(-1, [
    { open: path, flags: O_RDONLY },
    { ioctl: 0x89ff, on: 0, argument, put: 0 }, // nobody's: ENOTTY, and the argument as it was put
  ]);
  t.equal(result, -errno.ENOTTY);
  t.equal(new DataView(argument.buffer).getInt32(0, true), fd);
  t.equal(argument[4], 0xff);
});

t.test('nothing is left of many: no child, no descriptor, no mapping', async t => {
  const path = join(t.testdir({ file: 'x' }), 'file');
  const count = (): number[] => [
    readdirSync('/proc/self/fd').length,
    readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').split(' ').length,
  ];
  const round = (): Promise<unknown> =>
    Promise.all(
      Array.from({ length: 50 }, () =>
        apart(-1, [
          { open: path, flags: O_RDONLY },
          { ioctl: FIONREAD, on: 0, argument: new Uint8Array(4) },
        ]),
      ),
    );
  await round();
  const before = count();
  const maps = readFileSync('/proc/self/maps', 'utf8').split('\n').length;
  for (let i = 0; i < 10; i++) await round();
  t.same(count(), before);
  t.ok(readFileSync('/proc/self/maps', 'utf8').split('\n').length < maps + 50);
});

t.test('a process that waits in a child ends at once when it is killed', async t => {
  // Opening a FIFO for reading waits for a writer, who never comes.
  const dir = t.testdir();
  const fifo = join(dir, 'fifo');
  await new Promise(done => spawn('mkfifo', [fifo]).on('exit', done));
  const module = new URL('../../src/native/apart.js', import.meta.url).href;
  const child = spawn(process.execPath, [
    '--input-type=module',
    '-e',
    `import { apart } from ${JSON.stringify(module)};
     void apart(-1, [{ open: ${JSON.stringify(fifo)}, flags: 0 }]);
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
