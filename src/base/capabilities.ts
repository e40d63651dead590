/**
 * What this process may do to the kernel, as the kernel says before anything is tried. Numbers from
 * <linux/capability.h>.
 */
import { readFileSync, readlinkSync } from 'node:fs';
import { UbdError } from './errors.ts';

const BIT = { SYS_MODULE: 16, SYS_ADMIN: 21 } as const;

export type Capability = keyof typeof BIT;

/** PROC_USER_INIT_INO of <linux/proc_ns.h>: that of the host. */
const INITIAL_USER_NAMESPACE = 'user:[4026531837]';

export interface CapabilityOptions {
  /** What shows this process. */
  self?: string;
  /** Does one that counts in a container's own user namespace do? */
  own?: boolean;
}

/** True where /proc does not say: then the kernel will, when it is needed. */
export function hasCapability(
  capability: Capability,
  { self = '/proc/self', own = false }: CapabilityOptions = {},
): boolean {
  try {
    if (!own && readlinkSync(`${self}/ns/user`) !== INITIAL_USER_NAMESPACE) return false;
    const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync(`${self}/status`, 'utf8'))?.[1];
    if (effective === undefined) return true;
    return ((BigInt(`0x${effective}`) >> BigInt(BIT[capability])) & 1n) === 1n;
  } catch {
    return true;
  }
}

/** Why this process can make no devices of a kind; null: it may, for all that is seen. */
export function lacksAdministration(kind: string, options?: CapabilityOptions): UbdError | null {
  if (hasCapability('SYS_ADMIN', options)) return null;
  return new UbdError('permission', `making ${kind} devices needs the capability SYS_ADMIN`, {
    next: 'run as root; in a container, give it this capability',
  });
}
