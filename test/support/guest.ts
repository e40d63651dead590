/**
 * Tests of what this machine's kernel does not have run in a guest that has it: the same file,
 * again.
 *
 *     test file on the host ── no /dev/ublk-control ──▶ UBD_UML/run node FILE ──▶ its tests
 *
 * A file calls `here` first, and goes on only where it answers true.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { tryRun } from './run.ts';

/** Set in the guest, so that a kernel without the device is not asked for again. */
const INSIDE = 'UBD_INSIDE_GUEST';

export interface GuestNeeds {
  /** `/dev/ublk-control`: what the kernel must have. */
  device: string;
  timeoutMs?: number;
}

/**
 * True where the tests of the calling file are to run. Else they have run in a guest, and are
 * reported as one test; or cannot run at all, and are skipped with the reason.
 * @param url import.meta.url of the test file
 */
export async function here(url: string, needs: GuestNeeds): Promise<boolean> {
  const { device, timeoutMs = 300_000 } = needs;
  t.setTimeout(timeoutMs + 10_000);
  if (process.getuid?.() !== 0) return skip('needs root');
  if (existsSync(device)) return true;
  const guest = process.env.UBD_UML;
  if (process.env[INSIDE] !== undefined || process.env.UBD_VM !== undefined)
    return skip(`this guest's kernel offers no ${device}`);
  if (guest === undefined || !existsSync(`${guest}/run`))
    return skip(`this kernel offers no ${device}; UBD_UML=DIR names a User-Mode Linux that has it`);
  const result = await tryRun(
    `${guest}/run`,
    ['/usr/bin/env', process.execPath, fileURLToPath(url)],
    {
      env: { ...process.env, [INSIDE]: '1' },
      timeoutMs,
    },
  );
  const { status, stdout, stderr } = result;
  const failures = stdout.split('\n').filter(line => /^\s*not ok/.test(line));
  t.equal(status, 0, `passes in a guest that has ${device}`, {
    failures,
    output: status === 0 ? '' : `${stdout}\n${stderr}`.slice(-8000),
  });
  for (const line of stdout.split('\n'))
    if (/^ok \d+ - /.test(line)) t.pass(`in the guest: ${line.replace(/^ok \d+ - /, '')}`);
  return false;
}

function skip(reason: string): false {
  t.test('needs another kernel', { skip: reason }, async () => {});
  return false;
}
