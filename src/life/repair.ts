/**
 * `check --repair`: makes a damaged leaf one that opens again, and says what that cost.
 *
 *     salvage (what is known) ─▶ plan (told to the user) ─▶ backup ─▶ map, directory ─▶ superblocks
 *                                                          durable    by the commit of a leaf
 *
 * Three kinds of repair, told apart in the report:
 *  - proved: the right content follows from what is undamaged. Nothing is lost;
 *  - lost: the data are gone, or nobody knows that they are the leaf's. These ranges read as what
 *    the leaf stands on;
 *  - assumed: which sectors the leaf has is not known, and is taken from where its file holds data.
 *
 * All that may be overwritten (everything before the data) is first copied to a file beside the
 * leaf. A repair that is killed is made again by the next one: until the superblocks are written
 * the log still counts, and every sector of map and directory is right before and after.
 *
 * A leaf that has grown is not repaired: its map lies behind the data, where a file that was cut
 * off has lost it, and where data that are not mapped look like what is left of an older map.
 */
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { checkMedia } from '../leaf/check.ts';
import { Commit } from '../leaf/commit.ts';
import type { OpenFile } from '../leaf/files.ts';
import { isMapBehind, KNOWN_READ_ONLY_COMPATIBLE } from '../leaf/format.ts';
import { MediaIo } from '../leaf/media-io.ts';
import { SectorMap } from '../leaf/sector-map.ts';
import { chooseSuperblock, readSuperblockCopies } from '../leaf/superblock.ts';
import { Copier } from './copy.ts';
import {
  copyRuns,
  type Damage,
  type Salvage,
  type SectorRange,
  salvage,
  unclaimedData,
} from './salvage.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';

/** Where sectors are taken from that nothing proves to be the leaf's. */
export const UNPROVED_CHOICES = ['data', 'root'] as const;
export type Unproved = (typeof UNPROVED_CHOICES)[number];

export interface RepairSpec {
  leaf: string;
  /**
   * `data`: sectors whose map is lost are the leaf's where its file holds data. `root`: they are
   * not. Default: data.
   */
  unproved?: Unproved;
  /** Only say what would be done. */
  dryRun?: boolean;
}

export interface RepairItem {
  /** In the leaf's file, in bytes. */
  offset: number;
  damage: string;
  repair: string;
  kind: 'proved' | 'lost' | 'assumed';
  /** Of the device, in bytes: what is lost, or assumed. The first ones, if there are many. */
  ranges: { start: number; length: number }[];
  /** Of all of them. */
  bytes: number;
}

export interface RepairReport {
  leaf: string;
  /** Nothing was wrong if this is empty. */
  items: RepairItem[];
  repaired: boolean;
  /** What was overwritten; null if nothing was. */
  backup: string | null;
  /** Bytes of the device that the leaf has now. */
  changedBytes: number;
}

const RANGES_MAX = 1000;

export async function repairLeaf(
  spec: RepairSpec,
  options: WorkOptions = {},
): Promise<RepairReport> {
  const work = new Work(options);
  const file = work.world.open(spec.leaf, { readOnly: spec.dryRun ?? false });
  try {
    if (isMapBehind(chooseSuperblock(readSuperblockCopies(file), file.name).geometry))
      return grownReport(file, spec.leaf);
    const found = salvage(file);
    refuseUnknown(spec.leaf, found);
    const unproved = file.blockDevice ? 'root' : (spec.unproved ?? 'data');
    const { items, map } = plan(file, found, unproved);
    const report: RepairReport = {
      leaf: spec.leaf,
      items,
      repaired: false,
      backup: null,
      changedBytes: map.mapped * SECTOR_BYTES,
    };
    if (items.length === 0 || spec.dryRun) return report;
    report.backup = await keepBackup(file, spec.leaf, found, work);
    work.goOn();
    apply(file, found, map);
    report.repaired = true;
    return report;
  } finally {
    file.close();
  }
}

/** Of a leaf that has grown: that it is sound, or an error. */
function grownReport(file: OpenFile, leaf: string): RepairReport {
  const { ok, findings, changedBytes } = checkMedia(file);
  if (findings.length === 0)
    return { leaf, items: [], repaired: false, backup: null, changedBytes };
  const first = findings.find(({ severity }) => severity === 'damage') ?? findings[0]!;
  throw new UbdError('unsupported', `${leaf} has grown, and such a leaf is not repaired yet`, {
    place: { file: leaf, offset: first.offset },
    next: ok
      ? 'Nothing is lost: attaching it puts it right. `ubd check` says what there is.'
      : '`ubd check` lists the damage. Nothing was changed; restore the leaf from a backup, or ' +
        'from a stream of `ubd send`.',
  });
}

function refuseUnknown(leaf: string, { superblock }: Salvage): void {
  const unknown = superblock.readOnlyCompatible & ~KNOWN_READ_ONLY_COMPATIBLE;
  if (unknown === 0) return;
  throw new UbdError(
    'unsupported',
    `${leaf}: this ubd cannot write features of the leaf (0x${(unknown >>> 0).toString(16)})`,
    { place: { file: leaf }, next: 'Use the version of ubd that made it.' },
  );
}

/** What is to be done about each damage, and the map that comes of it: all of it to be written. */
function plan(
  file: OpenFile,
  found: Salvage,
  unproved: Unproved,
): { items: RepairItem[]; map: SectorMap } {
  const map = new SectorMap(found.map.sectors);
  copyRuns(found.map, map, 0, map.sectors);
  const items = found.damage.map(damage => {
    const item = new Item(damage);
    if (damage.effect === 'nothing') return item.proved();
    if (damage.effect === 'gone') return item.gone(damage.lost ?? []);
    for (const range of unclaimedData(file, found, damage.range)) {
      item.add(range);
      if (unproved === 'data') map.setRange(range.from, range.end - range.from);
    }
    return item.unknown(unproved, file.blockDevice);
  });
  return { items, map };
}

class Item implements RepairItem {
  readonly offset: number;
  readonly damage: string;
  repair = '';
  kind: RepairItem['kind'] = 'proved';
  readonly ranges: RepairItem['ranges'] = [];
  bytes = 0;

  constructor({ offset, what }: Damage) {
    this.offset = offset;
    this.damage = what;
  }

  add({ from, end }: SectorRange): void {
    const length = (end - from) * SECTOR_BYTES;
    this.bytes += length;
    if (this.ranges.length < RANGES_MAX) this.ranges.push({ start: from * SECTOR_BYTES, length });
  }

  proved(): this {
    this.repair = 'written anew: nothing is lost';
    return this;
  }

  gone(ranges: readonly SectorRange[]): this {
    this.kind = ranges.length > 0 ? 'lost' : 'proved';
    for (const range of ranges) this.add(range);
    this.repair =
      'made longer again; what the leaf had there is lost; it reads as what the leaf stands on';
    return this;
  }

  unknown(unproved: Unproved, blockDevice: boolean): this {
    const { bytes } = this;
    if (blockDevice) {
      this.kind = 'lost';
      this.repair =
        'which sectors it told of is not known, and a block device does not tell where it holds ' +
        'data; they read as what the leaf stands on';
    } else if (unproved === 'data') {
      this.kind = 'assumed';
      this.repair =
        `${bytes} bytes are taken for the leaf's, since its file holds data there; ` +
        'sectors that were zeroed may be missing';
    } else {
      this.kind = 'lost';
      this.repair = `${bytes} bytes of data in the file are not used: not known to be the leaf's`;
    }
    return this;
  }
}

/** Copies everything before the data to a file of its own: durable when this returns. */
async function keepBackup(
  file: OpenFile,
  leaf: string,
  { superblock }: Salvage,
  work: Work,
): Promise<string> {
  const { world } = work;
  let number = 1;
  while (world.exists(`${leaf}.before-repair-${number}`)) number++;
  const path = `${leaf}.before-repair-${number}`;
  const length = Math.min(file.sizeBytes, superblock.geometry.dataOffset);
  work.begin(`copying the head of ${leaf}`, length);
  const backup = Temporary.make(world, path);
  const copier = new Copier(backup.file, work);
  try {
    backup.file.resize(length);
    for (let at = file.nextData(0, length); at < length; at = file.nextData(at, length)) {
      const end = file.nextHole(at, length);
      await copier.add(file, at, at, end - at);
      at = end;
    }
    await copier.drain();
    backup.publish(path);
  } finally {
    await copier.settle();
    backup.discard();
  }
  world.syncDirectory(dirname(path));
  return path;
}

/** Writes the map, by the same code that serves a leaf, and with it both superblocks. */
function apply(file: OpenFile, { superblock, nextSequence }: Salvage, map: SectorMap): void {
  const needed = superblock.geometry.dataOffset + superblock.sizeSectors * SECTOR_BYTES;
  if (file.sizeBytes < needed) file.resize(needed);
  clearDirectories(file, superblock.geometry, map);
  const io = new MediaIo(file);
  const commit = new Commit({
    io,
    fd: file.fd,
    map,
    superblock,
    head: 0,
    nextSequence,
    unwritten: true,
  });
  // First a checkpoint of what is known, then the one that closes it: each writes a superblock.
  io.run(op => commit.close(op));
}

/** Directory sectors that are to be empty, and are not written by a checkpoint. */
function clearDirectories(
  file: OpenFile,
  { directoryOffset }: Salvage['superblock']['geometry'],
  map: SectorMap,
): void {
  const used = new Set(map.peekDirtyDirectories());
  const zeroes = new Uint8Array(SECTOR_BYTES);
  const end = directoryOffset + map.directories * SECTOR_BYTES;
  for (let at = file.nextData(directoryOffset, end); at < end; at = file.nextData(at, end)) {
    at -= (at - directoryOffset) % SECTOR_BYTES;
    const number = (at - directoryOffset) / SECTOR_BYTES;
    if (!used.has(number)) file.write(zeroes, at);
    at += SECTOR_BYTES;
  }
}
