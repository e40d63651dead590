/**
 * A disk that clients share by its name. It is open while somebody uses it:
 *
 *     closed ──first use──▶ opening ──▶ open ──last use ends, LINGER_MS──▶ closing ──▶ closed
 *        ▲                     │ fails     ▲                                  │
 *        └─────────────────────┘           └──── a new use waits for it ──────┘
 *
 * Closed, its leaf is durable and clean, and costs no memory; an ephemeral leaf is gone. It stays
 * open for a moment after the last use, since clients come in groups: `qemu-img` connects, looks,
 * and connects again.
 */
import { rm } from 'node:fs/promises';
import { asUbdError, type UbdError } from '../../base/errors.ts';
import type { Quota } from '../../client/api.ts';
import type { Exporter } from '../machine.ts';
import { openDisk } from '../open-disk.ts';
import type { Plan } from '../plan.ts';
import { Undo } from '../undo.ts';
import type { Workshop } from '../workshop.ts';

export const LINGER_MS = 5000;

export interface OpenedDisk {
  /** In the data plane. */
  id: number;
  root: string;
  leaf: { path: string; ephemeral: boolean } | null;
  sizeBytes: number;
  readOnly: boolean;
  /** What its leaf asks for at its quota. */
  quotaAction: Quota['action'] | null;
}

export interface DiskOptions {
  name: string;
  shop: Pick<Workshop, 'images' | 'log'>;
  exporter: Exporter;
  /** Unique in the data plane, for the daemon's life. */
  nextId: () => number;
  /** Root and leaf as they are to be now; looked at for every opening. */
  plan: () => Promise<Plan>;
  lingerMs?: number;
  /** It is closed, and nobody uses it. */
  onClosed?: () => void;
}

export class Disk {
  readonly name: string;
  readonly #options: DiskOptions;
  #uses = 0;
  #opening: Promise<OpenedDisk> | null = null;
  #opened: OpenedDisk | null = null;
  #closing: Promise<void> | null = null;
  #linger: NodeJS.Timeout | undefined;
  /** Changes of the leaf, one after the other; closing waits for them. */
  #changes: Promise<void> = Promise.resolve();

  constructor(options: DiskOptions) {
    this.name = options.name;
    this.#options = options;
  }

  get state(): 'closed' | 'opening' | 'open' | 'closing' {
    if (this.#closing !== null) return 'closing';
    if (this.#opened !== null) return 'open';
    return this.#opening === null ? 'closed' : 'opening';
  }

  get opened(): OpenedDisk | null {
    return this.#opened;
  }

  /** How many use it, and how many are about to. */
  get uses(): number {
    return this.#uses;
  }

  /** Opens it if need be. Whoever acquired it releases it, once. */
  async acquire(): Promise<OpenedDisk> {
    this.#uses++;
    clearTimeout(this.#linger);
    try {
      while (this.#closing !== null) await this.#closing;
      this.#opening ??= this.#open();
      return await this.#opening;
    } catch (error) {
      this.release();
      throw error;
    }
  }

  release(): void {
    if (--this.#uses > 0) return;
    clearTimeout(this.#linger);
    this.#linger = setTimeout(() => {
      this.close().catch(() => {}); // it is in the log
    }, this.#options.lingerMs ?? LINGER_MS);
    this.#linger.unref();
  }

  /** What its leaf may hold from now on. Of a closed disk the next opening asks for it. */
  limit(quota: Quota | null): Promise<void> {
    const change = this.#changes.then(() => this.#limit(quota));
    this.#changes = change.catch(() => {});
    return change;
  }

  async #limit(quota: Quota | null): Promise<void> {
    const opened = await this.#opening?.catch(() => null); // why it cannot be opened was told
    if (!opened?.leaf || this.#closing !== null) return;
    await this.#options.exporter.limit(opened.id, quota);
    opened.quotaAction = quota?.action ?? null;
  }

  /** Closes it, whoever uses it: their connections end. */
  async close(): Promise<void> {
    clearTimeout(this.#linger);
    if (this.#closing !== null) return this.#closing;
    if (this.#opening === null) {
      if (this.#uses === 0) this.#options.onClosed?.();
      return;
    }
    this.#closing = this.#shut(this.#opening);
    try {
      await this.#closing;
    } finally {
      this.#closing = null;
      if (this.#uses === 0) this.#options.onClosed?.();
    }
  }

  async #open(): Promise<OpenedDisk> {
    const { shop, exporter, nextId, plan: makePlan, name } = this.#options;
    const { log } = shop;
    const undo = new Undo();
    try {
      const plan = await makePlan();
      const { root, leaf, sizeBytes } = await openDisk(shop, plan, undo);
      const { readOnly } = plan;
      const id = nextId();
      await exporter.open({ id, name: `export ${name}`, sizeBytes, readOnly, root, leaf });
      const quotaAction = leaf?.quota?.action ?? null;
      this.#opened = { id, root: root.path, leaf: plan.leaf, sizeBytes, readOnly, quotaAction };
      log.info(`export ${name}: open${plan.leaf?.isNew ? ', on a new leaf' : ''}`);
      return this.#opened;
    } catch (thrown) {
      // Whoever asks meanwhile is refused, too: its leaf would be taken from under it.
      await undo.run(text => log.warning(`export ${name}: ${text}`));
      this.#opening = null;
      throw asUbdError(thrown);
    }
  }

  async #shut(opening: Promise<OpenedDisk>): Promise<void> {
    const { exporter, name, shop } = this.#options;
    let opened: OpenedDisk;
    try {
      opened = await opening;
    } catch {
      return; // it never was open
    }
    await this.#changes;
    let failure: UbdError | null = null;
    try {
      await exporter.close(opened.id);
    } catch (thrown) {
      failure = asUbdError(thrown);
      shop.log.error(`export ${name}: closing failed: ${failure.message}`);
    }
    this.#opened = null;
    this.#opening = null;
    if (opened.leaf?.ephemeral) await rm(opened.leaf.path, { force: true });
    if (failure !== null) throw failure;
    shop.log.info(`export ${name}: closed`);
  }
}
