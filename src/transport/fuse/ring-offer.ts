/**
 * FUSE over io_uring, if somebody wants it and the kernel offers it.
 *
 * UBD_FUSE_URING=1 asks for it, for the loop devices that this daemon makes. Linux 6.14 and later
 * have it, switched off: for the whole host, by a parameter of the module.
 */
import { readFileSync } from 'node:fs';
import { UbdError } from '../../base/errors.ts';

const PARAMETER = '/sys/module/fuse/parameters/enable_uring';

/** Throws UbdError where the variable says neither. */
export function uringWanted(): boolean {
  const wanted = process.env.UBD_FUSE_URING ?? '0';
  if (wanted === '0' || wanted === '1') return wanted === '1';
  throw new UbdError('usage', `UBD_FUSE_URING is ${wanted}, and must be 0 or 1`);
}

/** Why FUSE over io_uring is not to be had here, and what helps; null if it is. */
export function uringMissing(): string | null {
  let enabled: string;
  try {
    enabled = readFileSync(PARAMETER, 'utf8').trim();
  } catch {
    return `UBD_FUSE_URING=1: there is no ${PARAMETER}: Linux 6.14 or later is needed`;
  }
  if (enabled === 'Y') return null;
  return `UBD_FUSE_URING=1: FUSE over io_uring is switched off on this host: echo Y > ${PARAMETER}`;
}

/** How many queues the kernel gives a connection: as many as it may ever have processors. */
export function possibleProcessors(): number {
  const list = readFileSync('/sys/devices/system/cpu/possible', 'utf8').trim();
  let count = 0;
  for (const range of list.split(',')) {
    const [first = Number.NaN, last = first] = range.split('-').map(Number);
    count += last - first + 1;
  }
  return count;
}
