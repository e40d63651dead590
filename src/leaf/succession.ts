/**
 * A new leaf takes the place of one in use, which becomes the image that it stands on: the moment
 * of a snapshot, and what must be durable after it. ("Freezing" in FORMAT.md.)
 *
 *     rename ─▶ take over ─┬─▶ the directory durable ─▶ flushes are answered
 *     NEXT to PATH         └─▶ changes under way end, the old leaf is durable
 *
 * Nothing is held back: reads and changes under way end where they began, new ones go to the new
 * leaf. Only a flush takes longer, since it is two: of the old leaf, then of the new one.
 *
 * Crash-consistent: of two changes, the later of which began after the earlier had ended, the old
 * leaf never has the later one alone.
 */
import type { IoOp } from '../uring/io.ts';
import type { Leaf } from './leaf.ts';

/** The names of the two leaves. */
export interface Names {
  /** Gives the new leaf the old one's path. */
  rename(op: IoOp): void;
  /** Makes the directory durable. */
  sync(op: IoOp): void;
}

export interface SuccessionParts {
  old: Leaf;
  next: Leaf;
  names: Names;
  /** Puts the new leaf on top of the old one, for requests from now on. */
  takeOver: () => void;
  /**
   * @param tookOver false: the rename failed, and nothing has changed
   * @param result 0, or a negative errno: of the rename; or because of which not all is durable yet
   */
  done: (tookOver: boolean, result: number) => void;
}

export function succeed({ old, next, names, takeOver, done }: SuccessionParts): void {
  let left = 2;
  let failure = 0;
  const end = (result: number): void => {
    if (result < 0 && failure === 0) failure = result;
    if (--left === 0) done(true, failure);
  };
  const directory: IoOp = {
    done: result => {
      next.nameIsDurable(result);
      end(result);
    },
  };
  const retired: IoOp = {
    done: result => {
      if (result >= 0) next.belowIsDurable();
      end(result);
    },
  };
  names.rename({
    done: result => {
      if (result < 0) {
        done(false, result);
        return;
      }
      next.follow(old);
      takeOver();
      names.sync(directory);
      old.retire(retired);
    },
  });
}
