/**
 * What commands do without a daemon: they look at files themselves, with the daemon's own eyes.
 * Each is loaded when it is called, since each module costs a start of the command.
 */
import type * as Describe from '../daemon/describe.ts';
import type * as RebasePath from '../daemon/life/rebase-path.ts';
import type * as Manifest from '../daemon/remote/make-manifest.ts';
import type * as Diff from '../life/diff.ts';
import type * as Export from '../life/export.ts';
import type * as FileRebase from '../life/file-rebase.ts';
import type * as Fold from '../life/fold.ts';
import type * as Rebase from '../life/rebase.ts';
import type * as Receive from '../life/receive.ts';
import type * as Reconcile from '../life/reconcile.ts';
import type * as Repair from '../life/repair.ts';
import type * as Send from '../life/send.ts';
import type * as Shrink from '../life/shrink.ts';

import '../daemon/remote/offline.ts';

export { stillPath } from '../leaf/still.ts';

type Described = Awaited<ReturnType<typeof Describe.describe>>;
type Checked = Awaited<ReturnType<typeof Describe.checkImage>>;
type CheckGiven = Parameters<typeof Describe.checkImage>;

/** Of an image that no daemon is asked about. */
export async function describe(target: string): Promise<Described> {
  const { FileImages } = await import('../daemon/images.ts');
  return (await import('../daemon/describe.ts')).describe(target, null, new FileImages());
}

export async function checkImage(spec: CheckGiven[0], progress: CheckGiven[3]): Promise<Checked> {
  const { FileImages } = await import('../daemon/images.ts');
  const { checkImage: check } = await import('../daemon/describe.ts');
  return check(spec, null, new FileImages(), progress);
}

export const rebaseLeafPath: typeof RebasePath.rebaseLeafPath = async (...given) =>
  (await import('../daemon/life/rebase-path.ts')).rebaseLeafPath(...given);

export const makeManifest: typeof Manifest.makeManifest = async (...given) =>
  (await import('../daemon/remote/make-manifest.ts')).makeManifest(...given);

export const diffBlocks: typeof Diff.diffBlocks = async (...given) =>
  (await import('../life/diff.ts')).diffBlocks(...given);

export const exportLeaf: typeof Export.exportLeaf = async (...given) =>
  (await import('../life/export.ts')).exportLeaf(...given);

export const rebaseFiles: typeof FileRebase.rebaseFiles = async (...given) =>
  (await import('../life/file-rebase.ts')).rebaseFiles(...given);

export const foldStills: typeof Fold.foldStills = async (...given) =>
  (await import('../life/fold.ts')).foldStills(...given);

export async function standsOnRoot(leaf: string, root: string): Promise<boolean> {
  return (await import('../life/leaves.ts')).standsOnRoot(leaf, root);
}

export const rebaseLeaf: typeof Rebase.rebaseLeaf = async (...given) =>
  (await import('../life/rebase.ts')).rebaseLeaf(...given);

export const receiveLeaf: typeof Receive.receiveLeaf = async (...given) =>
  (await import('../life/receive.ts')).receiveLeaf(...given);

export const reconcile: typeof Reconcile.reconcile = async (...given) =>
  (await import('../life/reconcile.ts')).reconcile(...given);

export const repairLeaf: typeof Repair.repairLeaf = async (...given) =>
  (await import('../life/repair.ts')).repairLeaf(...given);

export const sendLeaf: typeof Send.sendLeaf = async (...given) =>
  (await import('../life/send.ts')).sendLeaf(...given);

export const shrinkLeaf: typeof Shrink.shrinkLeaf = async (...given) =>
  (await import('../life/shrink.ts')).shrinkLeaf(...given);
