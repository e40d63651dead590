/**
 * A daemon is killed while a child of its waits for an answer that it took and never gave: both
 * end, since nothing of the dead daemon keeps /dev/fuse open (native/apart.cc).
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { clearStaleLoops } from '../../src/transport/fuse/loop.ts';
import { missing } from '../support/loop-fixture.ts';

/** Children of all threads of a process. */
function children(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap(thread =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8')
      .split(' ')
      .filter(Boolean)
      .map(Number),
  );
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

t.test(
  'a daemon killed with an answer owing takes its child with it',
  {
    skip: missing(),
  },
  async t => {
    const program = join(import.meta.dirname, '../support/attach-and-stall.js');
    const daemon = spawn(process.execPath, [program, `stall-${process.pid}`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(daemon.stdout, 'data');
    await sleep(50);
    const own = children(daemon.pid!);
    t.equal(own.length, 1, 'a child waits');
    daemon.kill('SIGKILL');
    await once(daemon, 'exit');
    for (let waits = 0; own.some(alive) && waits < 200; waits++) await sleep(50);
    t.notOk(own.some(alive), 'the child ended');
    await clearStaleLoops('stall');
  },
);
