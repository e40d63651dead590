/** The small files that lie beside a root, under its name with an ending. */
import { BOOT_PACK_BYTES_MAX, BOOT_PACK_SUFFIX } from '../cache/boot-pack.ts';
import { MANIFEST_BYTES_MAX, MANIFEST_SUFFIX } from './manifest.ts';
import type { Beside } from './place.ts';

export const MANIFEST: Beside = {
  what: 'manifest',
  suffix: MANIFEST_SUFFIX,
  bytesMax: MANIFEST_BYTES_MAX,
};

export const BOOT_PACK: Beside = {
  what: 'boot pack',
  suffix: BOOT_PACK_SUFFIX,
  bytesMax: BOOT_PACK_BYTES_MAX,
};
