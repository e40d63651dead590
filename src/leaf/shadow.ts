/**
 * The shadow of a leaf's map: what became mapped since the leaf was opened, in memory that outlives
 * the process.
 *
 * A device may outlive its server (ublk): its users notice no crash, so nothing that was answered
 * may be missing afterwards, flushed or not. The data are not: they are in the leaf's page cache.
 * But that a sector is the leaf's is known by the map alone, in this process, until the next
 * commit. So each bit of a first write is also set here, by a store into a shared mapping of a
 * file, before the write is answered.
 *
 *     byte 0     header: magic, boot, leaf, and its size when the shadow was made
 *     byte 4096  one bit for each sector, in little-endian words; allocated piece by piece
 *
 * The next process puts the bits into the map, and goes on with the same shadow. After a leaf was
 * closed in order that changes nothing: the map has them all.
 *
 * A shadow stands for the page cache, and is good for nothing without it: only in the boot in which
 * it was made, for this leaf. Bits are never cleared; those of sectors that the map has are
 * harmless. Losing the shadow is like losing power: the leaf is sound, what was not flushed is
 * gone, and a device that did not notice must not go on. Whoever opens the leaf without its shadow
 * removes it first.
 */
import {
  closeSync,
  constants,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { EFBIG, EIO, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { layout, text, u64 } from '../base/layout.ts';
import { native } from '../native/binding.ts';
import type { OpenedLeaf } from './opened.ts';
import { SectorMap } from './sector-map.ts';

const MAGIC = 'UBDSHDW1';
const HEADER = layout('leaf shadow', {
  magic: text(8),
  boot: text(40),
  leaf: text(40),
  sizeSectors: u64,
});
const BITS_AT = 4096;

/** Allocated at a time: the bits of 256 MiB of the device. */
const PIECE_BYTES = 65536;
const PIECE_SECTORS: number = PIECE_BYTES * 8;
/** One mapping holds no more (see native.mapMemory): the bits of nearly 16 TiB. */
const FILE_BYTES_MAX = 2 ** 32;

const SEEK_DATA = 3;

/**
 * A shadow that the control plane has opened, for `LeafShadow`. Whoever has it owns the descriptor.
 */
export interface OpenedShadow {
  fd: number;
  sizeSectors: number;
}

/** What the leaf asks of it. */
export interface Shadow {
  /** Makes room for the bits of a range: 0, or a negative errno, and then nothing may be set. */
  reserve(sector: number, count: number): number;
  /** The range is the leaf's; its room is reserved. */
  set(sector: number, count: number): void;
}

/** Sets bits on the data path. */
export class LeafShadow implements Shadow {
  readonly #fd: number;
  #address = 0;
  #words: Uint32Array = new Uint32Array(0);
  /** For each piece: not 0 if it is allocated. */
  #allocated: Uint8Array = new Uint8Array(0);

  /** The descriptor stays the caller's, who closes it after `close`. */
  constructor({ fd, sizeSectors }: OpenedShadow) {
    this.#fd = fd;
    const result = this.#map(fileBytes(sizeSectors));
    if (result < 0) throw new UbdError('io', `mapping the shadow of a leaf: ${errnoName(result)}`);
  }

  /**
   * Makes it the shadow of a leaf that is going to grow: 0, or a negative errno, and then it is as
   * it was. One that is larger than its leaf is fine.
   */
  grow(sizeSectors: number): number {
    const length = fileBytes(sizeSectors);
    if (length > FILE_BYTES_MAX) return -EFBIG;
    if (length <= this.#words.byteLength + BITS_AT) return 0;
    try {
      ftruncateSync(this.#fd, length);
    } catch (thrown) {
      return (thrown as NodeJS.ErrnoException).errno ?? -EIO;
    }
    const [address, allocated] = [this.#address, this.#allocated];
    const result = this.#map(length);
    if (result < 0) return result;
    this.#allocated.set(allocated);
    native.unmapMemory(address);
    return 0;
  }

  /** Changes nothing where it fails. */
  #map(length: number): number {
    const mapped = native.mapFile(this.#fd, length, 0);
    if (typeof mapped === 'number') return mapped;
    this.#address = mapped.address;
    this.#words = new Uint32Array(mapped.buffer, BITS_AT);
    this.#allocated = new Uint8Array((length - BITS_AT) / PIECE_BYTES);
    return 0;
  }

  reserve(sector: number, count: number): number {
    const last = Math.floor((sector + count - 1) / PIECE_SECTORS);
    for (let piece = Math.floor(sector / PIECE_SECTORS); piece <= last; piece++) {
      if (this.#allocated[piece] !== 0) continue;
      const at = BITS_AT + piece * PIECE_BYTES;
      const result = native.fallocate(this.#fd, 0, at, PIECE_BYTES);
      if (result < 0) return result;
      this.#allocated[piece] = 1;
    }
    return 0;
  }

  set(sector: number, count: number): void {
    const words = this.#words;
    const last = sector + count - 1;
    // Beyond 2^32 sectors a shift would cut the number.
    const firstWord = Math.floor(sector / 32);
    const lastWord = Math.floor(last / 32);
    for (let word = firstWord; word <= lastWord; word++) {
      let mask = -1;
      if (word === firstWord) mask &= -1 << (sector % 32);
      if (word === lastWord) mask &= -1 >>> (31 - (last % 32));
      words[word]! |= mask;
    }
  }

  close(): void {
    native.unmapMemory(this.#address);
  }
}

/**
 * Opens the shadow of a leaf that was just opened, or makes a new one. With `goingOn`, the device
 * lived on while nobody served it: what a dead process had answered is put into the leaf's map;
 * throws where it is not known. Without, the device is new, and an old shadow is dropped.
 * @param path of the file, on tmpfs
 */
export function openShadow(path: string, opened: OpenedLeaf, goingOn: boolean): OpenedShadow {
  const { sizeSectors, uuid } = opened.superblock;
  if (fileBytes(sizeSectors) > FILE_BYTES_MAX)
    throw new UbdError('unsupported', `${opened.name}: too large to outlive its server (16 TiB)`);
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    if (goingOn && !isOf(readHeader(fd), opened)) throw lost(path, opened);
    if (goingOn) replay(fd, opened);
    else ftruncateSync(fd, 0);
    const raw = new Uint8Array(HEADER.size);
    HEADER.write(new DataView(raw.buffer), 0, {
      magic: MAGIC,
      boot: bootId(),
      leaf: uuid,
      sizeSectors,
    });
    ftruncateSync(fd, fileBytes(sizeSectors));
    writeSync(fd, raw, 0, raw.length, 0);
    return { fd, sizeSectors };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * Puts what a dead process had answered into the map of a leaf that it left, if it is known: of a
 * leaf that was being frozen.
 */
export function replayShadow(path: string, opened: OpenedLeaf): void {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY);
  } catch {
    return; // it had none
  }
  try {
    if (isOf(readHeader(fd), opened)) replay(fd, opened);
  } finally {
    closeSync(fd);
  }
}

type Header = ReturnType<typeof HEADER.read>;

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

function readHeader(fd: number): Header {
  const raw = new Uint8Array(HEADER.size);
  readSync(fd, raw, 0, raw.length, 0);
  return HEADER.read(new DataView(raw.buffer), 0);
}

function isOf(header: Header, { superblock }: OpenedLeaf): boolean {
  return (
    header.magic === MAGIC &&
    header.boot === bootId() &&
    header.leaf === superblock.uuid &&
    header.sizeSectors <= superblock.sizeSectors // it may have grown since
  );
}

/** The leaf is to be used without a shadow, or its device is no more. */
export function removeShadow(path: string): void {
  rmSync(path, { force: true });
}

/** Puts the shadow's bits into the map of the leaf, which then has to write them down. */
function replay(fd: number, opened: OpenedLeaf): void {
  const map = SectorMap.fromState(opened.map);
  const before = map.mapped;
  const bytes = new Uint8Array(PIECE_BYTES);
  const words = new Uint32Array(bytes.buffer);
  for (let at = native.lseek(fd, BITS_AT, SEEK_DATA); at >= 0; ) {
    at -= (at - BITS_AT) % PIECE_BYTES;
    bytes.fill(0);
    readSync(fd, bytes, 0, PIECE_BYTES, at);
    setRuns(map, words, (at - BITS_AT) * 8);
    at = native.lseek(fd, at + PIECE_BYTES, SEEK_DATA);
  }
  const added = map.mapped - before;
  opened.map = map.toState();
  if (added === 0) return;
  opened.unwritten = true;
  opened.notes.push(
    `${added} sectors were answered for by a process that died, and not flushed: kept`,
  );
}

/** Maps every run of set bits; bit 0 is sector `first`. */
function setRuns(map: SectorMap, words: Uint32Array, first: number): void {
  let from = -1;
  for (let bit = 0; bit < words.length * 32; bit++) {
    const word = words[bit >>> 5]!;
    if ((bit & 31) === 0 && (word === 0 ? from < 0 : word === 0xffffffff && from >= 0)) {
      bit += 31; // the whole word changes nothing
      continue;
    }
    const set = ((word >>> (bit & 31)) & 1) === 1;
    if (set && from < 0) from = bit;
    if (!set && from >= 0) {
      map.setRange(first + from, bit - from);
      from = -1;
    }
  }
  if (from >= 0) map.setRange(first + from, words.length * 32 - from);
}

function lost(path: string, opened: OpenedLeaf): UbdError {
  return new UbdError(
    'io',
    `${opened.name}: its device lives on, but what was written last is not known`,
    {
      place: { file: path },
      next: 'detach the device by force: what it flushed is in the leaf, as after a power failure',
    },
  );
}

function fileBytes(sectors: number): number {
  return BITS_AT + Math.ceil(sectors / PIECE_SECTORS) * PIECE_BYTES;
}
