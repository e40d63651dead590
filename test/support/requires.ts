/**
 * What a test needs of the machine, asked before it runs. A test that cannot run is skipped by
 * name, with the reason; never silently.
 */
import { accessSync, constants, readFileSync } from 'node:fs';
import { which } from './run.ts';

/** True for short runs: `scripts/test --quick`. */
export const QUICK: boolean = process.env.UBD_TEST_QUICK === '1';

/**
 * The reason to skip, or false: for tap's `skip` option.
 * @param needs programs, paths of devices (`/dev/fuse`), file systems (`fs:xfs`), or `root`
 */
export async function missing(...needs: readonly string[]): Promise<string | false> {
  for (const need of needs) {
    if (need === 'root') {
      if (process.getuid?.() !== 0) return 'needs root';
    } else if (need.startsWith('fs:')) {
      if (!mounts(need.slice(3))) return `this kernel has no ${need.slice(3)}`;
    } else if (need.startsWith('/')) {
      try {
        accessSync(need, constants.R_OK | constants.W_OK);
      } catch {
        return `this kernel offers no ${need}`;
      }
    } else if ((await which(need)) === undefined) {
      return `${need} is not installed`;
    }
  }
  return false;
}

function mounts(type: string): boolean {
  return readFileSync('/proc/filesystems', 'utf8').includes(`\t${type}\n`);
}

/** What every test over a block device needs. */
export const DEVICES = ['root', '/dev/fuse', '/dev/loop-control', 'losetup'] as const;
