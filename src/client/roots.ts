/**
 * Roots by name, and their versions (generations).
 *
 *     GET    /v1/roots                      → NamedRoot[]
 *     POST   /v1/roots          RootSpec    → 201 NamedRoot: a new name
 *     PATCH  /v1/roots/NAME     RootChange  → NamedRoot
 *     DELETE /v1/roots/NAME                 → NamedRoot: as it was
 *
 * A device that names its root so gets the version that counts for it when it is attached. What
 * becomes of a leaf that stands on another version is the name's policy.
 */
import type { RootIdentity } from './api.ts';

/**
 *  - pin: a leaf stays on the version that it was made on;
 *  - follow-when-clean: one that holds nothing takes the new version; others stay, and it is said;
 *  - discard-leaf: what a leaf holds is thrown away, and it begins anew on the new version.
 */
export const ROOT_POLICIES = ['pin', 'follow-when-clean', 'discard-leaf'] as const;
export type RootPolicy = (typeof ROOT_POLICIES)[number];

export interface RootSpec {
  name: string;
  /** A path or a URI: the first version. */
  root: string;
  /** Default: pin. */
  policy?: RootPolicy;
}

export interface RootChange {
  /** The next version. */
  root?: string;
  policy?: RootPolicy;
  /** Devices that take the next version before all others; without `root` more of them. */
  canary?: string[];
  /** What becomes of the version on trial: all take it, or nobody does any more. */
  step?: 'promote' | 'withdraw';
}

export const ROOT_STEPS = ['promote', 'withdraw'] as const;

/** A version. It never changes, and is never forgotten while the name is there. */
export interface RootGeneration {
  /** From 1 on. */
  number: number;
  root: string;
  identity: RootIdentity;
  registered: string;
}

export interface NamedRoot {
  name: string;
  policy: RootPolicy;
  /** The version that counts for all devices but those of the canary. */
  current: number;
  canary: { generation: number; devices: string[] } | null;
  /** The oldest first. `devices`: those that stand on it now. */
  generations: (RootGeneration & { devices: string[] })[];
}
