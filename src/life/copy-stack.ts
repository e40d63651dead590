/** Writes what a device reads, piece by piece from the layers that have it, into a file. */

import { SECTOR_BYTES } from '../base/units.ts';
import type { OpenFile } from '../leaf/files.ts';
import { Copier } from './copy.ts';
import type { Stack } from './stack.ts';
import type { Work } from './work.ts';

/** From sector `first` on, at the same place; a file is fresh, so holes need nothing. */
export async function copyStack(
  stack: Stack,
  target: OpenFile,
  first: number,
  work: Work,
): Promise<Copier['counts']> {
  const { blockDevice } = target;
  const copier = new Copier(target, work, { zeroes: blockDevice ? 'write' : 'leave out' });
  try {
    for (const { sector, count, layer, data } of stack.pieces(first, stack.sizeSectors)) {
      const to = sector * SECTOR_BYTES;
      const length = count * SECTOR_BYTES;
      if (data) {
        const { file, dataOffset } = stack.layers[layer]!;
        await copier.add(file, dataOffset + to, to, length);
      } else {
        if (blockDevice) target.zero(to, length);
        work.advance(length);
        await work.breathe();
      }
    }
    await copier.drain();
  } finally {
    await copier.settle();
  }
  return copier.counts;
}
