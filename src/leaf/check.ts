/**
 * The offline verifier: goes through everything that opening relies on, and lists all that is
 * wrong, with its place, instead of stopping at the first. It changes nothing.
 *
 * What it cannot find: data have no checksums of their own, as on any plain disk. With `readData`
 * it at least reads every sector that the leaf has, so that the disk below gets to report what it
 * can no longer read.
 */
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { FileMedia } from './file-media.ts';
import { checkMapped, checkSuperblock, loadMap, readLog } from './load.ts';
import type { Media } from './media.ts';
import { SectorMap } from './sector-map.ts';
import {
  chooseSuperblock,
  readSuperblockCopies,
  type Superblock,
  type SuperblockCopy,
} from './superblock.ts';

export interface Finding {
  /** Damage: something durable is lost or untrue. Note: what a crash may leave; nothing is lost. */
  severity: 'damage' | 'note';
  /** In the file, in bytes. */
  offset: number;
  message: string;
}

export interface CheckReport {
  file: string;
  /** No damage. */
  ok: boolean;
  findings: Finding[];
  /** Null where there is no valid superblock; then nothing else could be looked at. */
  superblock: Superblock | null;
  /** Bytes of the device that the leaf has, as far as the map could be read. */
  changedBytes: number;
  logRecords: number;
}

export interface CheckOptions {
  /** Also read all the data. */
  readData?: boolean;
}

/** Verifies the leaf at `path`, which must not be in use. */
export function checkLeaf(path: string, options: CheckOptions = {}): CheckReport {
  const media = FileMedia.open(path, { readOnly: true });
  try {
    return checkMedia(media, options);
  } finally {
    media.close();
  }
}

const READ_BYTES: number = 1024 * 1024;
/** A disk that fails everywhere need not be listed in full. */
const UNREADABLE_MAX = 100;

export function checkMedia(media: Media, options: CheckOptions = {}): CheckReport {
  const report: CheckReport = {
    file: media.name,
    ok: true,
    findings: [],
    superblock: null,
    changedBytes: 0,
    logRecords: 0,
  };
  const damage = (offset: number, message: string): void => {
    report.ok = false;
    report.findings.push({ severity: 'damage', offset, message });
  };
  const note = (offset: number, message: string): void => {
    report.findings.push({ severity: 'note', offset, message });
  };
  const attempt = <T>(action: () => T): T | undefined => {
    try {
      return action();
    } catch (error) {
      if (!(error instanceof UbdError) || (error.code !== 'corrupt' && error.code !== 'io'))
        throw error;
      damage(error.place?.offset ?? 0, error.message);
      return undefined;
    }
  };

  const copies = readSuperblockCopies(media);
  const superblock = attempt(() => chooseSuperblock(copies, media.name));
  if (superblock === undefined) return report;
  report.superblock = superblock;
  checkCopies(copies, superblock, damage, note);
  if (!attempt(() => checkSuperblock(media, superblock, true))) return report;

  const map = new SectorMap(superblock.sizeSectors);
  attempt(() => loadMap(media, superblock, map, damage));
  if (report.ok) attempt(() => checkMapped(media, superblock, map));
  const scan = attempt(() =>
    readLog(media, copies, superblock, (start, count) => map.setRange(start, count)),
  );
  if (scan !== undefined) {
    report.logRecords = scan.records;
    const head = superblock.geometry.logOffset + scan.head;
    if (scan.torn)
      note(head, `log record ${scan.nextSequence} was never whole: no flush answered for it`);
    if (scan.records > 0)
      note(
        superblock.geometry.logOffset,
        `not closed in order: ${scan.records} log records to replay`,
      );
  }
  report.changedBytes = map.mapped * SECTOR_BYTES;
  if (options.readData) readAll(media, superblock, map, damage);
  return report;
}

type Note = (offset: number, message: string) => void;

function checkCopies(
  copies: readonly SuperblockCopy[],
  superblock: Superblock,
  damage: Note,
  note: Note,
): void {
  for (const copy of copies) {
    if (copy.superblock === null)
      note(
        copy.offset,
        `superblock: ${copy.damage}; the other copy is used, the next write replaces it`,
      );
    else if (copy.superblock.generation < superblock.generation - 1)
      damage(
        copy.offset,
        `superblock: generation ${copy.superblock.generation}; ` +
          `a write between it and generation ${superblock.generation} is missing`,
      );
  }
}

/** Reads all sectors that the leaf has; what cannot be read is damage. */
function readAll(media: Media, superblock: Superblock, map: SectorMap, damage: Note): void {
  const { sizeSectors, geometry } = superblock;
  const piece = new Uint8Array(READ_BYTES);
  let unreadable = 0;
  for (let sector = 0; sector < sizeSectors; ) {
    const end = Math.min(sizeSectors, sector + READ_BYTES / SECTOR_BYTES);
    const run = map.run(sector, map.run(sector, sizeSectors) < 0 ? sizeSectors : end);
    if (run < 0) {
      sector -= run;
      continue;
    }
    const offset = geometry.dataOffset + sector * SECTOR_BYTES;
    try {
      media.read(piece.subarray(0, run * SECTOR_BYTES), offset);
    } catch (error) {
      if (!(error instanceof UbdError)) throw error;
      const bytes = `${sector * SECTOR_BYTES} to ${(sector + run) * SECTOR_BYTES}`;
      damage(error.place?.offset ?? offset, `data of the device's bytes ${bytes} cannot be read`);
      if (++unreadable === UNREADABLE_MAX) return;
    }
    sector += run;
  }
}
