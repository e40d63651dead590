/**
 * What lies on a device that is no ext2, ext3 or ext4, for an error that says so: by the magic
 * numbers of each format, as in its own specification (the same that `wipefs` knows).
 */
import { UbdError } from '../base/errors.ts';
import { isExt4 } from './ext4/geometry.ts';
import type { BlockSource } from './source.ts';

export interface Content {
  /** For people. */
  what: string;
  /**
   * `blocks`: our own reader; `mount`: the kernel's, where it has one; `table`: look into its
   * partitions; `none`: its files cannot be listed.
   */
  how: 'blocks' | 'mount' | 'table' | 'none';
  /** What the kernel calls the file system. */
  type: string | null;
  /** How to get at a file system inside it. */
  inside: string | null;
}

interface Sign {
  what: string;
  /** In bytes of the device; each of these. */
  at: readonly number[];
  /** The bytes there, as Latin-1. */
  magic: string;
  /** What the kernel calls the file system, if it is one. */
  type?: string;
  table?: true;
  /** How to get at a file system inside it: of what is none itself. */
  inside?: string;
}

/** Those that can lie over another come first. */
const SIGNS: readonly Sign[] = [
  { what: 'a LUKS container (encrypted)', at: [0], magic: 'LUKS\xba\xbe' },
  { what: 'a qcow2 image', at: [0], magic: 'QFI\xfb', inside: 'make it raw: qemu-img convert' },
  { what: 'a GPT partition table', at: [512, 4096], magic: 'EFI PART', table: true },
  { what: 'an LVM physical volume', at: [0, 512, 1024, 1536], magic: 'LABELONE' },
  { what: 'a member of a Linux RAID', at: [0, 4096], magic: '\xfc\x4e\x2b\xa9' },
  { what: 'xfs', at: [0], magic: 'XFSB', type: 'xfs' },
  { what: 'btrfs', at: [65_600], magic: '_BHRfS_M', type: 'btrfs' },
  { what: 'f2fs', at: [1024], magic: '\x10\x20\xf5\xf2', type: 'f2fs' },
  { what: 'erofs', at: [1024], magic: '\xe2\xe1\xf5\xe0', type: 'erofs' },
  { what: 'squashfs', at: [0], magic: 'hsqs', type: 'squashfs' },
  { what: 'NTFS', at: [3], magic: 'NTFS    ', type: 'ntfs3' },
  { what: 'exFAT', at: [3], magic: 'EXFAT   ', type: 'exfat' },
  { what: 'FAT', at: [54], magic: 'FAT1', type: 'vfat' },
  { what: 'FAT', at: [82], magic: 'FAT32', type: 'vfat' },
  { what: 'ISO 9660', at: [32_769], magic: 'CD001', type: 'iso9660' },
  { what: 'swap space', at: [4086], magic: 'SWAPSPACE2' },
  { what: 'ReiserFS', at: [8192, 65_536].map(at => at + 52), magic: 'ReIsEr' },
  { what: 'JFS', at: [32_768], magic: 'JFS1' },
  { what: 'HFS+', at: [1024], magic: 'H+' },
  { what: 'HFS+', at: [1024], magic: 'HX' },
  { what: 'APFS', at: [32], magic: 'NXSB' },
  { what: 'UDF', at: [32_769], magic: 'BEA01' },
  { what: 'GFS2', at: [65_536], magic: '\x01\x16\x19\x70' },
  { what: 'OCFS2', at: [1024, 2048, 4096, 8192], magic: 'OCFSV2' },
  { what: 'bcache', at: [4120], magic: '\xc6\x85\x73\xf6\x4e\x1a\x45\xca' },
  { what: 'ZFS', at: uberblocks(), magic: '\x0c\xb1\xba\x00' },
  { what: 'a Stratis pool', at: [516, 4612], magic: '!Stra0tis' },
  { what: 'a VDO volume', at: [0], magic: 'dmvdo001' },
  { what: 'a Ceph BlueStore', at: [0], magic: 'bluestore block device' },
  { what: 'an Oracle ASM disk', at: [32], magic: 'ORCLDISK' },
  // The last: many boot sectors end so.
  { what: 'an MBR partition table', at: [510], magic: '\x55\xaa', table: true },
];

const UNKNOWN: Content = {
  what: 'no file system that is known here',
  how: 'none',
  type: null,
  inside: null,
};

export function contentOf(source: BlockSource): Content {
  if (isExt4(source))
    return { what: 'ext2, ext3 or ext4', how: 'blocks', type: 'ext4', inside: null };
  const sign = signOf(source);
  if (sign === undefined) return UNKNOWN;
  const { what, type = null, table = false, inside = null } = sign;
  return { what, how: table ? 'table' : type === null ? 'none' : 'mount', type, inside };
}

/** What is there, for people; null: nothing that is known. */
export function recognize(source: BlockSource): string | null {
  const content = contentOf(source);
  return content === UNKNOWN ? null : content.what;
}

/** For an error that says what there is instead of files. */
export function noFiles(source: BlockSource, { what, inside }: Content): UbdError {
  const { name } = source;
  return new UbdError('unsupported', `${name} holds ${what}: its files cannot be listed`, {
    place: { file: name },
    next:
      'Supported are ext2, ext3 and ext4, and what this kernel can mount, on the whole device or ' +
      'in the partitions of a GPT or MBR; not LVM, RAID, and what is encrypted. ' +
      `${inside === null ? '' : `Else ${inside}. `}` +
      '`ubd diff --blocks` works with every content.',
  });
}

/** Throws `unsupported`, and says what there is instead, where there is no ext2, ext3 or ext4. */
export function requireExt4(source: BlockSource): void {
  const content = contentOf(source);
  if (content.how !== 'blocks') throw noFiles(source, content);
}

function signOf(source: BlockSource): Sign | undefined {
  return SIGNS.find(({ at, magic }) => at.some(position => isAt(source, position, magic)));
}

/** Of the first label of a ZFS pool; of either sector size that is usual. */
function uberblocks(): number[] {
  return Array.from({ length: 128 }, (_, i) => 131_072 + 1024 * i);
}

function isAt(source: BlockSource, position: number, magic: string): boolean {
  if (source.sizeBytes < position + magic.length) return false;
  const found = Buffer.alloc(magic.length);
  source.read(found, 0, found.length, position);
  return found.toString('latin1') === magic;
}
