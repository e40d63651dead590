/**
 * The daemon's log: one line per event, `2026-01-31T12:00:00.000Z warning text`. When the file has
 * grown to LOG_BYTES_MAX it becomes `ubd.log.1`, and a new one is begun: at most two files, ever.
 */
import { closeSync, constants, fstatSync, openSync, renameSync, writeSync } from 'node:fs';

export const LOG_BYTES_MAX: number = 1024 * 1024;

export type LogLevel = 'info' | 'warning' | 'error';

export class Log {
  readonly #file: string;
  readonly #echo: boolean;
  #fd: number;
  #bytes: number;

  /** `echo`: to standard error too, for a daemon in the foreground. */
  constructor(file: string, options: { echo: boolean }) {
    this.#file = file;
    this.#echo = options.echo;
    this.#fd = openLog(file);
    this.#bytes = fstatSync(this.#fd).size;
  }

  info(text: string): void {
    this.#write('info', text);
  }

  warning(text: string): void {
    this.#write('warning', text);
  }

  error(text: string): void {
    this.#write('error', text);
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  #write(level: LogLevel, text: string): void {
    // One event, one line: what comes from outside cannot forge another.
    const lines = text.replaceAll('\n', '\n    ');
    const line = `${new Date().toISOString()} ${level.padEnd(7)} ${lines}\n`;
    if (this.#echo) process.stderr.write(`${level === 'info' ? '' : `${level}: `}${text}\n`);
    if (this.#fd < 0) return;
    try {
      this.#bytes += writeSync(this.#fd, line);
      if (this.#bytes >= LOG_BYTES_MAX) this.#rotate();
    } catch {
      // A full disk must not stop the devices; the log goes on when there is space again.
    }
  }

  #rotate(): void {
    renameSync(this.#file, `${this.#file}.1`);
    const fd = openLog(this.#file);
    closeSync(this.#fd);
    this.#fd = fd;
    this.#bytes = 0;
  }
}

function openLog(file: string): number {
  const { O_WRONLY, O_CREAT, O_APPEND, O_NOFOLLOW } = constants;
  return openSync(file, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0o600);
}
