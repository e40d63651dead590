/** A reading in line at a chunk, until the blocks that it needs are in flight no more. */
import type { Reading } from './reading.ts';

export class Wait {
  reading!: Reading;
  need = 0;
  next: Wait | null = null;
}
