/**
 * How a daemon comes to its end.
 *
 *     signal ─▶ in order ─▶ exit 0          again, 2 s later or more ─▶ at once, as it is
 *     bug    ─▶ in order ─▶ exit 1          not within 30 s          ─▶ at once, as it is
 *
 * "At once" is a crash, which leaves survive: what was flushed is kept, and the next start brings
 * the devices back.
 */
import type { Log } from './log.ts';

/** Longer than any orderly end after a bug. */
const END_MS_MAX = 30_000;

/** One key press may come as two signals: from the terminal, and from sudo, which passes it on. */
const AGAIN_MS_MIN = 2000;

/** Settles once: the first reason to end counts, and none interrupts a hand-over. */
export class Ending {
  readonly ended: Promise<number>;
  readonly #resolve: (exitStatus: number) => void;
  #isHandOver = false;

  constructor() {
    let settle: (exitStatus: number) => void = () => {};
    this.ended = new Promise<number>(resolve => {
      settle = resolve;
    });
    this.#resolve = settle;
  }

  end(exitStatus: number): void {
    if (!this.#isHandOver) this.#resolve(exitStatus);
  }

  get isHandOver(): boolean {
    return this.#isHandOver;
  }

  beginHandOver(): void {
    this.#isHandOver = true;
  }

  handedOver(): void {
    this.#resolve(0);
  }
}

function endAtOnce(log: Log, why: string): void {
  log.error(`${why}: ending at once; what was flushed is kept`);
  process.kill(process.pid, 'SIGKILL');
}

/** Has signals and bugs end the daemon. */
export function watchProcess(log: Log, ending: Ending): void {
  let firstAt: number | null = null;
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => {
      const now = performance.now();
      if (firstAt !== null && now - firstAt >= AGAIN_MS_MIN) endAtOnce(log, `got ${signal} again`);
      firstAt ??= now;
      log.info(`got ${signal}`);
      ending.end(0);
    });
  process.on('SIGHUP', () => {}); // the terminal is gone: nothing to us
  const bug = (error: unknown): void => {
    log.error(`a bug: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    setTimeout(() => endAtOnce(log, 'the end takes too long'), END_MS_MAX).unref();
    ending.end(1);
  };
  process.on('uncaughtException', bug);
  process.on('unhandledRejection', bug);
}
