/**
 * Lines of the log about clients that nothing came of: anybody can make as many as he likes, so
 * only LINES_MAX of them are written in PERIOD_MS, and then how many were left out.
 */
import type { Log } from '../log.ts';

const LINES_MAX = 20;
const PERIOD_MS = 10_000;

export class Complaints {
  readonly #log: Log;
  #lines = 0;
  #fromMs = 0;

  constructor(log: Log) {
    this.#log = log;
  }

  add(text: string): void {
    const now = performance.now();
    if (now - this.#fromMs > PERIOD_MS) {
      const more = this.#lines - LINES_MAX;
      if (more > 0) this.#log.warning(`${more} more clients that nothing came of`);
      this.#fromMs = now;
      this.#lines = 0;
    }
    if (++this.#lines <= LINES_MAX) this.#log.warning(text);
  }
}
