/** Promises to disks, and their breaking. */
import { createHash } from 'node:crypto';
import { versionIn } from './sector-model.ts';

export const SECTOR = 512;

/** A broken promise, and not what an operation may refuse. */
export class Broken extends Error {}

/** Sector to version: what a disk held at a moment when nothing was under way. */
export type Content = Map<number, number>;

/** What a sector holds, which is one of what it may hold. */
export function versionAt(
  bytes: Uint8Array,
  index: number,
  sector: number,
  legalOf: (sector: number) => number[],
  where: string,
): number {
  const found = versionIn(bytes, index * SECTOR, sector);
  const legal = legalOf(sector);
  if (found === undefined || !legal.includes(found))
    throw new Broken(
      `${where}: sector ${sector} holds ${found ?? 'garbage'}; legal: ${legal.join(', ')}`,
    );
  return found;
}

export function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
