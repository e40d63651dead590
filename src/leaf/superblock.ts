/**
 * The superblock: who this leaf is, what it stands on, where everything lies, where the log begins.
 *
 * Two copies. Each write takes the next generation and goes to copy `generation mod 2`, so the copy
 * written before stays whole until the new one is durable. What the older copy says is true as
 * well, only older: its log begins earlier, and replaying more of the log than needed changes
 * nothing.
 */
import { crc32 } from 'node:zlib';
import { corrupt, UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import {
  bytesToUuid,
  COMPATIBLE,
  DATA_ALIGN,
  FLAG,
  FORMAT_VERSION,
  type Geometry,
  geometryBehind,
  geometryFor,
  INCOMPATIBLE,
  isMapBehind,
  KNOWN_INCOMPATIBLE,
  LEAF_BYTES_MAX,
  LOG_BYTES_MAX,
  LOG_BYTES_MIN,
  MAGIC,
  PARENT_FLAG_DIGEST,
  PARENT_KIND,
  QUOTA_FLAG_RECONCILE,
  QUOTA_FLAG_SILENT,
  READ_ONLY_COMPATIBLE,
  REGION_ALIGN,
  SUPERBLOCK,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSETS,
  uuidToBytes,
} from './format.ts';
import type { Media } from './media.ts';

/** What a leaf stands on. */
export interface LeafParent {
  kind: 'none' | 'root' | 'leaf';
  sizeBytes: number;
  /** Path or URI, as it was when the leaf was made; a relative one begins at the leaf's place. */
  path: string;
  /** 32 bytes; of a root: see src/image; of a frozen leaf: see lineage.ts. */
  fingerprint: Uint8Array;
  /** SHA-256 of the whole content, where somebody has paid for it. */
  digest: Uint8Array | null;
  /** Of a parent that is a leaf. */
  uuid: string | null;
}

/** Why a leaf takes no writes, or soon will not: it is, or becomes, an intermediate image. */
export interface Freeze {
  /** A random UUID of this freezing: a leaf that was thawed and frozen again has another. */
  id: string;
  seconds: number;
  /** False: it may have been interrupted. See "Freezing" in FORMAT.md. */
  done: boolean;
}

/** What the daemon does at the mark and at the quota. */
export type QuotaAction = 'event' | 'nothing' | 'reconcile';

const QUOTA_FLAGS: Readonly<Record<QuotaAction, number>> = {
  event: 0,
  nothing: QUOTA_FLAG_SILENT,
  reconcile: QUOTA_FLAG_RECONCILE,
};

/** How much the leaf may hold. */
export interface Quota {
  /** Of mapped sectors. */
  bytes: number;
  /** Where to warn. */
  warnBytes: number;
  action: QuotaAction;
}

export interface Superblock {
  generation: number;
  uuid: string;
  sizeSectors: number;
  geometry: Geometry;
  /** The first log record that counts; older ones are in the map. */
  logStart: number;
  /**
   * Records before this one were durable when the superblock was written, so they must be there.
   */
  logEnd: number;
  /** How many sectors the map on disk has at least: as many as at the last checkpoint. */
  mappedSectors: number;
  createdSeconds: number;
  /** Closed in order: everything is in the map. */
  clean: boolean;
  label: string;
  parent: LeafParent;
  freeze: Freeze | null;
  quota: Quota | null;
  /** As read, with what we do not know; what we know follows from the fields above. */
  readOnlyCompatible: number;
}

const MAGIC_BYTES = Buffer.from(`${MAGIC}\0`);
const NO_UUID = '00000000-0000-0000-0000-000000000000';
const KINDS = ['none', 'root', 'leaf'] as const;

/** Writes a superblock's 4096 bytes at `offset`, with its CRC. */
export function encodeSuperblock(superblock: Superblock, target: Uint8Array, offset: number): void {
  const view = new DataView(target.buffer, target.byteOffset);
  const { parent, geometry, freeze, quota } = superblock;
  SUPERBLOCK.write(view, offset, {
    ...geometry,
    magic: MAGIC,
    version: FORMAT_VERSION,
    incompatible:
      (parent.kind === 'leaf' ? INCOMPATIBLE.CHAINED : 0) |
      (isMapBehind(geometry) ? INCOMPATIBLE.MAP_BEHIND : 0),
    readOnlyCompatible: freeze === null ? 0 : READ_ONLY_COMPATIBLE.FROZEN,
    compatible: quota === null ? 0 : COMPATIBLE.QUOTA,
    generation: superblock.generation,
    uuid: uuidToBytes(superblock.uuid),
    sizeSectors: superblock.sizeSectors,
    logStart: superblock.logStart,
    logEnd: superblock.logEnd,
    mappedSectors: superblock.mappedSectors,
    createdSeconds: superblock.createdSeconds,
    flags: (superblock.clean ? FLAG.CLEAN : 0) | freezeFlag(freeze),
    parentKind: KINDS.indexOf(parent.kind),
    parentBytes: parent.sizeBytes,
    parentUuid: uuidToBytes(parent.uuid ?? NO_UUID),
    parentFingerprint: parent.fingerprint,
    parentDigest: parent.digest ?? new Uint8Array(32),
    parentFlags: parent.digest === null ? 0 : PARENT_FLAG_DIGEST,
    label: superblock.label,
    parentPath: parent.path,
    ...(freeze !== null && { freezeId: uuidToBytes(freeze.id), frozenSeconds: freeze.seconds }),
    ...(quota !== null && {
      quotaBytes: quota.bytes,
      quotaWarnBytes: quota.warnBytes,
      quotaFlags: QUOTA_FLAGS[quota.action],
    }),
  });
  const crc = crc32(target.subarray(offset, offset + SUPERBLOCK.at.crc));
  view.setUint32(offset + SUPERBLOCK.at.crc, crc, true);
}

function freezeFlag(freeze: Freeze | null): number {
  if (freeze === null) return 0;
  return freeze.done ? FLAG.FROZEN : FLAG.FREEZING;
}

/** One copy as read: the superblock, or what is wrong with it. */
export interface SuperblockCopy {
  offset: number;
  superblock: Superblock | null;
  /** Null if it is valid. */
  damage: string | null;
  /** Nothing there: all zeroes. */
  blank: boolean;
  /** It begins like a superblock of ours. */
  ours: boolean;
}

export function decodeSuperblock(raw: Uint8Array, offset: number, file: string): SuperblockCopy {
  const ours = MAGIC_BYTES.every((byte, i) => raw[i] === byte);
  const copy: SuperblockCopy = {
    offset,
    superblock: null,
    damage: null,
    blank: !ours && raw.every(byte => byte === 0),
    ours,
  };
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  if (!copy.ours) copy.damage = copy.blank ? 'nothing there' : 'magic number';
  else if (crc32(raw.subarray(0, SUPERBLOCK.at.crc)) !== view.getUint32(SUPERBLOCK.at.crc, true))
    copy.damage = 'CRC-32';
  if (copy.damage !== null) return copy;

  const version = view.getUint32(SUPERBLOCK.at.version, true);
  const unknown = view.getUint32(SUPERBLOCK.at.incompatible, true) & ~KNOWN_INCOMPATIBLE;
  if (version !== FORMAT_VERSION || unknown !== 0) {
    const what =
      version === FORMAT_VERSION
        ? `features unknown to this ubd (0x${(unknown >>> 0).toString(16)})`
        : `format version ${version}; this ubd knows version ${FORMAT_VERSION}`;
    throw new UbdError('unsupported', `${file}: the leaf has ${what}`, {
      place: { file, offset },
      next: 'Use the version of ubd that made it, or a newer one.',
    });
  }
  try {
    const superblock = interpret(SUPERBLOCK.read(view, 0));
    if (SUPERBLOCK_OFFSETS[superblock.generation % 2] === offset) copy.superblock = superblock;
    else copy.damage = `generation ${superblock.generation} does not belong here`;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    copy.damage = error.message;
  }
  return copy;
}

/**
 * Turns fields whose CRC is right into a superblock; a RangeError says which of them makes no
 * sense.
 */
function interpret(fields: ReturnType<typeof SUPERBLOCK.read>): Superblock {
  const { sizeSectors, logOffset, logBytes, directoryOffset, directoryBytes } = fields;
  const { mapOffset, mapBytes, dataOffset } = fields;
  require(sizeSectors > 0 && sizeSectors * SECTOR_BYTES <= LEAF_BYTES_MAX, 'device size');
  require(logBytes >= LOG_BYTES_MIN &&
    logBytes <= LOG_BYTES_MAX &&
    logBytes % REGION_ALIGN === 0, 'log length');
  const geometry: Geometry = {
    logOffset,
    logBytes,
    directoryOffset,
    directoryBytes,
    mapOffset,
    mapBytes,
    dataOffset,
  };
  const behind = (fields.incompatible & INCOMPATIBLE.MAP_BEHIND) !== 0;
  if (behind) {
    require(dataOffset % DATA_ALIGN === 0 && dataOffset >= logOffset + logBytes, 'dataOffset');
    const dataEnd = dataOffset + sizeSectors * SECTOR_BYTES;
    require(directoryOffset % REGION_ALIGN === 0 && directoryOffset >= dataEnd, 'directoryOffset');
  }
  const expected = behind
    ? geometryBehind(sizeSectors, geometry, directoryOffset)
    : geometryFor(sizeSectors, logBytes);
  for (const name of Object.keys(expected) as (keyof Geometry)[])
    require(geometry[name] === expected[name], name);
  require(fields.logStart >= 1 && fields.logEnd >= fields.logStart, 'log sequence');
  require(fields.mappedSectors <= sizeSectors, 'count of mapped sectors');
  const kind = KINDS[fields.parentKind];
  require(kind !== undefined, 'kind of the parent');
  const chained = (fields.incompatible & INCOMPATIBLE.CHAINED) !== 0;
  require(chained === (kind === 'leaf'), 'kind of the parent');
  const hasDigest = (fields.parentFlags & PARENT_FLAG_DIGEST) !== 0;
  const clean = (fields.flags & FLAG.CLEAN) !== 0;
  const frozen = (fields.flags & FLAG.FROZEN) !== 0;
  const freezing = (fields.flags & FLAG.FREEZING) !== 0;
  const marked = (fields.readOnlyCompatible & READ_ONLY_COMPATIBLE.FROZEN) !== 0;
  require(marked === (frozen || freezing) && !(frozen && freezing), 'mark of a frozen leaf');
  require(!frozen || (clean && fields.logStart === fields.logEnd), 'log of a frozen leaf');
  const limited = (fields.compatible & COMPATIBLE.QUOTA) !== 0;
  return {
    generation: fields.generation,
    uuid: bytesToUuid(fields.uuid),
    sizeSectors,
    geometry,
    logStart: fields.logStart,
    logEnd: fields.logEnd,
    mappedSectors: fields.mappedSectors,
    createdSeconds: fields.createdSeconds,
    clean,
    label: fields.label,
    parent: {
      kind,
      sizeBytes: fields.parentBytes,
      path: fields.parentPath,
      fingerprint: fields.parentFingerprint,
      digest: hasDigest ? fields.parentDigest : null,
      uuid: fields.parentKind === PARENT_KIND.LEAF ? bytesToUuid(fields.parentUuid) : null,
    },
    freeze: marked
      ? { id: bytesToUuid(fields.freezeId), seconds: fields.frozenSeconds, done: frozen }
      : null,
    quota: limited
      ? {
          bytes: fields.quotaBytes,
          warnBytes: fields.quotaWarnBytes,
          action: actionOf(fields.quotaFlags),
        }
      : null,
    readOnlyCompatible: fields.readOnlyCompatible,
  };
}

function actionOf(flags: number): QuotaAction {
  if ((flags & QUOTA_FLAG_SILENT) !== 0) return 'nothing';
  return (flags & QUOTA_FLAG_RECONCILE) !== 0 ? 'reconcile' : 'event';
}

function require(holds: boolean, what: string): asserts holds {
  if (!holds) throw new RangeError(`${what} makes no sense`);
}

/** Both copies, as they are. */
export function readSuperblockCopies(media: Media): [SuperblockCopy, SuperblockCopy] {
  const [first, second] = SUPERBLOCK_OFFSETS;
  // They lie side by side, from the start on: what a shorter file lacks is as if it were zeroes.
  const raw = new Uint8Array(second + SUPERBLOCK_BYTES);
  const whole = Math.floor(Math.min(media.sizeBytes, raw.length) / SUPERBLOCK_BYTES);
  if (whole > 0) media.read(raw.subarray(0, whole * SUPERBLOCK_BYTES), first);
  const decode = (offset: number): SuperblockCopy =>
    decodeSuperblock(raw.subarray(offset, offset + SUPERBLOCK_BYTES), offset, media.name);
  return [decode(first), decode(second)];
}

/**
 * The superblock that counts. Throws where there is none: not a leaf, or one that is damaged beyond
 * use.
 */
export function chooseSuperblock(
  copies: readonly [SuperblockCopy, SuperblockCopy],
  file: string,
): Superblock {
  const [a, b] = copies;
  if (a.superblock !== null && b.superblock !== null) {
    if (a.superblock.uuid !== b.superblock.uuid)
      throw corrupt(file, b.offset, 'the two superblocks belong to different leaves');
    return a.superblock.generation > b.superblock.generation ? a.superblock : b.superblock;
  }
  const valid = a.superblock ?? b.superblock;
  if (valid !== null) return valid;
  const damaged = a.ours ? a : b.ours ? b : null;
  const other = damaged === a ? b : a;
  if (damaged !== null)
    throw corrupt(
      file,
      damaged.offset,
      `superblock: ${damaged.damage}; the other copy, at offset ${other.offset}: ${other.damage}`,
      'Restore the file from a backup: without a superblock nothing in it can be trusted.',
    );
  throw new UbdError('not-a-leaf', `${file} is not a leaf: no superblock at its start`, {
    place: { file, offset: 0 },
    next:
      a.blank && b.blank ? 'It is empty: remove it if nothing else needs it.' : 'Check the path.',
  });
}
