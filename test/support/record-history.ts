/**
 * The daemon's records under a seed, on a simulated file system: names of roots and their versions,
 * devices, replicas and manifests of remote roots, settings of the cache. The daemon's own code
 * writes them; the process or the power ends at a step of that.
 *
 *     kept       what each file has to hold: what was answered for
 *     under way  what it may hold instead: a change that was not answered
 *
 * Versions of a root lie where somebody has copied them, who has not waited for the disk. Whatever
 * a name has on record must be there, as it was.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { RootIdentity } from '../../src/client/api.ts';
import { findPaths } from '../../src/client/paths.ts';
import { readSettings, writeSettings } from '../../src/daemon/cache/settings.ts';
import { syncRecords } from '../../src/daemon/directories.ts';
import { FileImages } from '../../src/daemon/images.ts';
import { NamedRoots } from '../../src/daemon/life/named-roots.ts';
import {
  changed,
  firstGeneration,
  type RootNameRecord,
  RootNames,
} from '../../src/daemon/life/root-names.ts';
import type { Log } from '../../src/daemon/log.ts';
import { type DeviceRecord, RecordStore } from '../../src/daemon/record.ts';
import type { Registry } from '../../src/daemon/registry.ts';
import { RootBook } from '../../src/daemon/remote/root-book.ts';
import { Random } from './random.ts';
import { PowerLoss } from './sim-disk.ts';
import { SIM, SimFs } from './sim-fs.ts';
import { useSimFs } from './sim-node-fs.ts';

const NAMES = ['debian', 'web'];
const URIS = ['http://a/root', 'http://b/root'];
const ROOT_BYTES = 8192;
const paths = findPaths({ stateDir: SIM, runtimeDir: SIM });
const identity: RootIdentity = { sizeBytes: ROOT_BYTES, fingerprint: 'ab'.repeat(32) };
const quiet = { info() {} } as unknown as Log;
const nobody = { entries: [] } as unknown as Registry;

export class RecordHistory {
  readonly fs: SimFs;
  readonly #random: Random;
  /** Record to content; null: it is gone. */
  readonly #kept = new Map<string, unknown>();
  #underWay: [key: string, becomes: unknown] | null = null;
  /** Path to content. */
  readonly #copies = new Map<string, Buffer>();
  readonly #devices = new RecordStore(paths.devices);
  readonly #book = new RootBook(paths.roots);
  #number = 0;
  #names!: NamedRoots;

  constructor(seed: number) {
    this.#random = new Random(seed);
    this.fs = new SimFs(['devices', 'roots', 'root-names', 'images']);
    useSimFs(this.fs);
    this.#begin();
  }

  /** A change of some record. Throws PowerLoss if the machine dies in it. */
  change(): Promise<void> {
    const random = this.#random;
    const kind = random.below(7);
    if (kind === 0) return this.#changeDevice();
    if (kind === 1) return this.#changeReplicas(random.pick(URIS));
    if (kind === 2) return this.#changeCache();
    return this.#changeName(random.pick(NAMES));
  }

  /** The process has ended; the power, too, if `random` is given. A new daemon reads everything. */
  async recover(random?: Random): Promise<void> {
    this.fs.restart(random);
    this.#begin();
    syncRecords(paths);
    const found = await this.#readAll();
    for (const key of new Set([...this.#kept.keys(), ...found.keys(), this.#underWay?.[0] ?? ''])) {
      const mayBe = [textOf(this.#kept.get(key))];
      if (this.#underWay?.[0] === key) mayBe.push(textOf(this.#underWay[1]));
      const is = textOf(found.get(key));
      if (!mayBe.includes(is)) throw new Error(`${key} is ${is}, and was ${mayBe.join(', or ')}`);
      this.#kept.set(key, found.get(key) ?? null);
    }
    this.#underWay = null;
    this.#checkRoots(found);
  }

  #begin(): void {
    const images = new FileImages();
    this.#names = new NamedRoots({ paths, images, registry: nobody, log: quiet });
  }

  // ── changes ──────────────────────────────────────────────────────────────

  async #changeName(name: string): Promise<void> {
    const key = `name ${name}`;
    const record = this.#kept.get(key) as RootNameRecord | null | undefined;
    const roots = this.#names;
    const random = this.#random;
    if (!record) {
      const opened = await this.#copy();
      const becomes = firstGeneration(name, opened.root, opened.identity, 'pin', '');
      return this.#do(key, becomes, () => roots.add({ name, root: opened.root }));
    }
    if (random.chance(0.15)) return this.#do(key, null, () => roots.remove(name));
    if (record.canary !== null) {
      const change = { step: random.pick(['promote', 'withdraw'] as const) };
      return this.#do(key, changed(record, change, null, ''), () => roots.change(name, change));
    }
    const opened = await this.#copy();
    const change = { root: opened.root, ...(random.chance(0.4) && { canary: ['a', 'b'] }) };
    return this.#do(key, changed(record, change, opened, ''), () => roots.change(name, change));
  }

  async #changeDevice(): Promise<void> {
    const random = this.#random;
    const name = random.pick(['a', 'b']);
    const key = `device ${name}`;
    if (this.#kept.get(key) && random.chance(0.3))
      return this.#do(key, null, () => this.#devices.remove(name));
    const number = ++this.#number;
    const record: DeviceRecord = {
      version: 1,
      name,
      root: { path: `${SIM}/images/1`, identity },
      leaf: { path: `${SIM}/images/leaf`, ephemeral: false },
      sizeBytes: ROOT_BYTES,
      readOnly: false,
      transport: 'loop',
      link: number,
      node: '/dev/loop1',
      attachedAt: 'now',
    };
    if (random.chance(0.3)) record.snapshot = { file: `${SIM}/${number}`, successor: `${SIM}/s` };
    return this.#do(key, record, () => this.#devices.write(record));
  }

  async #changeReplicas(uri: string): Promise<void> {
    const random = this.#random;
    const number = ++this.#number;
    if (random.chance(0.3)) {
      const manifest = `manifest ${number}`;
      const raw = Buffer.from(manifest);
      return this.#do(`manifest ${uri}`, manifest, () => this.#book.writeManifest(uri, raw));
    }
    const none = random.chance(0.3);
    const record = { version: 1, uri, identity, replicas: none ? [] : [`http://r/${number}`] };
    return this.#do(`replicas ${uri}`, none ? null : record, () => this.#book.write(record));
  }

  async #changeCache(): Promise<void> {
    const settings = { sizeBytes: ++this.#number * 2 ** 20, policy: 'lru' } as const;
    return this.#do('cache', settings, () => writeSettings(paths.cacheSettings, settings));
  }

  async #do(key: string, becomes: unknown, work: () => Promise<unknown>): Promise<void> {
    this.#underWay = [key, becomes];
    try {
      await work();
    } catch (error) {
      throw this.fs.dead ? new PowerLoss(key) : error;
    }
    this.#kept.set(key, becomes);
    this.#underWay = null;
  }

  /** A file that somebody has put there; its name and content are not durable yet. */
  async #copy(): Promise<{ root: string; identity: RootIdentity }> {
    const root = `${SIM}/images/${++this.#number}`;
    const content = Buffer.alloc(ROOT_BYTES, (this.#number % 255) + 1);
    const fd = openSync(root, 'wx');
    writeSync(fd, content, 0, ROOT_BYTES, 0);
    closeSync(fd);
    this.#copies.set(root, content);
    const opened = await new FileImages().openRoot(root);
    opened.close();
    return { root, identity: opened.identity };
  }

  // ── what a new daemon finds ──────────────────────────────────────────────

  async #readAll(): Promise<Map<string, unknown>> {
    const found = new Map<string, unknown>();
    for (const record of await new RootNames(paths).readAll())
      found.set(`name ${record.name}`, record);
    const { records, bad } = await this.#devices.readAll();
    for (const { error } of bad) throw error;
    for (const record of records) found.set(`device ${record.name}`, record);
    for (const record of await this.#book.readAll()) found.set(`replicas ${record.uri}`, record);
    for (const uri of URIS) {
      const raw = await this.#book.readManifest(uri);
      if (raw !== null) found.set(`manifest ${uri}`, raw.toString());
    }
    const { settings, problem } = readSettings(paths.cacheSettings, {});
    if (problem !== null) throw new Error(problem);
    if (this.fs.has(paths.cacheSettings)) found.set('cache', settings);
    return found;
  }

  /** Every version on record is where it was, with all of its bytes. */
  #checkRoots(found: Map<string, unknown>): void {
    for (const name of NAMES) {
      const record = found.get(`name ${name}`) as RootNameRecord | undefined;
      for (const { root } of record?.generations ?? [])
        if (!this.fs.has(root) || !this.#copies.get(root)!.equals(this.fs.content(root)))
          throw new Error(`${name} refers to ${root}, which is not what it was`);
    }
  }
}

/** For comparing; when a version was registered does not matter. */
function textOf(record: unknown): string {
  if (record === undefined || record === null) return 'nothing';
  return JSON.stringify(record, (key, value) => (key === 'registered' ? '' : value));
}
