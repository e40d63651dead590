/** The steps that take back what was done so far, run in reverse when a later step fails. */
export class Undo {
  readonly #steps: { what: string; back: () => void | Promise<void> }[] = [];

  add(what: string, back: () => void | Promise<void>): void {
    this.#steps.push({ what, back });
  }

  /**
   * Takes everything back, whatever fails on the way; `report` hears of what could not be undone.
   */
  async run(report: (text: string) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step.back();
      } catch (error) {
        report(`could not undo: ${step.what}: ${(error as Error).message}`);
      }
    }
  }
}
