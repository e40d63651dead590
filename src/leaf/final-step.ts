/** The end of a leaf in order, once it has let all operations end: see Commit.close. */
import { EDQUOT, ENOSPC } from '../base/errno.ts';
import type { IoOp } from '../uring/io.ts';

/** What of the commit cycle it needs. */
interface Closing {
  /** Writes the last checkpoint. */
  finish(op: IoOp): void;
  freeMemory(): void;
}

/** The end of `close`: first a flush, then, if that was well, the last checkpoint. */
export class FinalStep implements IoOp {
  readonly #commit: Closing;
  readonly #op: IoOp;
  /** Without the last checkpoint the close has failed. */
  readonly #strict: boolean;
  #flushed = false;

  constructor(commit: Closing, op: IoOp, strict: boolean) {
    this.#commit = commit;
    this.#op = op;
    this.#strict = strict;
  }

  done(result: number): void {
    if (!this.#flushed && result === 0) {
      this.#flushed = true;
      this.#commit.finish(this);
      return;
    }
    this.#commit.freeMemory();
    const full = result === -ENOSPC || result === -EDQUOT;
    this.#op.done(this.#flushed && full && !this.#strict ? 0 : result, 0);
  }
}
