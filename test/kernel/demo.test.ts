/**
 * Goal: the demo cleans up after itself, also after Ctrl-C at any moment.
 * Method: run it in short form, send SIGINT to its process group as a terminal does, at a stage of
 * its work that its output tells, and look for what is left.
 */
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { DEVICES, missing } from '../support/requires.ts';
import { run } from '../support/run.ts';

t.setTimeout(900_000); // for what hangs

const project = fileURLToPath(new URL('../../..', import.meta.url));
const skip = await missing(...DEVICES, 'bash', 'mke2fs', 'git', 'python3');

/** Where Ctrl-C comes: when the demo has printed this. */
const STAGES = [
  'One shared root image',
  'Three nodes, each with',
  'git  a repository with',
  'Detach all, attach again',
];

/** Processes whose environment says that they belong to the run. */
function processes(mark: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${pid}/environ`, 'utf8').includes(mark)) continue;
      found.push(`${pid} ${readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')}`);
    } catch {} // it has ended
  }
  return found;
}

t.test('Ctrl-C leaves nothing behind', { skip }, async t => {
  // The image is made beforehand: it is kept, and takes longest.
  const cache = process.env.UBD_DEMO_CACHE ?? '/var/cache/ubd-demo';
  await run(join(project, 'scripts/demo-image'), [cache], { timeoutMs: 600_000 });

  for (const stage of STAGES) {
    await t.test(`at "${stage}"`, async t => {
      const dir = await mkdtemp(join(tmpdir(), 'ubd-ctrl-c-'));
      t.teardown(() => rm(dir, { recursive: true, force: true }));
      const demo = spawn(join(project, 'scripts/demo'), ['--short'], {
        env: { ...process.env, TMPDIR: dir },
        detached: true, // a process group of its own, as a shell gives it
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let said = '';
      const ended = new Promise<number | null>(resolve => demo.on('close', resolve));
      const reached = new Promise<void>(resolve => {
        demo.stdout.on('data', chunk => {
          said += chunk;
          if (said.includes(stage)) resolve();
        });
        demo.on('close', () => resolve());
      });
      demo.stderr.on('data', chunk => {
        said += chunk;
      });
      await reached;
      t.match(said, stage, 'it came so far');
      if (demo.exitCode !== null) return;
      process.kill(-demo.pid!, 'SIGINT');
      t.equal(await ended, 130, `it says that it was interrupted: ${said.slice(-1000)}`);
      t.same(processes(`TMPDIR=${dir}`), [], 'no process is left');
      t.same(readdirSync(dir), [], 'no file is left');
      t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), dir, 'no mount is left');
    });
  }
});
