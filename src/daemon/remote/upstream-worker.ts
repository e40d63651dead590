/**
 * The upstream thread: opens remote roots, serves the devices that stand on them, and keeps the
 * disk cache (upstream-protocol.ts).
 */
import { parentPort, workerData } from 'node:worker_threads';
import { LRUCache } from 'lru-cache';
import { asUbdError, UbdError } from '../../base/errors.ts';
import { DiskCache } from '../../remote/disk-cache.ts';
import { openRemoteRoot } from '../../remote/open-root.ts';
import { makePlace } from '../../remote/places.ts';
import { Port } from '../../remote/port.ts';
import type { ChunkMemory, RemoteRoot } from '../../remote/remote-root.ts';
import type { ReplicaReport } from '../../remote/replica.ts';
import type { Level } from '../../remote/replica-set.ts';
import { parseRootUri } from '../../remote/uri.ts';
import type {
  UpstreamCall,
  UpstreamFacts,
  UpstreamMessage,
  UpstreamRequest,
  UpstreamSpec,
  UpstreamStart,
} from './upstream-protocol.ts';

/** A root that somebody holds. */
interface Held {
  number: number;
  root: RemoteRoot;
  /** What was found beside a replica. */
  manifest: Buffer | null;
  bootPack: Buffer | null;
  holds: number;
}

const port = parentPort!;

function post(message: UpstreamMessage): void {
  port.postMessage(message);
}

class Upstream {
  readonly #start: UpstreamStart;
  readonly #memory: ChunkMemory;
  readonly #disk: Promise<DiskCache | null>;
  /** By URI: of several that open one at once, one does it. */
  readonly #byUri = new Map<string, Promise<Held>>();
  readonly #byNumber = new Map<number, Held>();
  readonly #ports = new Set<Port>();
  #nextNumber: number;

  constructor(start: UpstreamStart) {
    this.#start = start;
    this.#nextNumber = start.firstRoot ?? 1;
    this.#memory = new LRUCache<string, Buffer>({
      maxSize: start.options.memoryBytes,
      sizeCalculation: chunk => Math.max(chunk.length, 1),
    });
    this.#disk =
      start.disk === null
        ? Promise.resolve(null)
        : DiskCache.open({ ...start.disk, report: this.#report });
  }

  readonly #report = (level: Level, text: string): void => post({ event: 'report', level, text });

  async take(call: UpstreamCall): Promise<unknown> {
    switch (call.call) {
      case 'open':
        return this.#open(call.spec);
      case 'release':
        this.#release(this.#held(call.root));
        return null;
      case 'connect':
        this.#connect(this.#held(call.root), call.fd);
        return null;
      case 'add':
        return this.#add(this.#held(call.root), call.uri);
      case 'remove':
        return this.#held(call.root).root.removeReplica(call.uri);
      case 'stats':
        return [...this.#byNumber.values()].map(({ root }) => root.stats());
      case 'stop':
        return this.#stop();
    }
  }

  #held(number: number): Held {
    const held = this.#byNumber.get(number);
    if (held === undefined) throw new UbdError('not-found', `no remote root ${number} is open`);
    return held;
  }

  async #open(spec: UpstreamSpec): Promise<UpstreamFacts> {
    const { text } = parseRootUri(spec.uri);
    let opening = this.#byUri.get(text);
    if (opening === undefined) {
      opening = this.#openAnew(text, spec);
      this.#byUri.set(text, opening);
      opening.catch(() => this.#byUri.delete(text));
    }
    const held = await opening;
    held.holds++;
    const { root, manifest, bootPack, number } = held;
    return {
      root: number,
      uri: root.name,
      identity: root.identity,
      generation: root.generation,
      lasts: root.lasts,
      treeDigest: root.manifest?.treeDigest ?? null,
      manifest,
      bootPack,
    };
  }

  async #openAnew(text: string, spec: UpstreamSpec): Promise<Held> {
    const { manifest, ...rest } = spec;
    const { root, ...beside } = await openRemoteRoot(
      { ...rest, uri: text, manifest: manifest && Buffer.from(manifest), wantBootPack: true },
      {
        memory: this.#memory,
        disk: await this.#disk,
        options: this.#start.options,
        report: this.#report,
      },
    );
    const held: Held = { number: this.#nextNumber++, root, ...beside, holds: 0 };
    this.#byNumber.set(held.number, held);
    return held;
  }

  #release(held: Held): void {
    if (--held.holds > 0) return;
    this.#byNumber.delete(held.number);
    this.#byUri.delete(held.root.name);
    held.root.close();
  }

  #connect(held: Held, fd: number): void {
    held.holds++;
    const device = new Port(fd, held.root, () => {
      this.#ports.delete(device);
      this.#release(held);
    });
    this.#ports.add(device);
  }

  async #add({ root }: Held, uri: string): Promise<ReplicaReport> {
    const place = makePlace(parseRootUri(uri));
    await root.addReplica(place);
    return root.stats().replicas.find(replica => replica.uri === place.uri)!;
  }

  async #stop(): Promise<null> {
    for (const device of this.#ports) device.close();
    for (const { root } of this.#byNumber.values()) root.close();
    await (await this.#disk)?.close();
    return null;
  }
}

function main(): void {
  const upstream = new Upstream(workerData as UpstreamStart);
  port.on('message', ({ number, ...call }: UpstreamRequest) => {
    upstream.take(call).then(
      result => {
        post({ number, result });
        // Nothing that a place may still wait for keeps the thread.
        if (call.call === 'stop') process.exit();
      },
      (thrown: unknown) => post({ number, error: asUbdError(thrown).toJSON() }),
    );
  });
}

main();
