/**
 * What commands do without a daemon: they look at files themselves, with the daemon's own eyes.
 * Loaded only then, since it brings the addon along.
 */
import '../daemon/remote/offline.ts';

export { checkImage, describe } from '../daemon/describe.ts';
export { FileImages } from '../daemon/images.ts';
export { rebaseLeafPath } from '../daemon/life/rebase-path.ts';
export { makeManifest } from '../daemon/remote/make-manifest.ts';
export { stillPath } from '../leaf/still.ts';
export { diffBlocks } from '../life/diff.ts';
export { exportLeaf } from '../life/export.ts';
export { rebaseFiles } from '../life/file-rebase.ts';
export { foldStills } from '../life/fold.ts';
export { standsOnRoot } from '../life/leaves.ts';
export { rebaseLeaf } from '../life/rebase.ts';
export { receiveLeaf } from '../life/receive.ts';
export { reconcile } from '../life/reconcile.ts';
export { repairLeaf } from '../life/repair.ts';
export { sendLeaf } from '../life/send.ts';
export { shrinkLeaf } from '../life/shrink.ts';
