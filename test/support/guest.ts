/**
 * Tests of what this machine's kernel does not have run in a guest that has it: the same file,
 * again.
 *
 *     test file on the host ── no /dev/ublk-control ──▶ scripts/vm node FILE ──▶ its tests
 *
 * A file calls `here` first, and goes on only where it answers true. UBD_TEST_KERNEL names another
 * kernel than User-Mode Linux, for a cross-check: the file then runs there in any case.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { inGuest, type Kernel, lacksKernel } from './vm.ts';

/** Set in the guest, so that a kernel without the device is not asked for again. */
const INSIDE = 'UBD_INSIDE_GUEST';

export const IN_GUEST: boolean = process.env[INSIDE] !== undefined;

const MODULES: Readonly<Record<string, readonly string[]>> = {
  '/dev/ublk-control': ['ublk_drv', 'ext4', 'loop', 'fuse'],
  '/sys/module/nbd': ['nbd', 'ext4', 'loop', 'fuse'],
};

export interface GuestNeeds {
  /** `/dev/ublk-control`: what the kernel must have. */
  device: string;
  /** Loaded first, where the kernel has modules; default: those of the device, and usual ones. */
  modules?: readonly string[];
  memory?: string;
  cpus?: number;
  limitSeconds?: number;
}

/**
 * True where the tests of the calling file are to run. Else they have run in a guest, and are
 * reported as tests of their own; or cannot run at all, and are skipped with the reason.
 * @param url import.meta.url of the test file
 */
export async function here(url: string, needs: GuestNeeds): Promise<boolean> {
  const {
    device,
    modules = MODULES[device] ?? [],
    memory = '3G',
    cpus = 1,
    limitSeconds = 300,
  } = needs;
  const named = process.env.UBD_TEST_KERNEL as Kernel | undefined;
  // A kernel under emulation needs its time.
  const patience = (named ?? 'uml') === 'uml' ? 1 : 20;
  t.setTimeout(IN_GUEST ? 0 : limitSeconds * patience * 1000 + 90_000);
  if (process.getuid?.() !== 0) return skip('needs root');
  if (existsSync(device) && (IN_GUEST || named === undefined)) return true;
  if (IN_GUEST || process.env.UBD_VM !== undefined)
    return skip(`this guest's kernel offers no ${device}`);
  const kernel = named ?? 'uml';
  const lacking = await lacksKernel(kernel);
  if (lacking !== false) return skip(`this kernel offers no ${device}; ${lacking}`);
  const { status, output } = await inGuest(
    kernel,
    // A plain tmpfs: files of an overlay have other numbers in /proc/locks than stat gives them.
    ['env', 'TMPDIR=/run', process.execPath, '--enable-source-maps', fileURLToPath(url)],
    {
      memory,
      cpus,
      limitSeconds: limitSeconds * patience,
      modules: kernel === 'uml' ? [] : modules,
      env: { ...process.env, [INSIDE]: '1' },
    },
  );
  const failures = output.split('\n').filter(line => /^\s*not ok/.test(line));
  t.equal(status, 0, `passes on ${kernel}, which has ${device}`, {
    failures,
    output: status === 0 ? '' : output.slice(-8000),
  });
  for (const line of output.split('\n'))
    if (/^ok \d+ - /.test(line)) t.pass(`on ${kernel}: ${line.replace(/^ok \d+ - /, '')}`);
  return false;
}

function skip(reason: string): false {
  t.test('needs another kernel', { skip: reason }, async () => {});
  return false;
}
