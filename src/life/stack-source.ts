/** A leaf merged with all that it stands on, for a reader of file systems. */
import { SECTOR_BYTES } from '../base/units.ts';
import { type BlockSource, checkRange } from '../fsindex/source.ts';
import { NOWHERE, type Stack } from './stack.ts';

export function stackSource(stack: Stack): BlockSource {
  const name = stack.leaf.name;
  const sizeBytes = stack.sizeSectors * SECTOR_BYTES;
  return {
    name,
    sizeBytes,
    read(buffer, start, length, position) {
      checkRange(name, sizeBytes, length, position);
      const first = Math.floor(position / SECTOR_BYTES);
      const end = Math.ceil((position + length) / SECTOR_BYTES);
      // A hole of a leaf reads as zeroes at less than it costs to find it.
      for (const { sector, count, layer, data } of stack.pieces(first, end, undefined, false)) {
        // A piece is whole sectors: only as much of it as was asked for.
        const from = Math.max(position, sector * SECTOR_BYTES);
        const to = Math.min(position + length, (sector + count) * SECTOR_BYTES);
        const part = buffer.subarray(start + from - position, start + to - position);
        if (!data || layer === NOWHERE) part.fill(0);
        else {
          const { file, dataOffset } = stack.layers[layer]!;
          file.read(part, dataOffset + from);
        }
      }
    },
  };
}
