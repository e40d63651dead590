/**
 * Exports as the daemon has them: the catalog of names, and the server that leads clients to it.
 */
import { inOneLine, UbdError } from '../../base/errors.ts';
import type { QuotaSpec } from '../../client/api.ts';
import type {
  Export,
  ExportSpec,
  Listener,
  ListenerSpec,
  Template,
  TemplateSpec,
} from '../../client/exports.ts';
import type { Paths } from '../../client/paths.ts';
import type { Log } from '../log.ts';
import type { Machine } from '../machine.ts';
import { checkQuota, refuseContradictions } from '../plan.ts';
import type { Registry } from '../registry.ts';
import { Catalog } from './catalog.ts';
import { planListening } from './listening.ts';
import { checkTemplate } from './plans.ts';
import { ExportServer } from './server.ts';

/** What `ubd serve` is told on its command line. */
export interface Serving {
  listeners: readonly ListenerSpec[];
  exports: readonly ExportSpec[];
  templates: readonly TemplateSpec[];
}

/** The first number of an export in the data plane; devices of the registry are far below. */
const FIRST_ID = 2 ** 30;

export interface ExportsOptions {
  paths: Paths;
  machine: Machine;
  registry: Registry;
  log: Log;
}

/** Mistakes that need no daemon to be found. */
export function checkServing({ listeners, exports, templates }: Serving): void {
  const places = listeners.map(listener => planListening(listener).at);
  refuseTwice(
    'listeners at',
    places.filter(({ address }) => 'path' in address || address.port !== 0).map(({ uri }) => uri),
  );
  for (const spec of exports) refuseContradictions(spec);
  for (const spec of templates) refuseTemplate(spec);
  refuseTwice(
    'exports of the name',
    exports.map(({ name }) => name),
  );
  refuseTwice(
    'templates for the names',
    templates.map(({ prefix }) => `${prefix ?? ''}*`),
  );
}

function refuseTemplate(spec: TemplateSpec): void {
  refuseContradictions(spec);
  checkTemplate(spec);
}

function refuseTwice(what: string, names: readonly string[]): void {
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw new UbdError('usage', `two ${what} ${twice}`);
}

export class Exports {
  readonly #catalog: Catalog;
  readonly #server: ExportServer;
  readonly #registry: Registry;
  readonly #log: Log;
  #nextId = FIRST_ID;

  constructor({ paths, machine, registry, log }: ExportsOptions) {
    const { images, exporter } = machine;
    this.#registry = registry;
    this.#log = log;
    this.#catalog = new Catalog({
      paths,
      shop: { images, log },
      exporter,
      nextId: () => this.#nextId++,
      userOf: leaf => registry.entries.find(entry => entry.leaf?.path === leaf)?.name,
    });
    this.#server = new ExportServer({ catalog: this.#catalog, exporter, log });
  }

  /** Makes what the command line asks for. A disk that cannot be opened now may be later. */
  async begin({ listeners, exports, templates }: Serving): Promise<void> {
    for (const spec of exports) {
      this.#catalog.add(spec);
      const found = await this.#catalog.probe(spec.name);
      if (found !== null) this.#log.warning(`export ${spec.name}: ${inOneLine(found)}`);
    }
    for (const spec of templates) await this.#catalog.addTemplate(spec);
    for (const spec of listeners) await this.#server.listen(spec);
  }

  /** Adds an export that can be opened now. */
  async add(spec: ExportSpec): Promise<Export> {
    refuseContradictions(spec);
    const made = this.#catalog.add(spec);
    const error = await this.#catalog.probe(spec.name);
    if (error === null) return made;
    await this.#catalog.remove(spec.name, { force: true });
    throw error;
  }

  async addTemplate(spec: TemplateSpec): Promise<Template> {
    refuseTemplate(spec);
    return this.#catalog.addTemplate(spec);
  }

  remove(name: string, options: { force: boolean }): Promise<Export> {
    return this.#catalog.remove(name, options);
  }

  removeTemplate(prefix: string, options: { force: boolean }): Promise<Template> {
    return this.#catalog.removeTemplate(prefix, options);
  }

  async list(): Promise<Export[]> {
    return this.#catalog.list(await this.#registry.stats());
  }

  async find(name: string): Promise<Export> {
    return this.#catalog.find(name, await this.#registry.stats());
  }

  /** Changes the quota of an export, in use or not. */
  async limit(name: string, quota: QuotaSpec | null): Promise<Export> {
    await this.#catalog.limit(name, checkQuota(quota));
    return this.find(name);
  }

  get templates(): Template[] {
    return this.#catalog.templates;
  }

  listen(spec: ListenerSpec): Promise<Listener> {
    return this.#server.listen(spec);
  }

  unlisten(uri: string): Listener {
    return this.#server.unlisten(uri);
  }

  get listeners(): Listener[] {
    return this.#server.listeners;
  }

  get connections(): number {
    return this.#server.connections;
  }

  /** False: it is no export's. */
  quotaReached(id: number, mark: 'warning' | 'full'): boolean {
    return this.#catalog.quotaReached(id, mark);
  }

  disconnected(connection: number, reason: string | null): void {
    this.#server.disconnected(connection, reason);
  }

  /** No client is left afterwards, and every leaf is durable. */
  async stop(): Promise<void> {
    this.#server.stop();
    await this.#catalog.stop();
    await this.#server.close();
  }
}
