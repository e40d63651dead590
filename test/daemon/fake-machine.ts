/**
 * A machine without a kernel: roots and leaves are small text files, nodes are files in a
 * directory. It counts what is open, and fails at the step that it is told to.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { UbdError } from '../../src/base/errors.ts';
import { rangesBytes } from '../../src/cache/boot-pack.ts';
import type { CheckReport, LeafInfo, Quota, RootIdentity } from '../../src/client/api.ts';
import { findPaths, type Paths } from '../../src/client/paths.ts';
import { Log } from '../../src/daemon/log.ts';
import type {
  ClientChannel,
  Exporter,
  Images,
  LeafHandle,
  LiveLeaves,
  Machine,
  MachineCache,
  NewLeaf,
  RenewedLeaf,
  Replicas,
  RootHandle,
  Transport,
  TransportDevice,
} from '../../src/daemon/machine.ts';
import type { CacheSettings, DeviceStats } from '../../src/daemon/plane-protocol.ts';
import { Registry } from '../../src/daemon/registry.ts';

export type Step =
  | 'exporter.open'
  | 'exporter.close'
  | 'exporter.limit'
  | 'openRoot'
  | 'createLeaf'
  | 'openLeaf'
  | 'snapshot'
  | 'transport.attach';

interface LeafFile {
  sizeBytes: number;
  root: { path: string; identity: RootIdentity };
}

export class FakeMachine implements Machine {
  readonly live: LiveLeaves = {
    snapshot: async (_, file, hooks) => {
      await hooks.remember({ file, successor: `${file}.next` });
      try {
        await this.#step('snapshot');
      } finally {
        await hooks.remember(null);
      }
      return { changedBytes: 0, images: 1 };
    },
    fold: async () => 0,
    moveTo: async (_, root) => {
      root.close();
    },
    limit: async () => {},
    grow: async () => {},
    gone: () => {},
  };
  /** What is open or attached now: root and leaf paths, nodes. */
  readonly open: Set<string> = new Set();
  readonly users: Map<string, string[]> = new Map();
  failAt: Step | null = null;
  /** Called when a step begins: tests meddle here. */
  onStep: (step: Step) => void | Promise<void> = () => {};
  stopped = false;
  readonly nodes: string;
  readonly images: Images;
  readonly replicas: Replicas = {
    add: async () => this.#noRemote(),
    remove: async () => this.#noRemote(),
    list: async () => [],
  };
  readonly transports: readonly Transport[];
  readonly exporter: Exporter;
  /** Exports that are open, by their number, and their clients. */
  readonly exported: Map<number, { device: TransportDevice; channels: ClientChannel[] }> =
    new Map();
  /** What exports were told of their quotas. */
  readonly limits: { id: number; quota: Quota | null }[] = [];
  readonly #attached = new Map<number, { node: string; device: TransportDevice }>();
  #nextNode = 0;
  missing: string | null = null;
  readonly foreign: Set<string> = new Set();
  /** Ids that were detached in use. */
  readonly later: number[] = [];

  #noRemote(): never {
    throw new Error('the machine of this test has no remote roots');
  }

  constructor(nodes: string) {
    this.nodes = nodes;
    this.images = {
      openRoot: path => this.#openRoot(path),
      createLeaf: leaf => this.#createLeaf(leaf),
      renewLeaf: leaf => this.#renewLeaf(leaf),
      removeLeaf: async path => rmSync(path),
      openLeaf: (path, options) => this.#openLeaf(path, options?.quota ?? null),
      leafInfo: async path => leafInfo(path),
      leafRoot: async path => ({ root: leafInfo(path).root, problem: null }),
      foldLeaf: async () => 0,
      checkLeaf: async path => checkReport(path),
    };
    this.exporter = this.#exporter();
    this.transports = [
      {
        name: 'loop',
        missing: async () => this.missing,
        attach: device => this.#attach(device),
        detach: (id, { force }) => this.#detach(id, force),
        flush: async () => {},
        resize: async () => {},
        users: async node => this.users.get(node) ?? [],
        clearStale: async () => [],
        isForeign: node => this.foreign.has(node),
      },
    ];
  }

  #exporter(): Exporter {
    const find = (id: number): { device: TransportDevice; channels: ClientChannel[] } => {
      const found = this.exported.get(id);
      if (found === undefined) throw new UbdError('internal', `no export ${id}`);
      return found;
    };
    return {
      open: async device => {
        await this.#step('exporter.open');
        this.exported.set(device.id, { device, channels: [] });
      },
      connect: async (id, channel) => {
        find(id).channels.push(channel);
      },
      limit: async (id, quota) => {
        await this.#step('exporter.limit');
        this.limits.push({ id: find(id).device.id, quota });
      },
      close: async id => {
        const { device } = find(id);
        await this.#step('exporter.close');
        device.root.close();
        device.leaf?.close();
        this.exported.delete(id);
      },
    };
  }

  cacheSettings: CacheSettings = { sizeBytes: 2 ** 20, policy: 'lru' };
  readonly cache: MachineCache = {
    stats: async () => ({
      ...this.cacheSettings,
      usedBytes: 4096,
      memoryBytes: 2 ** 21,
      hits: 3,
      hitBytes: 12288,
      misses: 1,
      missBytes: 4096,
      evictions: 0,
      bypassed: 0,
      warming: [],
      recordings: [],
      roots: [],
    }),
    set: async settings => {
      this.cacheSettings = settings;
    },
    drop: async () => 4096,
    record: async () => {},
    recorded: async () => ({ ranges: Float64Array.of(1, 2), bytes: 8192 }),
    warm: async (root, ranges) => {
      root.close();
      const length = rangesBytes(ranges);
      return { readBytes: length, doneBytes: length };
    },
  };

  async stats(): Promise<DeviceStats[]> {
    return [...this.#attached.keys()].map(id => ({
      id,
      inFlight: 0,
      reads: 1,
      readBytes: 512,
      writes: 2,
      writtenBytes: 1024,
      flushes: 3,
      faults: 0,
      quota: null,
      refused: 0,
      changedBytes: 1024,
      cache: null,
    }));
  }

  async stop(): Promise<void> {
    this.stopped = true;
  }

  async #step(step: Step): Promise<void> {
    await this.onStep(step);
    if (this.failAt === step) throw new UbdError('io', `${step} was told to fail`);
  }

  async #renewLeaf({ path, root }: RenewedLeaf): Promise<void> {
    const { sizeBytes } = readLeaf(path);
    const renewed: LeafFile = { sizeBytes, root: { path: root.path, identity: root.identity } };
    writeFileSync(path, `LEAF${JSON.stringify(renewed)}`);
  }

  async #openRoot(path: string): Promise<RootHandle> {
    await this.#step('openRoot');
    let content: string;
    try {
      content = readFileSync(path, 'utf8');
    } catch {
      throw new UbdError('not-found', `${path}: there is no such root`);
    }
    const key = `root ${path} ${Math.random()}`;
    this.open.add(key);
    return {
      path,
      type: 'file',
      sizeBytes: content.length,
      identity: { sizeBytes: content.length, fingerprint: content.slice(0, 8) },
      close: () => this.open.delete(key),
    };
  }

  async #createLeaf({ path, sizeBytes, root }: NewLeaf): Promise<void> {
    await this.#step('createLeaf');
    const file: LeafFile = { sizeBytes, root: { path: root.path, identity: root.identity } };
    writeFileSync(path, `LEAF${JSON.stringify(file)}`, { flag: 'wx' });
  }

  async #openLeaf(path: string, quota: Quota | null): Promise<LeafHandle> {
    await this.#step('openLeaf');
    const file = readLeaf(path);
    const key = `leaf ${path}`;
    if (this.open.has(key)) throw new UbdError('busy', `${path} is in use`);
    this.open.add(key);
    return {
      path,
      ...file,
      changedBytes: 512,
      quota,
      notes: [],
      close: () => this.open.delete(key),
    };
  }

  async #attach(device: TransportDevice): Promise<{ node: string }> {
    await this.#step('transport.attach');
    const node = `${this.nodes}/loop${this.#nextNode++}`;
    writeFileSync(node, '');
    this.open.add(node);
    this.#attached.set(device.id, { node, device });
    return { node };
  }

  async #detach(id: number, force: boolean): Promise<'gone' | 'later'> {
    const attached = this.#attached.get(id);
    if (attached === undefined) return 'gone';
    const { node, device } = attached;
    if (this.users.has(node)) {
      if (!force) throw new UbdError('busy', `${node} is in use`);
      this.later.push(id);
      return 'later';
    }
    device.root.close();
    device.leaf?.close();
    this.open.delete(node);
    this.#attached.delete(id);
    rmSync(node);
    return 'gone';
  }
}

function readLeaf(path: string): LeafFile {
  const text = readFileSync(path, 'utf8');
  if (!text.startsWith('LEAF')) throw new UbdError('not-a-leaf', `${path} is not a leaf`);
  return JSON.parse(text.slice(4)) as LeafFile;
}

function leafInfo(path: string): Omit<LeafInfo, 'kind' | 'device'> {
  const { sizeBytes, root } = readLeaf(path);
  return {
    path,
    uuid: '',
    size: sizeBytes,
    root,
    chain: [],
    frozen: null,
    quota: null,
    changed: 0,
    allocated: 0,
    clean: true,
    inUseBy: null,
  };
}

function checkReport(path: string): CheckReport {
  const { root } = readLeaf(path);
  return {
    leaf: path,
    ok: true,
    problems: [],
    notes: [],
    root: { path: root.path, result: 'not asked', digest: null },
  };
}

export interface Bench {
  paths: Paths;
  machine: FakeMachine;
  registry: Registry;
  /** Where the links are: stands for /dev. */
  dev: string;
  root: string;
  /** A second daemon's registry over the same directories; the first must be done. */
  again(): { machine: FakeMachine; registry: Registry };
}

/** A registry over a fake machine, in directories of its own. */
export function bench(teardown: (fn: () => void) => void): Bench {
  const base = mkdtempSync(`${tmpdir()}/ubd-test-`);
  teardown(() => rmSync(base, { recursive: true, force: true }));
  const paths = findPaths({ stateDir: `${base}/state`, runtimeDir: `${base}/run` });
  for (const directory of [paths.devices, paths.leaves, paths.ephemeral, `${base}/dev`])
    mkdirSync(directory, { recursive: true });
  const root = `${base}/debian.img`;
  writeFileSync(root, 'root image content'.padEnd(4096, '.'));
  const dev = `${base}/dev`;
  const log = new Log(paths.log, { echo: false });
  teardown(() => log.close());
  const make = (): { machine: FakeMachine; registry: Registry } => {
    const machine = new FakeMachine(dev);
    return {
      machine,
      registry: new Registry({ paths, machine, log, owner: 'bench', linkDirectory: dev }),
    };
  };
  return { paths, ...make(), dev, root, again: make };
}
