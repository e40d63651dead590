/**
 * No argument from TypeScript crashes the process: a child calls every function of the addon with
 * wrong ones, and must come to its own end. What each answers is in fixtures/hostile.ts.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { native } from '../../src/native/binding.ts';

const hostile = fileURLToPath(new URL('./fixtures/hostile.js', import.meta.url));

t.test('wrong arguments throw or are answered with -errno, and the process lives', t => {
  const child = spawnSync(process.execPath, [hostile], { encoding: 'utf8', timeout: 120_000 });
  t.equal(child.signal, null, 'no signal ends the process');
  t.equal(child.status, 0, 'it exits by itself');
  const lines = child.stdout.trimEnd().split('\n');
  const last = lines.pop() ?? '';
  t.same(lines, [], 'every expectation holds');
  const [, calls, functions] = /^done (\d+) (\d+)$/.exec(last) ?? [];
  t.ok(Number(calls) > 40_000, 'it called to the end');
  t.equal(Number(functions), Object.keys(native).length, 'every function was called');
  if (!t.passing()) t.comment(child.stderr);
  t.end();
});
