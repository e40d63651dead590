/**
 * FUSE over io_uring for a test or a figure: a parameter of the host's kernel, switched on, and put
 * back at the end. Devices that have it keep it; those of others do not ask for it.
 */
import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import type { Cleanup } from './cleanup.ts';

const PARAMETER = '/sys/module/fuse/parameters/enable_uring';

/** For daemons and data planes. */
export const URING_ENV = { UBD_FUSE_URING: '1' } as const;

/** Why this kernel cannot have it, or false. For tap's `skip`. */
export function uringLacks(): string | false {
  try {
    accessSync(PARAMETER, constants.W_OK);
    return false;
  } catch {
    return `needs FUSE over io_uring (${PARAMETER})`;
  }
}

export function setUring(on: boolean): void {
  writeFileSync(PARAMETER, on ? 'Y' : 'N');
}

export function switchUringOn(cleanup: Pick<Cleanup, 'add'>): void {
  const before = readFileSync(PARAMETER, 'utf8').trim() === 'Y';
  if (before) return;
  setUring(true);
  cleanup.add('switch FUSE over io_uring off', () => setUring(false));
}
