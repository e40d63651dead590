/**
 * The names that clients may ask for, and the disks behind them.
 *
 *     name ──▶ an export of that name
 *          ──▶ '' : the only export, if there is one and no template
 *          ──▶ the template with the longest prefix of it ──▶ a disk of that name, made if need be
 *
 * Names are checked before anything else happens: they become names of files. What a client is told
 * of a disk that cannot be opened is that; the reason, with its paths, is in the log.
 */

import { asUbdError, inOneLine, UbdError } from '../../base/errors.ts';
import type { Quota } from '../../client/api.ts';
import type { Export, ExportSpec, Template, TemplateSpec } from '../../client/exports.ts';
import type { Paths } from '../../client/paths.ts';
import type { ListEntry, Refusal } from '../../transport/nbd/handshake.ts';
import type { Exporter } from '../machine.ts';
import { deviceBytes } from '../open-disk.ts';
import type { Plan } from '../plan.ts';
import type { DeviceStats } from '../plane-protocol.ts';
import type { Workshop } from '../workshop.ts';
import { type Peer, refuseAccess } from './access.ts';
import { Complaints } from './complaints.ts';
import { Disk, type OpenedDisk } from './disk.ts';
import { type DiskSpec, isDiskName, leavesIn, makeDirectory, Plans } from './plans.ts';

export const LEAVES_MAX = 1024;
/** Names in an answer to LIST. */
const LIST_MAX = 1024;

/** What a client is told of an export. */
export interface Facts {
  name: string;
  description: string;
  sizeBytes: number;
  readOnly: boolean;
}

/** A client's share in an open disk. Released once. */
export interface Use {
  facts: Facts;
  id: number;
  release(): void;
}

export interface CatalogOptions {
  paths: Paths;
  shop: Pick<Workshop, 'images' | 'log'>;
  exporter: Exporter;
  nextId: () => number;
  /** The device that has this leaf open, if one has. */
  userOf: (leaf: string) => string | undefined;
  lingerMs?: number;
}

interface Named {
  disk: Disk;
  spec: DiskSpec;
  template: TemplateEntry | null;
  plan: () => Promise<Plan>;
}

interface TemplateEntry {
  spec: TemplateSpec;
  prefix: string;
  leavesMax: number;
}

export class Catalog {
  readonly #options: CatalogOptions;
  readonly #plans: Plans;
  readonly #complaints: Complaints;
  readonly #named = new Map<string, Named>();
  readonly #templates = new Map<string, TemplateEntry>();
  /** Quotas that were changed, by name: each opening asks for them, until the name is removed. */
  readonly #quotas = new Map<string, Quota | null>();
  #stopping = false;

  constructor(options: CatalogOptions) {
    this.#options = options;
    this.#plans = new Plans(options.paths, options.shop.images);
    this.#complaints = new Complaints(options.shop.log);
  }

  // ---- what there is

  add(spec: ExportSpec): Export {
    const { name } = spec;
    if (this.#named.has(name))
      throw new UbdError('exists', `there is an export ${name}`, {
        place: { device: name },
        next: 'choose another name, or remove it first',
      });
    const named = this.#make(name, spec, null, () => this.#plans.ofExport(spec));
    this.#named.set(name, named);
    return this.#show(named, undefined);
  }

  async addTemplate(spec: TemplateSpec): Promise<Template> {
    const prefix = spec.prefix ?? '';
    if (this.#templates.has(prefix))
      throw new UbdError('exists', `there is a template for the names ${prefix}*`, {
        next: 'give this one another prefix, or remove the other first',
      });
    if (spec.dir !== undefined) makeDirectory(spec.dir);
    const entry = { spec, prefix, leavesMax: spec.leavesMax ?? LEAVES_MAX };
    this.#templates.set(prefix, entry);
    return this.#showTemplate(entry);
  }

  async remove(name: string, options: { force: boolean }): Promise<Export> {
    const named = this.#named.get(name);
    if (named === undefined) throw noExport(name);
    refuseUsed([named], options.force);
    const shown = this.#show(named, undefined);
    if (named.template === null) this.#named.delete(name);
    this.#quotas.delete(name);
    await named.disk.close();
    return shown;
  }

  async removeTemplate(prefix: string, options: { force: boolean }): Promise<Template> {
    const entry = this.#templates.get(prefix);
    if (entry === undefined)
      throw new UbdError('not-found', `there is no template for the names ${prefix}*`);
    const made = [...this.#named.values()].filter(({ template }) => template === entry);
    refuseUsed(made, options.force);
    const shown = this.#showTemplate(entry);
    this.#templates.delete(prefix);
    for (const { disk } of made) this.#named.delete(disk.name);
    for (const name of this.#quotas.keys()) // of those that are closed, too
      if (!this.#named.has(name) && this.#templateOf(name) === undefined) this.#quotas.delete(name);
    await Promise.all(made.map(({ disk }) => disk.close()));
    return shown;
  }

  /** All exports: those that were named, and what templates have open. */
  list(stats: readonly DeviceStats[]): Export[] {
    return [...this.#named.values()].map(named => this.#showWith(named, stats));
  }

  find(name: string, stats: readonly DeviceStats[]): Export {
    const named = this.#named.get(name);
    if (named !== undefined) return this.#showWith(named, stats);
    throw noExport(name);
  }

  /** Changes what the leaf of an export may hold, at once; whoever uses it goes on. */
  async limit(name: string, quota: Quota | null): Promise<void> {
    const named = this.#named.get(name);
    if (named === undefined) throw noExport(name);
    const { disk, spec } = named;
    if (spec.readOnly || disk.opened?.leaf === null)
      throw new UbdError('usage', `the export ${name} is read-only: a quota means nothing to it`, {
        place: { device: name },
        next: 'remove it, and add it with a leaf',
      });
    const before = this.#quotas.get(name);
    this.#quotas.set(name, quota); // first: an opening that begins now asks for it
    try {
      await disk.limit(quota);
    } catch (thrown) {
      // Unless it was changed once more meanwhile, or went with its name.
      if (this.#quotas.get(name) !== quota) throw thrown;
      if (before === undefined) this.#quotas.delete(name);
      else this.#quotas.set(name, before);
      throw thrown;
    }
  }

  get templates(): Template[] {
    return [...this.#templates.values()].map(entry => this.#showTemplate(entry));
  }

  /** A leaf of ours has come to its quota, or near it. False: it is none of ours. */
  quotaReached(id: number, mark: 'warning' | 'full'): boolean {
    const named = [...this.#named.values()].find(({ disk }) => disk.opened?.id === id);
    if (named === undefined) return false;
    const what = mark === 'full' ? 'has used up its quota' : 'comes to the end of its quota';
    const { name, opened } = named.disk;
    const { log } = this.#options.shop;
    log.warning(`export ${name}: its leaf ${what}`);
    // Its root is what it was added with, for each of its openings, and may be a template's.
    if (opened?.quotaAction === 'reconcile')
      log.warning(
        `export ${name}: not reconciled: an export keeps its root; when no client has it: ` +
          `ubd reconcile ${opened.leaf?.path} --output ROOT, and export the leaf without a root`,
      );
    return true;
  }

  /** Why the disk of an export could not be opened now; null: it could. Nothing is made. */
  async probe(name: string): Promise<UbdError | null> {
    const named = this.#named.get(name);
    if (named === undefined || named.disk.opened !== null) return null;
    try {
      await this.#sizeOf(this.#refuseUsedLeaf(await named.plan()));
      return null;
    } catch (thrown) {
      return asUbdError(thrown);
    }
  }

  /** Closes every disk; each leaf is durable and clean afterwards. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.allSettled([...this.#named.values()].map(({ disk }) => disk.close()));
  }

  // ---- what clients ask

  /** The names that this client may use: exports, and leaves that templates have made. */
  async names(peer: Peer): Promise<ListEntry[]> {
    const found = new Map<string, ListEntry>();
    const add = (name: string, { description, allow }: DiskSpec): void => {
      if (found.size < LIST_MAX && !found.has(name) && refuseAccess(peer, name, allow) === null)
        found.set(name, { name, description: description ?? '' });
    };
    for (const [name, { spec }] of this.#named) add(name, spec);
    for (const { spec, prefix } of this.#templates.values())
      for (const name of await leavesIn(spec.dir)) if (name.startsWith(prefix)) add(name, spec);
    return [...found.values()];
  }

  /** What the export is like, without opening its disk. */
  async describe(name: string, peer: Peer): Promise<Facts | Refusal> {
    const named = this.#resolve(name, peer);
    if ('refused' in named) return named;
    const { disk, spec } = named;
    if (disk.opened !== null) return factsOf(named, disk.opened);
    try {
      const plan = await named.plan();
      return {
        name: disk.name,
        description: spec.description ?? '',
        sizeBytes: await this.#sizeOf(plan),
        readOnly: plan.readOnly,
      };
    } catch (thrown) {
      return this.#cannot(disk.name, peer, thrown);
    } finally {
      this.#tidy(named);
    }
  }

  /** Opens the disk for a client that will use it now. */
  async open(name: string, peer: Peer): Promise<Use | Refusal> {
    const named = this.#resolve(name, peer);
    if ('refused' in named) return named;
    const { disk, template } = named;
    try {
      if (template !== null) await this.#refuseFull(template, disk.name);
      const opened = await disk.acquire();
      let released = false;
      return {
        facts: factsOf(named, opened),
        id: opened.id,
        release: () => {
          if (!released) disk.release();
          released = true;
        },
      };
    } catch (thrown) {
      this.#tidy(named);
      return this.#cannot(disk.name, peer, thrown);
    }
  }

  #resolve(asked: string, peer: Peer): Named | Refusal {
    if (this.#stopping) return { refused: 'shutdown', message: 'the server is stopping' };
    const name = asked === '' ? this.#onlyName() : asked;
    const named = name === undefined ? undefined : this.#named.get(name);
    if (named !== undefined) return this.#refuse(peer, named.disk.name, named.spec) ?? named;
    const template = name === undefined ? undefined : this.#templateOf(name);
    if (name === undefined || template === undefined) return this.#unknown(asked);
    const refusal = this.#refuse(peer, name, template.spec);
    if (refusal !== null) return refusal;
    const made = this.#make(name, template.spec, template, () =>
      this.#plans.ofTemplate(template.spec, name),
    );
    this.#named.set(name, made);
    return made;
  }

  #refuse(peer: Peer, name: string, { allow }: DiskSpec): Refusal | null {
    const refusal = refuseAccess(peer, name, allow);
    if (refusal !== null) {
      const who = peer.names === null ? peer.from : `${peer.from}, ${peer.names.join(', ')}`;
      this.#complaints.add(`${who}: export ${name}: refused: ${refusal.message}`);
    }
    return refusal;
  }

  #unknown(asked: string): Refusal {
    const isTaken = this.#templates.size > 0 && asked !== '' && !isDiskName(asked);
    return {
      refused: 'unknown',
      message: isTaken
        ? 'there is no such export; a new one is named with 1 to 63 letters, digits, dots, ' +
          'dashes and underscores'
        : 'there is no such export',
    };
  }

  /** The export that a client means who names none. */
  #onlyName(): string | undefined {
    if (this.#templates.size > 0 || this.#named.size !== 1) return undefined;
    return [...this.#named.keys()][0];
  }

  #templateOf(name: string): TemplateEntry | undefined {
    if (!isDiskName(name)) return undefined;
    let best: TemplateEntry | undefined;
    for (const entry of this.#templates.values())
      if (name.startsWith(entry.prefix) && entry.prefix.length >= (best?.prefix.length ?? 0))
        best = entry;
    return best;
  }

  async #refuseFull({ spec, leavesMax }: TemplateEntry, name: string): Promise<void> {
    const names = new Set(await leavesIn(spec.dir));
    if (names.has(name)) return;
    for (const { disk, template } of this.#named.values())
      if (template?.spec === spec && disk.state !== 'closed') names.add(disk.name);
    if (names.size >= leavesMax && !names.has(name))
      throw new UbdError('no-space', `the template has its ${leavesMax} leaves`, {
        ...(spec.dir === undefined ? {} : { place: { file: spec.dir } }),
        next: 'remove leaves that nobody needs, or raise the limit (max=)',
      });
  }

  #make(
    name: string,
    spec: DiskSpec,
    template: TemplateEntry | null,
    plan: () => Promise<Plan>,
  ): Named {
    const { shop, exporter, nextId, lingerMs } = this.#options;
    const named: Named = {
      disk: new Disk({
        name,
        shop,
        exporter,
        nextId,
        plan: async () => this.#limited(name, this.#refuseUsedLeaf(await plan())),
        ...(lingerMs === undefined ? {} : { lingerMs }),
        onClosed: () => this.#tidy(named),
      }),
      spec,
      template,
      plan,
    };
    return named;
  }

  #limited(name: string, plan: Plan): Plan {
    const quota = this.#quotas.get(name);
    return quota === undefined ? plan : { ...plan, quota };
  }

  /** A name that a template has made is kept only while its disk is in use. */
  #tidy(named: Named): void {
    const { disk, template } = named;
    if (template === null || disk.uses > 0 || disk.state !== 'closed') return;
    if (this.#named.get(disk.name) === named) this.#named.delete(disk.name);
  }

  #refuseUsedLeaf(plan: Plan): Plan {
    const user = plan.leaf === null ? undefined : this.#options.userOf(plan.leaf.path);
    if (plan.leaf === null || user === undefined) return plan;
    throw new UbdError('busy', `the leaf ${plan.leaf.path} is in use by device ${user}`, {
      place: { file: plan.leaf.path, device: user },
      next: `detach it first: ubd detach ${user}; one leaf is one disk`,
    });
  }

  async #sizeOf(plan: Plan): Promise<number> {
    const { images } = this.#options.shop;
    if (plan.leaf !== null && !plan.leaf.isNew) return (await images.leafInfo(plan.leaf.path)).size;
    const root = await images.openRoot(plan.rootPath);
    root.close();
    return deviceBytes(plan, root);
  }

  #cannot(name: string, { from }: Peer, thrown: unknown): Refusal {
    const why = inOneLine(asUbdError(thrown));
    this.#complaints.add(`${from}: export ${name}: cannot be opened: ${why}`);
    return {
      refused: 'unknown',
      message: 'the export cannot be opened: the log of the server says why',
    };
  }

  // ---- showing

  #showWith(named: Named, stats: readonly DeviceStats[]): Export {
    const id = named.disk.opened?.id;
    return this.#show(
      named,
      stats.find(one => one.id === id),
    );
  }

  #show({ disk, spec, template }: Named, stats: DeviceStats | undefined): Export {
    const { opened } = disk;
    return {
      name: disk.name,
      description: spec.description ?? '',
      template: template?.prefix ?? null,
      root: opened?.root ?? spec.root ?? null,
      leaf: opened?.leaf?.path ?? null,
      ephemeral: spec.ephemeral ?? false,
      readOnly: spec.readOnly ?? false,
      size: opened?.sizeBytes ?? null,
      changed: stats?.changedBytes ?? null,
      quota: stats?.quota ?? null,
      state: disk.state,
      connections: disk.uses,
      requests: stats
        ? {
            reads: stats.reads,
            readBytes: stats.readBytes,
            writes: stats.writes,
            writtenBytes: stats.writtenBytes,
          }
        : null,
    };
  }

  #showTemplate(entry: TemplateEntry): Template {
    const { spec, prefix } = entry;
    const made = [...this.#named.values()].filter(({ template }) => template === entry);
    return {
      prefix,
      root: spec.root,
      dir: spec.dir ?? null,
      ephemeral: spec.ephemeral ?? false,
      open: made.filter(({ disk }) => disk.state !== 'closed').length,
    };
  }
}

function noExport(name: string): UbdError {
  return new UbdError('not-found', `there is no export ${name}`, {
    place: { device: name },
    next: 'ubd list --exports shows them',
  });
}

function factsOf({ disk, spec }: Named, { sizeBytes, readOnly }: OpenedDisk): Facts {
  return { name: disk.name, description: spec.description ?? '', sizeBytes, readOnly };
}

function refuseUsed(named: readonly Named[], force: boolean): void {
  if (force) return;
  const used = named.find(({ disk }) => disk.uses > 0);
  if (used === undefined) return;
  const { name, uses } = used.disk;
  throw new UbdError('busy', `the export ${name} has ${uses} client${uses === 1 ? '' : 's'}`, {
    place: { device: name },
    next: 'wait until they have left, or use force: it cuts them off',
  });
}
