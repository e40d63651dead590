/**
 * The hot path allocates nothing: a million requests in a steady state, without the collector
 * having to run, and without a heap that grew. One small object per request (16 bytes) would have
 * it run several times.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const steady = fileURLToPath(new URL('./fixtures/steady.js', import.meta.url));
const sanitized = process.env.UBD_SANITIZED !== undefined;

for (const [road, requests] of [
  ['nop', 1_000_000],
  ['read', 200_000],
  ['write', 200_000],
] as const) {
  t.test(`${road}: nothing is allocated per request`, t => {
    if (sanitized) {
      t.plan(0, 'the sanitizers are for the native code only');
      return;
    }
    const args = ['--expose-gc', steady, road, String(requests)];
    const child = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: 120_000 });
    t.equal(child.status, 0, child.stderr);
    const report = JSON.parse(child.stdout) as Record<string, number | boolean>;
    t.equal(report.bad, 0);
    t.ok(report.steady, `${report.collections} collections, ${report.grown} bytes more`);
    t.comment(`${Math.round(Number(report.nanoseconds))} ns per request`);
    t.end();
  });
}
