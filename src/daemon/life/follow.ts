/**
 * Which version of a named root a device gets at this attach, and what becomes of its leaf.
 *
 *     leaf                      pin            follow-when-clean      discard-leaf
 *     none yet                  its version    its version            its version
 *     on its version            as it is       as it is               as it is
 *     empty, on another one     as it is       takes its version      takes its version
 *     with changes, the same    as it is       as it is; it is said   begins anew on its version
 *     on none of the name's     refused        refused                refused
 *
 * "Its version" is the current one, or for a canary the one on trial. A device that is read-only
 * never changes its leaf.
 */
import { UbdError } from '../../base/errors.ts';
import type { LeafInfo, RootIdentity } from '../../client/api.ts';
import { generationFor, generationWith, isSame, type RootNameRecord } from './root-names.ts';

export interface Followed {
  rootPath: string;
  /** What is to be found there. */
  identity: RootIdentity;
  /** The leaf is to be replaced by an empty one on that root: only if it is empty, or always. */
  renew: 'if empty' | 'always' | null;
  /** For the log. */
  note: string | null;
}

/** @param leaf null: there is none yet */
export function follow(
  record: RootNameRecord,
  device: string,
  leaf: Omit<LeafInfo, 'kind' | 'device'> | null,
  readOnly: boolean,
): Followed {
  const target = generationFor(record, device);
  const onTarget = { rootPath: target.root, identity: target.identity, renew: null, note: null };
  if (leaf === null || (leaf.root !== null && isSame(leaf.root.identity, target.identity)))
    return onTarget;
  const { name, policy } = record;
  const mine = leaf.root === null ? undefined : generationWith(record, leaf.root.identity);
  if (mine === undefined)
    throw new UbdError('root-mismatch', `${leaf.path} stands on no version of ${name}`, {
      place: { file: leaf.path },
      next: 'attach it by its own root, or move it: ubd rebase',
    });
  const moves = `from generation ${mine.number} of ${name} to ${target.number}`;
  if (!readOnly) {
    const isEmpty = leaf.changed === 0 && leaf.clean === true && leaf.chain.length === 0;
    if (policy === 'discard-leaf')
      return {
        ...onTarget,
        renew: 'always',
        note: `goes ${moves}${isEmpty ? '' : '; its changes are discarded'}`,
      };
    if (policy === 'follow-when-clean' && isEmpty)
      return { ...onTarget, renew: 'if empty', note: `goes ${moves}` };
  }
  const stays = `stays on generation ${mine.number} of ${name}: `;
  const why = readOnly ? 'it is read-only' : 'it has changes; `ubd rebase` moves it';
  return {
    rootPath: mine.root,
    identity: mine.identity,
    renew: null,
    note: policy === 'pin' ? null : stays + why,
  };
}
