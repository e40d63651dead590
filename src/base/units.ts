/**
 * Units of size. The only place where sectors, blocks and bytes are turned into each other.
 *
 * All quantities are plain numbers: exact up to 2^53 bytes (8 PiB), far beyond any device we
 * accept. Bit operations would cut them to 32 bits, so conversions multiply and divide.
 */

/** A sector: the smallest unit the kernel's block layer addresses, whatever the device says. */
export const SECTOR_BYTES = 512;
/** A block: what file systems and page caches use; the advertised physical block size. */
export const BLOCK_BYTES = 4096;
export const BLOCK_SECTORS = 8;
/** The largest device: 2^53 bytes less one block, so that every byte offset is an exact number. */
export const DEVICE_BYTES_MAX: number = 2 ** 53 - BLOCK_BYTES;

/** Byte offset or length of a count of sectors. */
export function sectorsToBytes(sectors: number): number {
  return sectors * SECTOR_BYTES;
}

/** Count of whole sectors in a byte count; the caller has checked that nothing is cut off. */
export function bytesToSectors(bytes: number): number {
  return Math.floor(bytes / SECTOR_BYTES);
}

/** Rounds up to a multiple of `unit`. */
export function alignUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

const SUFFIXES = ['', 'K', 'M', 'G', 'T', 'P'] as const;

/**
 * Parses a size as people write it: `4096`, `64K`, `10G`, `1.5T`, also `10GiB`; binary multiples
 * only. Returns bytes, or undefined where the text is no size.
 */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?$/i.exec(text.trim());
  if (!match) return undefined;
  const power = SUFFIXES.indexOf((match[2] ?? '').toUpperCase() as (typeof SUFFIXES)[number]);
  const bytes = Number(match[1]) * 1024 ** power;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Formats bytes for people: `512`, `1.5K`, `10G`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let power = 0;
  while (value >= 1024 && power < SUFFIXES.length - 1) {
    value /= 1024;
    power++;
  }
  const digits = value < 10 ? value.toFixed(1).replace('.0', '') : value.toFixed(0);
  return `${digits}${SUFFIXES[power]}`;
}
