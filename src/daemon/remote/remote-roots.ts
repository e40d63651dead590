/**
 * Remote roots and their replicas, as the control plane sees them: joins the upstream thread with
 * what is on record.
 */

import { errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import type { Replica, RootIdentity, RootReplicas } from '../../client/api.ts';
import { native } from '../../native/binding.ts';
import type { RemoteStats } from '../../remote/remote-root.ts';
import { parseRootUri } from '../../remote/uri.ts';
import type { FoundBootPack, Replicas, RootHandle } from '../machine.ts';
import { type RemoteRootFacts, type UpstreamLayerSpec, upstreamKey } from '../plane-protocol.ts';
import { REPLICAS_MAX, type RootBook, type RootRecord } from './root-book.ts';
import type { Upstream } from './upstream.ts';
import type { UpstreamFacts } from './upstream-protocol.ts';

/** A thread that dies as often while it is asked for one root dies of it. */
const REJOIN_TRIES = 3;

/** A remote root that is open in the upstream thread. */
export class UpstreamRoot implements RootHandle {
  readonly path: string;
  readonly type = 'remote';
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  readonly treeDigest: string | null;
  readonly #upstream: Upstream;
  readonly #facts: UpstreamFacts;
  boot: FoundBootPack = { ranges: null, problem: null };
  #held = true;

  constructor(upstream: Upstream, facts: UpstreamFacts) {
    this.path = facts.uri;
    this.identity = facts.identity;
    this.sizeBytes = facts.identity.sizeBytes;
    this.treeDigest = facts.treeDigest;
    this.#upstream = upstream;
    this.#facts = facts;
  }

  /** A boot pack that lies beside one of its places, as it is. */
  get packBeside(): Uint8Array | null {
    return this.#facts.bootPack;
  }

  get contentKey(): string {
    return upstreamKey(this.#facts.generation);
  }

  /** What the upstream thread calls it. */
  get number(): number {
    return this.#facts.root;
  }

  /** One end of a socket; the other one is connected to the root, and holds it open. */
  connect(): number {
    const { fd, connected } = this.#connect();
    connected.catch(() => {}); // then the other end is closed, which tells whoever uses ours
    return fd;
  }

  /**
   * The same, once the upstream thread has its end. For who waits in a read and lets nothing else
   * happen in this thread meanwhile: an end that nobody took could not be closed then, and the read
   * would never return.
   */
  async connected(): Promise<number> {
    const { fd, connected } = this.#connect();
    try {
      await connected;
      return fd;
    } catch (error) {
      native.close(fd);
      throw error;
    }
  }

  #connect(): { fd: number; connected: Promise<unknown> } {
    const ends = new Uint8Array(8);
    const result = native.socketpair(ends);
    if (result < 0) throw new UbdError('io', `no socket pair: ${errnoName(result)}`);
    const [fd, theirs] = new Int32Array(ends.buffer) as unknown as [number, number];
    const { root } = this.#facts;
    const connected = this.#upstream.call({ call: 'connect', root, fd: theirs });
    return {
      fd,
      connected: connected.catch(error => {
        native.close(theirs);
        throw error;
      }),
    };
  }

  /** The same, if it is what it was; null: that cannot be told by the generation. */
  connectAs(generation: string | null): number {
    if (generation === null || generation === this.#facts.generation) return this.connect();
    throw new UbdError('root-mismatch', `${this.path} has another version now`, {
      place: { file: this.path },
      next: 'bring the old one back, and attach the device again',
    });
  }

  /** For the data plane. */
  takeLayer(): UpstreamLayerSpec {
    const { generation, lasts, identity } = this.#facts;
    const fd = this.connect();
    // Calls are carried out in their order: the root is held by the socket before we let go of it.
    this.close();
    const { path: name, sizeBytes, boot } = this;
    const spec: UpstreamLayerSpec = {
      kind: 'upstream',
      ...{ name, fd, sizeBytes, generation, lasts, identity },
    };
    if (boot.ranges !== null) spec.boot = boot.ranges;
    return spec;
  }

  close(): void {
    if (!this.#held) return;
    this.#held = false;
    this.#upstream.call({ call: 'release', root: this.#facts.root }).catch(() => {});
  }
}

export class RemoteRoots implements Replicas {
  readonly #upstream: Upstream;
  readonly #book: RootBook;

  constructor(upstream: Upstream, book: RootBook) {
    this.#upstream = upstream;
    this.#book = book;
  }

  /**
   * @param comeback the identity of the root of a device that comes back: then it opens although no
   * replica answers now
   */
  async open(uri: string, comeback?: RootIdentity): Promise<UpstreamRoot> {
    const { text } = parseRootUri(uri);
    const record = await this.#book.read(text);
    const facts = await this.#upstream.call({
      call: 'open',
      spec: {
        uri: text,
        replicas: record.replicas,
        identity: comeback ?? record.identity,
        patient: comeback !== undefined,
        manifest: await this.#book.readManifest(text),
      },
    });
    const root = new UpstreamRoot(this.#upstream, facts);
    try {
      if (facts.manifest !== null) await this.#book.writeManifest(text, facts.manifest);
      return root;
    } catch (error) {
      root.close();
      throw error;
    }
  }

  /**
   * A socket to a root that devices have open, whose thread has died: in the next one. Opens it
   * although nobody answers now; throws where it is another content by now.
   */
  async rejoin({ name, generation, lasts, identity }: RemoteRootFacts): Promise<number> {
    for (let tries = 1; ; tries++) {
      if (this.#upstream.isHopeless)
        throw new UbdError('internal', 'the thread that reads it dies again and again', {
          next: 'the log has the reason; detach, and attach again',
        });
      try {
        const root = await this.open(name, identity);
        try {
          return root.connectAs(lasts ? generation : null);
        } finally {
          root.close();
        }
      } catch (error) {
        // The end of the thread may not have been told yet.
        const isOfThread = (error as UbdError).code === 'internal';
        if (!isOfThread || tries === REJOIN_TRIES) throw error;
      }
    }
  }

  async add(uri: string, replica: string): Promise<Replica> {
    const place = parseRootUri(replica).text;
    const root = await this.open(uri);
    try {
      const record = await this.#book.read(root.path);
      if (record.replicas.length >= REPLICAS_MAX)
        throw new UbdError('usage', `${root.path} has ${REPLICAS_MAX} replicas: that is the most`);
      const report = await this.#upstream.call({ call: 'add', root: root.number, uri: place });
      record.identity = root.identity;
      record.replicas = [...record.replicas.filter(one => one !== place), place];
      await this.#book.write(record);
      return report;
    } finally {
      root.close();
    }
  }

  async remove(uri: string, replica: string): Promise<void> {
    const { text } = parseRootUri(uri);
    const place = parseRootUri(replica).text;
    const record = await this.#book.read(text);
    if (!record.replicas.includes(place))
      throw new UbdError('not-found', `${text} has no replica ${place}`, {
        place: { file: text },
        next: `\`ubd replica list ${text}\` shows them; the root itself cannot be removed`,
      });
    record.replicas = record.replicas.filter(one => one !== place);
    await this.#book.write(record);
    if ((await this.#stats()).some(({ name }) => name === text)) {
      const root = await this.open(text);
      try {
        await this.#upstream.call({ call: 'remove', root: root.number, uri: place });
      } finally {
        root.close();
      }
    }
  }

  /** Of one root, or of all that are in use or have replicas. */
  async list(uri?: string): Promise<RootReplicas[]> {
    const wanted = uri === undefined ? undefined : parseRootUri(uri).text;
    const open = new Map((await this.#stats()).map(stats => [stats.name, stats]));
    const records = new Map((await this.#book.readAll()).map(record => [record.uri, record]));
    const names =
      wanted === undefined ? [...new Set([...open.keys(), ...records.keys()])] : [wanted];
    return names.sort().map(name => describe(name, open.get(name), records.get(name)));
  }

  async #stats(): Promise<RemoteStats[]> {
    return this.#upstream.isRunning ? this.#upstream.call({ call: 'stats' }) : [];
  }
}

function describe(
  root: string,
  open: RemoteStats | undefined,
  record: RootRecord | undefined,
): RootReplicas {
  if (open !== undefined) return { root, inUse: true, replicas: open.replicas };
  const replicas = [root, ...(record?.replicas ?? [])].map(
    (uri): Replica => ({
      uri,
      state: 'idle',
      reason: null,
      latencyMs: 0,
      inFlight: 0,
      reads: 0,
      readBytes: 0,
      failures: 0,
    }),
  );
  return { root, inUse: false, replicas };
}
