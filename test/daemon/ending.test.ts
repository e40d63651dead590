/** Signals: the first ends the daemon in order; a later one at once. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';

const program = join(import.meta.dirname, '../support/endless-end.js');

t.test('a second signal ends what does not end; two of one key press are one', async t => {
  const log = join(t.testdir(), 'log');
  const child = spawn(process.execPath, [program, log], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const exit = once(child, 'exit');
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  await once(child.stdout, 'data');
  child.kill('SIGTERM');
  await sleep(2500);
  t.equal(child.exitCode, null, 'it is still ending');
  t.equal(child.signalCode, null);
  child.kill('SIGTERM');
  t.same(await exit, [null, 'SIGKILL']);
  t.match(readFileSync(log, 'utf8'), /got SIGTERM again: ending at once; what was flushed is kept/);
});
