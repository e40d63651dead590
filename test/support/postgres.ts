/** A PostgreSQL of a test's own, in a directory: made, worked on by pgbench, ended, checked. */
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { run, until } from './run.ts';

/** Debian's, of the latest version that is installed. */
function findPrograms(): string | undefined {
  const all = '/usr/lib/postgresql';
  const versions = existsSync(all) ? readdirSync(all).map(Number) : [];
  const found = versions.sort((a, b) => b - a).map(version => `${all}/${version}/bin`);
  return found.find(place => ['initdb', 'pgbench'].every(name => existsSync(`${place}/${name}`)));
}

export class Postgres {
  readonly #programs: string;
  readonly #uid: string;
  readonly #data: string;
  readonly #sockets: string;

  private constructor(programs: string, uid: string, place: string) {
    this.#programs = programs;
    this.#uid = uid;
    this.#data = `${place}/data`;
    this.#sockets = `${place}/sockets`;
  }

  /** Makes a database in `place` and starts it; null where it is not installed. */
  static async startOn(place: string): Promise<Postgres | null> {
    const programs = findPrograms();
    if (programs === undefined) return null;
    const uid = (await run('id', ['-u', 'postgres'])).trim();
    const postgres = new Postgres(programs, uid, place);
    postgres.#makeDirectory(postgres.#data);
    postgres.#makeDirectory(postgres.#sockets);
    const initdb = ['--pgdata', postgres.#data, '--data-checksums', '--auth=trust', '--no-sync'];
    await postgres.#run('initdb', initdb);
    await postgres.#start();
    await postgres.#run('pgbench', [...postgres.#client, '--initialize', '--quiet']);
    return postgres;
  }

  /** The same database in another place: a copy of a disk. It recovers, as after a crash. */
  async startCopyOn(place: string): Promise<Postgres> {
    const copy = new Postgres(this.#programs, this.#uid, place);
    // Locks name a process, and that number may still be taken here: whoever starts a copy, as on
    // another machine, knows that nobody else works on it.
    rmSync(`${copy.#data}/postmaster.pid`, { force: true });
    rmSync(copy.#sockets, { recursive: true });
    copy.#makeDirectory(copy.#sockets);
    await copy.#start();
    return copy;
  }

  #makeDirectory(directory: string): void {
    mkdirSync(directory, { mode: 0o700 });
    chownSync(directory, Number(this.#uid), 0);
  }

  async #start(): Promise<void> {
    const log = `${this.#sockets}/log`;
    const options = `-c listen_addresses='' -c unix_socket_directories=${this.#sockets}`;
    try {
      await this.#run('pg_ctl', [
        ...['start', '--pgdata', this.#data, '--wait', '--timeout=120', '--silent'],
        ...['--log', log, '--options', options],
      ]);
    } catch (error) {
      const said = existsSync(log) ? readFileSync(log, 'utf8').slice(-1000) : 'no log';
      throw new Error(`${(error as Error).message}\n${said}`);
    }
  }

  /** What a query answers: fields between bars. */
  async ask(query: string): Promise<string> {
    const options = ['--no-psqlrc', '--tuples-only', '--no-align', '--command', query];
    return (await this.#run('psql', [...options, ...this.#client])).trim();
  }

  get #client(): string[] {
    return ['--host', this.#sockets, 'postgres'];
  }

  /** Transactions of four clients; throws where one fails. */
  async bench(seconds: number): Promise<void> {
    const said = await this.#run('pgbench', [
      ...['--client=4', '--no-vacuum', `--time=${seconds}`],
      ...this.#client,
    ]);
    const failed = /number of failed transactions: (\d+)/.exec(said)?.[1] ?? '0';
    if (failed !== '0' || /aborted/.test(said)) throw new Error(said);
  }

  async stop(): Promise<void> {
    await this.#run('pg_ctl', ['stop', '--pgdata', this.#data, '--mode=fast', '--wait']);
    await until('its lock is gone', () => !existsSync(`${this.#data}/postmaster.pid`));
  }

  /** Reads every page; what it says. */
  checksums(): Promise<string> {
    return this.#run('pg_checksums', ['--check', '--pgdata', this.#data]);
  }

  #run(program: string, args: readonly string[]): Promise<string> {
    const as = [`--reuid=${this.#uid}`, '--clear-groups', `${this.#programs}/${program}`];
    return run('setpriv', [...as, ...args], { cwd: '/', timeoutMs: 300_000 });
  }
}
