/**
 * The stream of `send` and `receive`, version 1: every structure. STREAM.md says the same in prose
 * and tables; a test compares the two.
 *
 *     header ─ record [data] ─ record [data] ─ … ─ END digest
 */
import { crc32 } from 'node:zlib';
import { assert } from '../base/assert.ts';
import { UbdError } from '../base/errors.ts';
import { bytes, type Field, type Layout, layout, text, u32, u64, zero } from '../base/layout.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import {
  bytesToUuid,
  LABEL_BYTES_MAX,
  LEAF_BYTES_MAX,
  PATH_BYTES_MAX,
  uuidToBytes,
} from '../leaf/format.ts';

const MAGIC = 'UBDSEND';
const VERSION = 1;
const HEADER_BYTES = 4096;
const FLAG_FROZEN = 1;
const BASE_KINDS = ['none', 'root', 'leaf'] as const;

export const RECORD_KIND = { DATA: 1, ZEROES: 2, END: 3 } as const;
const RECORD_MAGIC = 0x43455255; // 'UREC'
export const DATA_SECTORS_MAX = 2048;
export const DIGEST_BYTES = 32;

type Numbers<Names extends string> = { [N in Names]: Field<number> };
type Texts<Names extends string> = { [N in Names]: Field<string> };
type Bytes<Names extends string> = { [N in Names]: Field<Uint8Array> };
type Zeroes<Names extends string> = { [N in Names]: Field<boolean> };

export const STREAM_HEADER: Layout<
  Texts<'magic' | 'label' | 'basePath'> &
    Numbers<'version' | 'incompatible' | 'sizeSectors' | 'flags' | 'baseKind' | 'baseBytes'> &
    Numbers<'frozenSeconds' | 'createdSeconds' | 'crc'> &
    Bytes<'uuid' | 'baseUuid' | 'baseFreezeId' | 'baseFingerprint' | 'freezeId'> &
    Zeroes<'padding'>
> = layout('stream header', {
  magic: text(8),
  version: u32,
  incompatible: u32,
  uuid: bytes(16),
  sizeSectors: u64,
  flags: u32,
  baseKind: u32,
  baseBytes: u64,
  baseUuid: bytes(16),
  baseFreezeId: bytes(16),
  baseFingerprint: bytes(32),
  freezeId: bytes(16),
  frozenSeconds: u64,
  createdSeconds: u64,
  label: text(LABEL_BYTES_MAX),
  basePath: text(PATH_BYTES_MAX),
  padding: zero(1828),
  crc: u32,
});
assert(STREAM_HEADER.size === HEADER_BYTES, 'a stream header is one block');

export const STREAM_RECORD: Layout<
  Numbers<'magic' | 'crc' | 'kind' | 'sector' | 'count'> & Zeroes<'zero'>
> = layout('stream record', {
  magic: u32,
  crc: u32,
  kind: u32,
  zero: zero(4),
  sector: u64,
  count: u64,
});

/** What the changes are to. */
export interface StreamBase {
  kind: 'none' | 'root' | 'leaf';
  sizeBytes: number;
  path: string;
  /** Of a root, 32 bytes. */
  fingerprint: Uint8Array | null;
  /** Of a frozen leaf. */
  frozen: { uuid: string; freezeId: string } | null;
}

export interface StreamHeader {
  uuid: string;
  sizeSectors: number;
  createdSeconds: number;
  label: string;
  /** The leaf is frozen. */
  freeze: { id: string; seconds: number } | null;
  base: StreamBase;
}

export function encodeHeader({ base, freeze, ...header }: StreamHeader): Uint8Array {
  const raw = new Uint8Array(HEADER_BYTES);
  const view = new DataView(raw.buffer);
  STREAM_HEADER.write(view, 0, {
    magic: MAGIC,
    version: VERSION,
    incompatible: 0,
    uuid: uuidToBytes(header.uuid),
    sizeSectors: header.sizeSectors,
    flags: freeze === null ? 0 : FLAG_FROZEN,
    baseKind: BASE_KINDS.indexOf(base.kind),
    baseBytes: base.sizeBytes,
    createdSeconds: header.createdSeconds,
    label: header.label,
    basePath: base.path,
    ...(base.fingerprint && { baseFingerprint: base.fingerprint }),
    ...(base.frozen && {
      baseUuid: uuidToBytes(base.frozen.uuid),
      baseFreezeId: uuidToBytes(base.frozen.freezeId),
    }),
    ...(freeze && { freezeId: uuidToBytes(freeze.id), frozenSeconds: freeze.seconds }),
  });
  view.setUint32(STREAM_HEADER.at.crc, crc32(raw.subarray(0, STREAM_HEADER.at.crc)), true);
  return raw;
}

/** @param name of the stream, for messages */
export function decodeHeader(raw: Uint8Array, name: string): StreamHeader {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  if (Buffer.from(raw.subarray(0, 8)).toString('latin1') !== `${MAGIC}\0`)
    throw new UbdError('corrupt', `${name}: this is no stream of ubd send`, {
      place: { file: name, offset: 0 },
    });
  if (crc32(raw.subarray(0, STREAM_HEADER.at.crc)) !== view.getUint32(STREAM_HEADER.at.crc, true))
    throw damagedStream(name, 0, 'the header: CRC-32');
  const version = view.getUint32(STREAM_HEADER.at.version, true);
  const incompatible = view.getUint32(STREAM_HEADER.at.incompatible, true);
  if (version !== VERSION || incompatible !== 0)
    throw new UbdError(
      'unsupported',
      `${name}: version ${version}, features 0x${incompatible.toString(16)} of the stream`,
      { place: { file: name, offset: 0 }, next: 'Use the version of ubd that sent it.' },
    );
  let fields: ReturnType<typeof STREAM_HEADER.read>;
  try {
    fields = STREAM_HEADER.read(view, 0);
  } catch {
    throw damagedStream(name, 0, 'the header makes no sense');
  }
  const kind = BASE_KINDS[fields.baseKind];
  const { sizeSectors } = fields;
  if (kind === undefined || sizeSectors === 0 || sizeSectors * SECTOR_BYTES > LEAF_BYTES_MAX)
    throw damagedStream(name, 0, 'the header makes no sense');
  return {
    uuid: bytesToUuid(fields.uuid),
    sizeSectors: fields.sizeSectors,
    createdSeconds: fields.createdSeconds,
    label: fields.label,
    freeze:
      (fields.flags & FLAG_FROZEN) === 0
        ? null
        : { id: bytesToUuid(fields.freezeId), seconds: fields.frozenSeconds },
    base: {
      kind,
      sizeBytes: fields.baseBytes,
      path: fields.basePath,
      fingerprint: kind === 'root' ? fields.baseFingerprint : null,
      frozen:
        kind === 'leaf'
          ? { uuid: bytesToUuid(fields.baseUuid), freezeId: bytesToUuid(fields.baseFreezeId) }
          : null,
    },
  };
}

/** Writes a record at the start of `target`; the data that belong to it lie behind it. */
export function sealRecord(
  target: Uint8Array,
  kind: number,
  sector: number,
  count: number,
  dataBytes: number,
): void {
  const view = new DataView(target.buffer, target.byteOffset);
  STREAM_RECORD.write(view, 0, { magic: RECORD_MAGIC, kind, sector, count });
  view.setUint32(STREAM_RECORD.at.crc, recordCrc(target, dataBytes), true);
}

/** Of a record and the data behind it. */
export function recordCrc(source: Uint8Array, dataBytes: number): number {
  return crc32(source.subarray(STREAM_RECORD.at.kind, STREAM_RECORD.size + dataBytes));
}

/** What follows the record's 32 bytes, as far as it makes sense. Throws where it does not. */
export function readRecord(
  raw: Uint8Array,
  name: string,
  offset: number,
): { kind: number; sector: number; count: number; crc: number; dataBytes: number } {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  let fields: ReturnType<typeof STREAM_RECORD.read>;
  try {
    fields = STREAM_RECORD.read(view, 0);
  } catch {
    throw damagedStream(name, offset, 'a record makes no sense');
  }
  const { magic, kind, sector, count, crc } = fields;
  if (magic !== RECORD_MAGIC) throw damagedStream(name, offset, 'no record begins here');
  const isData = kind === RECORD_KIND.DATA;
  if (isData && (count === 0 || count > DATA_SECTORS_MAX))
    throw damagedStream(name, offset, `a record of ${count} sectors`);
  if (!isData && kind !== RECORD_KIND.ZEROES && kind !== RECORD_KIND.END)
    throw damagedStream(name, offset, `a record of kind ${kind}`);
  return { kind, sector, count, crc, dataBytes: isData ? count * SECTOR_BYTES : 0 };
}

export function damagedStream(name: string, offset: number, what: string): UbdError {
  return new UbdError('corrupt', `${name}: damaged at offset ${offset}: ${what}`, {
    place: { file: name, offset },
    next: 'send it again; nothing was made of it',
  });
}
