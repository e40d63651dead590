/**
 * What a daemon has under way: each piece of work is counted until it has settled, so that an end
 * can wait for all of it; once the end has begun, nothing new is begun.
 */
import { UbdError } from '../base/errors.ts';

export class UnderWay {
  readonly #works = new Set<Promise<unknown>>();
  #isEnding = false;

  get isEnding(): boolean {
    return this.#isEnding;
  }

  /** Throws once the end has begun; to be asked between the steps of longer work. */
  checkGoingOn(): void {
    if (this.#isEnding)
      throw new UbdError('daemon', 'the daemon is stopping', {
        next: 'try again: the next command starts a new one',
      });
  }

  track<T>(work: Promise<T>): Promise<T> {
    this.#works.add(work);
    const forget = (): void => {
      this.#works.delete(work);
    };
    work.then(forget, forget);
    return work;
  }

  /** Waits until nothing is under way; more may begin meanwhile, and is waited for, too. */
  async settled(): Promise<void> {
    while (this.#works.size > 0) await Promise.allSettled(this.#works);
  }

  /** The end: from here on nothing begins. Waits for what has begun. */
  async comeToRest(): Promise<void> {
    this.#isEnding = true;
    await Promise.allSettled(this.#works);
  }
}
