/** Nothing is allocated per request of an NBD client: see test/uring/allocation.test.ts. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { SteadyReport } from '../../support/steady.ts';

const steady = fileURLToPath(new URL('./fixtures/steady.js', import.meta.url));
const sanitized = process.env.UBD_SANITIZED !== undefined;

for (const [command, replies] of [
  ['read', 'simple'],
  ['read', 'structured'],
  ['write', 'simple'],
] as const) {
  t.test(`${command}, ${replies} replies: nothing is allocated per request`, t => {
    if (sanitized) {
      t.plan(0, 'the sanitizers are for the native code only');
      return;
    }
    const args = ['--expose-gc', steady, command, '200000', replies];
    const child = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: 120_000 });
    t.equal(child.status, 0, child.stderr);
    const report = JSON.parse(child.stdout) as SteadyReport;
    t.equal(report.bad, 0);
    t.ok(report.steady, `${report.collections} collections, ${report.grown} bytes more`);
    t.comment(`${Math.round(report.nanoseconds)} ns per request, client and server`);
    t.end();
  });
}
