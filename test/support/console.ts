/** A virtual machine's serial console: waits for what is said there, and types. */
import { type ChildProcess, spawn } from 'node:child_process';

export class Console {
  readonly process: ChildProcess;
  #said = '';
  /** Up to here it was waited for already. */
  #seen = 0;
  #ended = false;
  #wake: () => void = () => {};

  constructor(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.process = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env });
    const hear = (chunk: Buffer): void => {
      this.#said += chunk.toString('latin1');
      this.#wake();
    };
    this.process.stdout!.on('data', hear);
    this.process.stderr!.on('data', hear);
    this.process.stdin!.on('error', () => {});
    this.process.on('error', error => hear(Buffer.from(error.message)));
    this.process.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  get said(): string {
    return this.#said;
  }

  type(line: string): void {
    this.process.stdin!.write(`${line}\n`);
  }

  /** Waits until it says this, after what was waited for last. */
  async expect(what: RegExp, limitMs: number): Promise<RegExpExecArray> {
    const deadline = Date.now() + limitMs;
    for (;;) {
      const match = what.exec(this.#said.slice(this.#seen));
      if (match !== null) {
        this.#seen += match.index + match[0].length;
        return match;
      }
      const leftMs = deadline - Date.now();
      if (this.#ended || leftMs <= 0)
        throw new Error(`it never said ${what}: ${this.#said.slice(-3000)}`);
      await this.#news(leftMs);
    }
  }

  /** Waits for its end. */
  async ended(limitMs: number): Promise<void> {
    const deadline = Date.now() + limitMs;
    while (!this.#ended) {
      if (Date.now() > deadline) throw new Error(`it does not end: ${this.#said.slice(-3000)}`);
      await this.#news(deadline - Date.now());
    }
  }

  kill(): void {
    this.process.kill('SIGKILL');
  }

  #news(limitMs: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, Math.max(1, limitMs));
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
