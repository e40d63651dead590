/**
 * Files that people hand over as a root by mistake: each is told by its first bytes, and each has
 * its remedy. A raw image has no magic of its own, so this is a list of what it is not.
 */

interface Foreign {
  /** Bytes at `offset`, as latin1 text. */
  magic: string;
  offset: number;
  what: string;
  next: (path: string) => string;
}

const convert = (path: string): string => `convert it: qemu-img convert -O raw '${path}' ROOT`;
const unpack =
  (tool: string) =>
  (path: string): string =>
    `unpack it first: ${tool} '${path}' > ROOT`;

const FOREIGN: readonly Foreign[] = [
  {
    magic: 'UBDLEAF',
    offset: 0,
    what: 'a leaf',
    next: path => `give it as the leaf (--leaf '${path}'; of an export leaf=…); it knows its root`,
  },
  { magic: 'QFI\xfb', offset: 0, what: 'a qcow2 image', next: convert },
  { magic: 'QED\0', offset: 0, what: 'a QED image', next: convert },
  { magic: 'KDMV', offset: 0, what: 'a VMDK image', next: convert },
  { magic: '# Disk DescriptorFile', offset: 0, what: 'a VMDK descriptor', next: convert },
  { magic: 'vhdxfile', offset: 0, what: 'a VHDX image', next: convert },
  { magic: 'conectix', offset: 0, what: 'a VHD image', next: convert },
  { magic: '\x7f\x10\xda\xbe', offset: 64, what: 'a VDI image', next: convert },
  { magic: 'WithoutFreeSpace', offset: 0, what: 'a Parallels image', next: convert },
  { magic: 'WithouFreSpacExt', offset: 0, what: 'a Parallels image', next: convert },
  { magic: '\x1f\x8b\x08', offset: 0, what: 'gzip-compressed', next: unpack('gzip -dc') },
  { magic: '\xfd7zXZ\0', offset: 0, what: 'xz-compressed', next: unpack('xz -dc') },
  { magic: '\x28\xb5\x2f\xfd', offset: 0, what: 'zstd-compressed', next: unpack('zstd -dc') },
  { magic: 'BZh', offset: 0, what: 'bzip2-compressed', next: unpack('bzip2 -dc') },
  { magic: '\x04\x22\x4d\x18', offset: 0, what: 'lz4-compressed', next: unpack('lz4 -dc') },
  {
    magic: 'ustar',
    offset: 257,
    what: 'a tar archive',
    next: path => `make a file system of it: mke2fs -t ext4 -d '${path}' ROOT SIZE`,
  },
];

/** Bytes of the head that `foreignFormat` looks at. */
export const FOREIGN_HEAD_BYTES = 512;

/**
 * What a file with this head is, if it is known not to be a raw image; with what to do about it.
 */
export function foreignFormat(
  head: Uint8Array,
  path: string,
): { what: string; next: string } | undefined {
  const text = Buffer.from(head.buffer, head.byteOffset, head.length).toString('latin1');
  for (const { magic, offset, what, next } of FOREIGN)
    if (text.startsWith(magic, offset)) return { what, next: next(path) };
  return undefined;
}
