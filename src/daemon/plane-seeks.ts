/**
 * Questions of the data plane that may have to wait for a disk: where a root has data, and where
 * holes. The main thread has them answered, and this thread goes on meanwhile.
 */
import type { Ends } from '../store/extents.ts';
import type { SeekEvent } from './plane-protocol.ts';

export class Seeks {
  readonly #post: (event: SeekEvent) => void;
  readonly #waiting = new Map<number, (ends: Ends | null) => void>();
  #next = 1;

  constructor(post: (event: SeekEvent) => void) {
    this.#post = post;
  }

  /** The descriptor must be open until the answer. */
  ask(fd: number, position: number, end: number, answer: (ends: Ends | null) => void): void {
    const seek = this.#next++;
    this.#waiting.set(seek, answer);
    this.#post({ event: 'seek', seek, fd, position, end });
  }

  take(seek: number, ends: Ends | null): void {
    const answer = this.#waiting.get(seek);
    this.#waiting.delete(seek);
    answer?.(ends);
  }
}
