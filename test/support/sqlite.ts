/** A process with a SQLite database that works through transactions, and says so after each. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

export class Sqlite {
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  constructor(file: string) {
    this.#child = spawn('sqlite3', ['-bail', file], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  /** Runs statements; returns the last line that they print. */
  async ask(statements: string): Promise<string> {
    this.#child.stdin!.write(`${statements}\n.print done\n`);
    for (let last = ''; ; ) {
      const { value, done } = await this.#answers.next();
      if (done) throw new Error(`sqlite3 ended: ${last}`);
      if (value === 'done') return last;
      last = value as string;
    }
  }

  end(): void {
    this.#child.stdin!.end();
  }
}
