/**
 * Of the work without a daemon (offline.ts), what is done with files in images: by itself, since it
 * is asked often, and each module costs a start of the command.
 */
import type * as Content from '../life/content-diff.ts';
import type * as Scan from '../life/scan.ts';
import type * as Why from '../life/why.ts';

import '../daemon/remote/offline.ts';

export {
  changedInLeaf,
  diffFiles,
  findInLeaf,
  findInRoot,
  indexLeaf,
  indexRoot,
} from '../life/files.ts';

export const contentDiff: typeof Content.contentDiff = async (...given) =>
  (await import('../life/content-diff.ts')).contentDiff(...given);

export const scanFiles: typeof Scan.scanFiles = async (...given) =>
  (await import('../life/scan.ts')).scanFiles(...given);

export const why: typeof Why.why = async (...given) =>
  (await import('../life/why.ts')).why(...given);
