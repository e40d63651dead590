/**
 * A leaf made of two images: what the second one has different from the root. So real work can be
 * done through an ordinary mount of a copy, and stand in a leaf afterwards, without a device.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import { diskWorld } from '../../src/life/world.ts';
import { LeafWriter } from './leaf-writer.ts';

const PIECE = 1 << 20;
const BLOCK = 4096;

/**
 * @param image as long as the root; by default the root itself: an empty leaf
 * @param holes what became zeroes is discarded, as by fstrim, instead of written
 */
export async function makeImageLeaf(
  root: string,
  leaf: string,
  image: string = root,
  { holes = false }: { holes?: boolean } = {},
): Promise<void> {
  const opened = await diskWorld.openRoot(root);
  const { identity } = opened;
  opened.file.close();
  const file = diskWorld.create(leaf);
  const [before, after] = [openSync(root, 'r'), openSync(image, 'r')];
  try {
    writeLeaf(
      file,
      planLeaf({
        sizeBytes: identity.sizeBytes,
        parent: {
          kind: 'root',
          sizeBytes: identity.sizeBytes,
          path: root,
          fingerprint: Buffer.from(identity.fingerprint, 'hex'),
          digest: null,
          uuid: null,
        },
      }),
      true,
    );
    const writer = new LeafWriter(file);
    const [old, now] = [Buffer.alloc(PIECE), Buffer.alloc(PIECE)];
    const zeroes = Buffer.alloc(BLOCK);
    for (let at = 0; at < identity.sizeBytes; at += PIECE) {
      const length = readSync(after, now, 0, PIECE, at);
      readSync(before, old, 0, PIECE, at);
      if (old.compare(now, 0, length, 0, length) === 0) continue;
      for (let i = 0; i < length; i += BLOCK) {
        const end = Math.min(length, i + BLOCK);
        if (old.compare(now, i, end, i, end) === 0) continue;
        const block = now.subarray(i, end);
        const sector = (at + i) / 512;
        if (holes && zeroes.compare(block, 0, block.length, 0, block.length) === 0)
          writer.zero(sector, block.length / 512);
        else writer.write(sector, block);
      }
    }
    writer.close();
  } finally {
    closeSync(before);
    closeSync(after);
    file.close();
  }
}
