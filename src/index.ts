/** ubd from a TypeScript program: `import { connect } from 'ubd'`. See client/client.ts. */
import './daemon/remote/offline.ts';

export { type ErrorCode, type ErrorRecord, type Place, UbdError } from './base/errors.ts';
export type * from './client/api.ts';
export type * from './client/cache.ts';
export { Client, type ConnectOptions, connect } from './client/client.ts';
export type * from './client/exports.ts';
export type { Dirs, Paths } from './client/paths.ts';
export type {
  NamedRoot,
  RootChange,
  RootGeneration,
  RootPolicy,
  RootSpec,
} from './client/roots.ts';
export { type BlockDiff, type DiffRange, type DiffSpec, diffBlocks } from './life/diff.ts';
export { type ExportReport, type ExportSpec, exportLeaf } from './life/export.ts';
export {
  type FileConflict,
  type FileRebaseReport,
  type FileRebaseSpec,
  rebaseFiles,
} from './life/file-rebase.ts';
export {
  changedInLeaf,
  diffFiles,
  type FileChange,
  type FoundFile,
  findInLeaf,
  findInRoot,
  type IndexedImage,
  type IndexOptions,
  type IndexReport,
  indexLeaf,
  indexRoot,
} from './life/files.ts';
export { type RebaseReport, type RebaseSpec, rebaseLeaf } from './life/rebase.ts';
export { type ReceiveReport, type ReceiveSpec, receiveLeaf } from './life/receive.ts';
export { type ReconcileReport, type ReconcileSpec, reconcile } from './life/reconcile.ts';
export { type RepairReport, type RepairSpec, repairLeaf } from './life/repair.ts';
export {
  type ScanFinding,
  type ScanReport,
  type ScanSpec,
  scanFiles,
} from './life/scan.ts';
export { type SendReport, type SendSpec, sendLeaf } from './life/send.ts';
export { type ShrinkReport, type ShrinkSpec, shrinkLeaf } from './life/shrink.ts';
export { type WhyReport, why } from './life/why.ts';
export type { WorkOptions } from './life/work.ts';
