/**
 * Puts the machine back as it was: a stack of undo steps, run last-in first-out, however the
 * program ends.
 *
 * Steps run on a normal end (`run`), and on SIGINT, SIGTERM and SIGHUP too, so that Ctrl-C leaves
 * no mount, loop device or process behind. A step that fails does not keep the others from running.
 */

export interface Step {
  title: string;
  undo: () => Promise<unknown> | unknown;
}

const SIGNALS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

export class Cleanup {
  readonly #steps: Step[] = [];
  #running: Promise<void> | undefined;
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    const status = SIGNALS[signal as keyof typeof SIGNALS];
    void this.run().finally(() => process.exit(status));
  };

  constructor() {
    for (const signal of Object.keys(SIGNALS)) process.on(signal, this.#onSignal);
  }

  /** Adds a step and hands it back, for `undo` ahead of time. */
  add(title: string, undo: Step['undo']): Step {
    const step = { title, undo };
    this.#steps.push(step);
    return step;
  }

  /** Runs one step now; it will not run again. */
  async undo(step: Step): Promise<void> {
    const index = this.#steps.indexOf(step);
    if (index < 0) return;
    this.#steps.splice(index, 1);
    await step.undo();
  }

  /** Runs what is left, newest first. Throws one error that names every step that failed. */
  run(): Promise<void> {
    this.#running ??= this.#runAll().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #runAll(): Promise<void> {
    const failed: string[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step.undo();
      } catch (error) {
        failed.push(`${step.title}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    for (const signal of Object.keys(SIGNALS)) process.off(signal, this.#onSignal);
    if (failed.length > 0) throw new Error(`cleaning up failed:\n  ${failed.join('\n  ')}`);
  }
}
