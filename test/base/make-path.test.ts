/** Directories with those above them, and where none can be made. */
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { makePath } from '../../src/base/make-path.ts';

t.test('what lacks of a path is made, with the mode, and the topmost of it is told', async t => {
  const dir = t.testdir();
  t.equal(makePath(dir), undefined);
  t.equal(makePath(`${dir}/a/b/c`, 0o700), `${dir}/a`);
  for (const made of ['a', 'a/b', 'a/b/c']) t.equal(statSync(`${dir}/${made}`).mode & 0o777, 0o700);
  mkdirSync(`${dir}/b`);
  t.equal(makePath(`${dir}/b/c`), `${dir}/b/c`);
});

t.test('what cannot be made is an error, also where the kernel says ENOENT', async t => {
  const dir = t.testdir();
  writeFileSync(`${dir}/file`, '');
  t.throws(() => makePath(`${dir}/file`), { code: 'EEXIST' });
  t.throws(() => makePath(`${dir}/file/x/y`));
  t.throws(() => makePath('/proc/ubd-none/x'), { code: 'ENOENT' });
});
