/**
 * Names of simulated files: link, rename and remove are visible at once, and durable after a sync;
 * a power loss keeps those before some moment since then, in their order, as a journal does.
 */
import type { Random } from './random.ts';
import type { SimDisk } from './sim-disk.ts';

type Table = Map<string, number>;
type Change = (table: Table) => void;

export class SimNames {
  readonly #disk: SimDisk;
  #visible: Table = new Map();
  readonly #durable: Table = new Map();
  #unsynced: Change[] = [];

  constructor(disk: SimDisk) {
    this.#disk = disk;
  }

  get(name: string): number | undefined {
    return this.#visible.get(name);
  }

  link(name: string, fd: number): void {
    this.#change(table => table.set(name, fd));
  }

  rename(from: string, to: string): void {
    const fd = this.get(from);
    if (fd === undefined) throw new Error(`there is no ${from}`);
    this.#change(table => {
      table.delete(from);
      table.set(to, fd);
    });
  }

  remove(name: string): void {
    this.#change(table => table.delete(name));
  }

  sync(): void {
    for (const change of this.#unsynced) change(this.#durable);
    this.#unsynced = [];
  }

  powerLoss(random: Random): void {
    const kept = random.between(0, this.#unsynced.length);
    this.#unsynced = this.#unsynced.slice(0, kept);
    this.sync();
    this.#visible = new Map(this.#durable);
    this.#count();
  }

  #change(change: Change): void {
    change(this.#visible);
    this.#unsynced.push(change);
    this.#count();
  }

  #count(): void {
    for (const file of this.#disk.files) file.names = 0;
    for (const fd of this.#visible.values()) this.#disk.file(fd).names++;
  }
}
