/** Printing: tables and JSON on standard output, errors and progress on standard error. */
import type { ErrorRecord } from '../base/errors.ts';
import { printableJson, printableLine, printableText } from './names.ts';

/** Lines of which each is whole: no name in them has a line's end. */
export function print(text: string): void {
  process.stdout.write(`${printableText(text)}\n`);
}

/** One line, whatever is in it. */
export function printLine(text: string): void {
  process.stdout.write(`${printableLine(text)}\n`);
}

/** A line beside the results: these alone go to standard output. */
export function printNote(text: string): void {
  process.stderr.write(`${printableLine(text)}\n`);
}

export function printJson(value: unknown): void {
  process.stdout.write(`${printableJson(JSON.stringify(value, null, 2))}\n`);
}

/** An error and its next step; as JSON where that was asked for. */
export function printError(error: ErrorRecord, json: boolean): void {
  // Made only now: the stream takes a millisecond to set up, and most commands have nothing to say
  // there.
  process.stderr.once('error', () => {}); // nobody reads it: the exit status says enough
  if (json) {
    process.stderr.write(`${printableJson(JSON.stringify({ error }))}\n`);
    return;
  }
  const next = error.next === undefined ? '' : `     ${printableText(error.next)}\n`;
  process.stderr.write(`ubd: ${printableLine(error.message)}\n${next}`);
}

/** Aligned columns, two blanks apart; the columns named in `right` hold numbers. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: ReadonlySet<string> = new Set(),
): string {
  const all = [head, ...rows.map(row => row.map(printableLine))];
  const widths = head.map((_, column) => Math.max(...all.map(row => width(row[column]!))));
  return all
    .map(row =>
      row
        .map((cell, column) => {
          const blanks = ' '.repeat(widths[column]! - width(cell));
          return right.has(head[column]!) ? blanks + cell : cell + blanks;
        })
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** Lines of `name: value`, the values aligned. */
export function facts(pairs: readonly (readonly [name: string, value: string])[]): string {
  const longest = Math.max(...pairs.map(([name]) => name.length));
  return pairs
    .map(([name, value]) => `${`${name}:`.padEnd(longest + 2)}${printableLine(value)}`)
    .join('\n');
}

/** How much of what was asked for came from memory: `98 %`; `-` if nothing was asked for. */
export function hitShare(counters: { hitBytes: number; missBytes: number }): string {
  const { hitBytes, missBytes } = counters;
  const all = hitBytes + missBytes;
  return all === 0 ? '-' : `${Math.floor((hitBytes / all) * 100)} %`;
}

/** Code points; enough for paths and numbers. */
function width(text: string): number {
  return [...text].length;
}

/** A line on a terminal that says how far it is; nothing in a pipe. */
export class Progress {
  #what: string;
  readonly #shown = process.stderr.isTTY === true;
  #last = -1;

  constructor(what: string) {
    this.#what = what;
  }

  /** @param what the part of the work that is being done, where there are several */
  get isShown(): boolean {
    return this.#shown;
  }

  update(done: number, all: number, what: string = this.#what): void {
    const percent = all === 0 ? 100 : Math.floor((done / all) * 100);
    if (!this.#shown || (percent === this.#last && what === this.#what)) return;
    const clear = what === this.#what ? '' : '\x1b[K';
    this.#last = percent;
    this.#what = what;
    process.stderr.write(`\r${clear}${what}: ${percent} %`);
  }

  end(): void {
    if (this.#shown && this.#last >= 0) process.stderr.write('\r\x1b[K');
  }
}
