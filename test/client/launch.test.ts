/**
 * Goal: whoever needs a daemon gets one, however long that takes, and is told at once where none
 * will come. Method: the locks held by a process of the test, as by a daemon that is ending.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { Client } from '../../src/client/client.ts';
import { startDaemon } from '../../src/client/launch.ts';
import { findPaths, type Paths } from '../../src/client/paths.ts';
import { missing } from '../support/requires.ts';

const lacking = await missing('root');
t.setTimeout(120_000);

function places(teardown: (fn: () => void) => void): Paths {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  teardown(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(`${dir}/state`, { mode: 0o700 });
  return findPaths({ stateDir: `${dir}/state`, runtimeDir: `${dir}/run` });
}

/** Holds the lock of the state directory until its input ends. */
async function hold(paths: Paths, text: string): Promise<() => void> {
  writeFileSync(paths.stateLock, text);
  const command = 'flock -n 9 || exit 1; echo held; cat > /dev/null';
  const child = spawn('sh', ['-c', `exec 9<>"$0"; ${command}`, paths.stateLock], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  return () => child.stdin.end();
}

t.test('the locks of a daemon that is ending are waited for', { skip: lacking }, async t => {
  const paths = places(t.teardown);
  const letGo = await hold(paths, '');
  const started = startDaemon(paths, { startMs: 60_000, againMs: 100 });
  await sleep(700); // the first one has lost by now, or will soon
  letGo();
  await started;
  const { pid } = await new Client(paths, { start: false }).status();
  process.kill(pid, 'SIGTERM');
  while (isAlive(pid)) await sleep(20);
});

t.test('a daemon with another socket is named at once', { skip: lacking }, async t => {
  const paths = places(t.teardown);
  const letGo = await hold(paths, '4711\n/elsewhere/ubd.sock\n');
  await t.rejects(startDaemon(paths), {
    code: 'busy',
    message: /has a daemon \(pid 4711\) with the socket \/elsewhere\/ubd\.sock/,
  });
  letGo();
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
