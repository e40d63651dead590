/**
 * What a command is, declared once: the fast path (parse.ts) and the help (help.ts, by yargs) both
 * read it.
 */

export interface OptionSpec {
  /**
   * `flag` takes no value, `text` one; `list` may be given again, and takes commas; `items` may be
   * given again, and keeps its commas.
   */
  type: 'flag' | 'text' | 'list' | 'items';
  /** One letter. */
  short?: string;
  /** What the value is called in help: FILE, SIZE. */
  value?: string;
  choices?: readonly string[];
  about: string;
}

export interface PositionalSpec {
  /** As in the synopsis: ROOT, DEV. */
  name: string;
  count: 'one' | 'optional' | 'any';
  about: string;
}

export interface Example {
  line: string;
  about: string;
}

/** The arguments of a command line, by the names in the table. */
export interface Arguments {
  positionals: readonly string[];
  flags: ReadonlySet<string>;
  texts: ReadonlyMap<string, string>;
  lists: ReadonlyMap<string, readonly string[]>;
}

export interface Command {
  name: string;
  /** One line, for the list of commands. */
  about: string;
  positionals: readonly PositionalSpec[];
  options: Readonly<Record<string, OptionSpec>>;
  examples: readonly Example[];
  /** Refused at once for others: everything that needs the daemon. */
  needsRoot: boolean;
  /** Returns the exit status. Failures are thrown. */
  run(args: Arguments): Promise<number>;
}

/** Options of every command. */
export const COMMON_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  json: { type: 'flag', about: 'print JSON, errors too' },
  'state-dir': {
    type: 'text',
    value: 'DIR',
    about: 'where the daemon keeps leaves and records (UBD_STATE_DIR, /var/lib/ubd)',
  },
  'runtime-dir': {
    type: 'text',
    value: 'DIR',
    about: "where the daemon's socket is (UBD_RUNTIME_DIR, /run/ubd)",
  },
};

/** Exit statuses. */
export const EXIT = { OK: 0, FAILED: 1, USAGE: 2 } as const;
