/**
 * One device in the data plane: the engine between its transport's session and its stores.
 *
 *     serving ── session ends (asked, or lost) ──▶ cut off
 *             ── leaf closed, descriptors closed ──▶ closed
 *
 * Owns all descriptors of its DeviceSpec. Runs on the data-plane thread: no promise, no timer; what
 * takes time ends in a callback from the ring's turn.
 */
import { ENOSPC, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { bytesToSectors, sectorsToBytes } from '../base/units.ts';
import { CachedLayer } from '../cache/cached-layer.ts';
import { type Completer, OP, Request } from '../engine/request.ts';
import { type Fault, type PartPool, UnionDevice } from '../engine/union.ts';
import type { Amendment } from '../leaf/commit.ts';
import { FrozenLayer } from '../leaf/frozen-layer.ts';
import type { Quota } from '../leaf/superblock.ts';
import { native } from '../native/binding.ts';
import { UpstreamLayer } from '../remote/upstream-layer.ts';
import type { Layer } from '../store/store.ts';
import type { FuseQueues } from '../transport/fuse/ring-intake.ts';
import { FuseSession } from '../transport/fuse/session.ts';
import type { FuseSlots } from '../transport/fuse/slots.ts';
import type { NbdChannel } from '../transport/nbd/connection.ts';
import { NbdSession } from '../transport/nbd/session.ts';
import type { NbdSlots } from '../transport/nbd/slots.ts';
import { UblkSession } from '../transport/ublk/session.ts';
import type { UblkSlots } from '../transport/ublk/slots.ts';
import { after } from '../uring/after.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import type { Ring } from '../uring/ring.ts';
import { IOSQE_ASYNC, OPCODE, setFlags } from '../uring/sqe.ts';
import { FaultLimiter } from './fault-limiter.ts';
import { closeRoot, type PlaneCache } from './plane-cache.ts';
import { closeLeaf, PlaneLeaves, type QuotaMark } from './plane-leaves.ts';
import type {
  DeviceSpec,
  DeviceStats,
  FaultEvent,
  FrozenLayerSpec,
  LayerSpec,
  RootLayerSpec,
  Succeeded,
  SuccessionSpec,
} from './plane-protocol.ts';
import { RingNames } from './ring-names.ts';

/** What the devices of a data-plane thread share. */
export interface Plant {
  ring: Ring;
  io: Io;
  fuseSlots: FuseSlots;
  /** Null: this thread serves FUSE over /dev/fuse alone. */
  fuseQueues: FuseQueues | null;
  ublkSlots: UblkSlots;
  nbdSlots: NbdSlots;
  parts: PartPool;
  cache: PlaneCache;
  /** For requests without data. */
  memory: Memory;
}

export interface PlaneDeviceEvents {
  onFault: (event: FaultEvent) => void;
  onLost: (id: number, reason: string) => void;
  onQuota: (id: number, mark: QuotaMark) => void;
  onDisconnected: (id: number, connection: number, reason: string | null) => void;
}

/** The end of an operation: null, or what went wrong. */
export type Done = (error: UbdError | null) => void;
/** The same of one that has a result. */
export type Answer<T> = (result: T | null, error: UbdError | null) => void;

/** What every transport has: it answers what it holds, and ends. */
interface Session {
  stop(): void;
  /** After `stop`, where its users can ask another server: what fails is not answered. */
  abandon?(): void;
  /** The device has grown. */
  resized?(done: IoOp): void;
}

/** How long the end of a device waits for what was asked of a root in another place. */
const GIVE_UP_SECONDS = 2;

/** Closes what a device has besides its leaves; the descriptors of a frozen chain are lent. */
function closeOthers({ transport, layers }: DeviceSpec): void {
  if (transport.kind !== 'nbd') native.close(transport.fd);
  else for (const { fd } of transport.channels) native.close(fd);
  for (const layer of layers) if (layer.kind !== 'frozen') closeRoot(layer);
}

function makeLayer({ io, cache }: Plant, spec: LayerSpec): Layer {
  if (spec.kind === 'frozen') return new FrozenLayer(io, spec.name, spec.files, spec.owners);
  return cache.layer(spec);
}

/** Closes all that was given for a device that could not be opened. */
export function closeDescriptors(spec: DeviceSpec): void {
  if (spec.leaf !== null) closeLeaf(spec.leaf, spec.shadow);
  closeOthers(spec);
}

export class PlaneDevice {
  readonly spec: DeviceSpec;
  readonly #plant: Plant;
  readonly #events: PlaneDeviceEvents;
  readonly #upstream: UpstreamLayer[];
  readonly #leaves: PlaneLeaves;
  readonly #union: UnionDevice;
  readonly #session: Session;
  readonly #faults: FaultLimiter;
  #serving = true;
  #givenUp = false;
  /** Who waits for its end; empty until it is closed. */
  readonly #closers: Done[] = [];
  /** Operations of the control plane that are under way, and who waits until none is. */
  #operations = 0;
  #whenIdle: (() => void) | null = null;
  #whenCutOff: (() => void) | null = null;
  #upstreamLeft = 0;
  readonly #whenUpstreamClosed: (() => void)[] = [];

  constructor(plant: Plant, spec: DeviceSpec, events: PlaneDeviceEvents) {
    const { io, parts } = plant;
    this.spec = spec;
    this.#plant = plant;
    this.#events = events;
    this.#faults = new FaultLimiter(spec.name, events.onFault);
    const below = spec.layers.map(layer => makeLayer(plant, layer));
    plant.cache.attach(spec, below);
    this.#upstream = below
      .map(layer => (layer instanceof CachedLayer ? layer.plain : layer))
      .filter(layer => layer instanceof UpstreamLayer);
    this.#leaves = new PlaneLeaves(io, spec.leaf, spec.shadow, below, mark =>
      events.onQuota(spec.id, mark),
    );
    this.#union = new UnionDevice({
      sizeSectors: bytesToSectors(spec.sizeBytes),
      layers: this.#leaves.readable,
      leaf: this.#leaves.writable,
      parts,
      onFault: (fault: Fault) => {
        if (!this.#givenUp) this.#faults.report(fault);
      },
    });
    this.#leaves.serve(this.#union);
    this.#session = this.#openSession();
  }

  #openSession(): Session {
    const { transport } = this.spec;
    const { fuseSlots, fuseQueues, ublkSlots, nbdSlots, cache } = this.#plant;
    const common = { device: this.#union, onEnd: (reason: string | null) => this.#cutOff(reason) };
    switch (transport.kind) {
      case 'ublk':
        return new UblkSession({
          ...{ slots: ublkSlots, channel: transport, ...common },
          // Sockets and the cache have no use for them; the leaf is a file, whatever lies below.
          readsFixed: ({ sector, count }) =>
            (this.#upstream.length === 0 && !cache.isOn) || this.#leaves.holds(sector, count),
        });
      case 'fuse':
        return new FuseSession({
          ...{ slots: fuseSlots, fd: transport.fd, ...common },
          queues: transport.uring === true ? fuseQueues : null,
        });
      case 'nbd': {
        const { channels } = transport;
        const onDisconnected = (connection: number, reason: string | null): void => {
          const at = channels.findIndex(channel => channel.connection === connection);
          if (at >= 0) channels.splice(at, 1); // its descriptor is closed
          this.#events.onDisconnected(this.spec.id, connection, reason);
        };
        return new NbdSession({ slots: nbdSlots, channels, onDisconnected, ...common });
      }
    }
  }

  /** Serves one more connection. Its descriptor is taken over whatever happens. */
  connect(channel: NbdChannel): void {
    const { name, transport } = this.spec;
    if (transport.kind !== 'nbd' || !(this.#session instanceof NbdSession)) {
      native.close(channel.fd);
      throw new UbdError('internal', `${name} takes no connections`);
    }
    transport.channels.push(channel);
    this.#session.connect(channel);
  }

  // ── Operations of the control plane: the end of the device waits for them ────────────────────

  /** Makes everything written so far durable. */
  flush(done: Done): void {
    this.#begin(done, end => {
      const completer: Completer = {
        complete: ({ result }) => end(this.#failure('flush', result)),
      };
      const request = new Request(completer, this.#plant.memory);
      request.op = OP.FLUSH;
      this.#union.submit(request);
    });
  }

  /** The leaf is about to be frozen, or is not after all: it says so. */
  prepare(changes: Amendment, done: Done): void {
    this.#begin(done, end =>
      this.#leaves.prepare(changes, { done: result => end(this.#failure('preparing', result)) }),
    );
  }

  /** A new leaf takes the place of the one in use: the moment of a snapshot. */
  succeed({ leaf, shadow, names }: SuccessionSpec, done: Answer<Succeeded>): void {
    const { ring, io } = this.#plant;
    const ringNames = new RingNames(ring, io, names);
    let succeeded: Succeeded | null = null;
    const answer = (error: UbdError | null): void => done(succeeded, error);
    this.#begin(answer, end =>
      this.#leaves.succeed(leaf, shadow, ringNames, (tookOver, result) => {
        ringNames.free();
        native.close(names.directoryFd);
        if (tookOver) succeeded = { errno: -result };
        end(tookOver ? null : this.#failure(`naming ${names.to}`, result));
      }),
    );
  }

  /** Freezes the leaf that was followed. */
  seal(done: Done): void {
    this.#begin(done, end =>
      this.#leaves.seal({ done: result => end(this.#failure('freezing', result)) }),
    );
  }

  /** The chain that includes it takes its place. */
  stand(frozen: FrozenLayerSpec, done: Done): void {
    // Once round through the ring: what was prepared for the descriptors that go is submitted.
    this.#begin(done, end => this.#leaves.stand(frozen, () => this.#passRing(() => end(null))));
  }

  /** A root with the same content takes the place of all that is below the leaf. */
  move(root: RootLayerSpec, done: Done): void {
    const { cache } = this.#plant;
    const layer = cache.layer(root);
    const { id, name, layers } = this.spec;
    const moved = (): void => {
      for (const old of layers.splice(0, layers.length, root))
        if (old.kind !== 'frozen') closeRoot(old);
      cache.attach({ id, name, layers }, [layer]);
    };
    this.#begin(done, end =>
      this.#leaves.moveTo(layer, () =>
        this.#closeUpstream(() =>
          cache.detach(id, () =>
            // As with `stand`, once round through the ring.
            this.#passRing(() => {
              moved();
              end(null);
            }),
          ),
        ),
      ),
    );
  }

  /** A larger device; its transport's node follows when this is done. */
  grow(sizeBytes: number, directoryOffset: number, done: Done): void {
    const sizeSectors = bytesToSectors(sizeBytes);
    this.#begin(done, end => {
      const told = (result: number): void => end(this.#failure('growing', result));
      const grown = (result: number): void => {
        if (result >= 0) this.#union.sizeSectors = sizeSectors;
        if (result < 0 || this.#session.resized === undefined) told(Math.min(result, 0));
        else this.#session.resized({ done: told });
      };
      this.#leaves.grow(sizeSectors, directoryOffset, { done: grown });
    });
  }

  /** How much the leaf may hold. */
  limit(quota: Quota | null, done: Done): void {
    this.#begin(done, end =>
      this.#leaves.limit(quota, { done: result => end(this.#failure('limiting', result)) }),
    );
  }

  #begin(done: Done, start: (end: Done) => void): void {
    this.#operations++;
    try {
      start(error => {
        this.#operations--;
        done(error);
        this.#tellIdle();
      });
    } catch (error) {
      this.#operations--; // it has refused to begin
      throw error;
    }
  }

  #tellIdle(): void {
    if (this.#operations > 0 || this.#whenIdle === null) return;
    const then = this.#whenIdle;
    this.#whenIdle = null;
    then();
  }

  // ── The end ───────────────────────────────────────────────────────────────────────────────────

  /** No operation may be begun any more. */
  get isClosing(): boolean {
    return this.#closers.length > 0;
  }

  /**
   * Stops serving; then the leaf is made durable and clean, and everything is closed. Reads of a
   * root that does not answer are given up after a moment. Whoever asks again gets the same answer.
   * @param patient not these: their users can ask nobody else
   */
  close(done: Done, patient = false): void {
    this.#closers.push(done);
    if (this.#closers.length > 1) return;
    const { cache } = this.#plant;
    this.#whenCutOff = () => {
      this.#whenIdle = () =>
        this.#closeUpstream(() => cache.detach(this.spec.id, () => this.#closeLeaf()));
      this.#tellIdle();
    };
    if (this.#serving) this.#session.stop();
    else this.#whenCutOff();
    if (this.#serving && this.#upstream.length > 0 && !patient)
      after(this.#plant.ring, GIVE_UP_SECONDS, () => this.#giveUp());
  }

  #giveUp(): void {
    if (!this.#serving) return;
    this.#givenUp = true;
    this.#session.abandon?.();
    this.#closeUpstream(() => {});
  }

  stats(): DeviceStats {
    const { counters, inFlight } = this.#union;
    return {
      id: this.spec.id,
      inFlight,
      reads: counters.reads,
      readBytes: sectorsToBytes(counters.readSectors),
      writes: counters.writes,
      writtenBytes: sectorsToBytes(counters.writtenSectors),
      flushes: counters.flushes,
      faults: counters.faults,
      changedBytes: sectorsToBytes(this.#leaves.leaf?.changedSectors ?? 0),
      quota: this.#leaves.quota,
      refused: this.#leaves.leaf?.refused ?? 0,
      cache: this.#plant.cache.countersOf(this.spec.id),
    };
  }

  /** No request is in flight any more, and none will come. */
  #cutOff(reason: string | null): void {
    this.#serving = false;
    if (this.#whenCutOff !== null) this.#whenCutOff();
    else this.#events.onLost(this.spec.id, reason ?? 'the connection ended');
  }

  #closeLeaf(): void {
    this.#leaves.close({
      done: result => {
        this.closeDescriptors();
        // Once round through the kernel's own thread: what it still held of the files, as the claim
        // on a block device, goes before the answer that they are free.
        this.#passRing(() => {
          const failure = this.#failure('close', result);
          for (const done of this.#closers) done(failure);
        });
      },
    });
  }

  /** Nothing is received any more, so that their sockets may be closed. */
  #closeUpstream(then: () => void): void {
    const layers = this.#upstream.splice(0);
    this.#upstreamLeft += layers.length;
    this.#whenUpstreamClosed.push(then);
    const closed: IoOp = {
      done: () => {
        this.#upstreamLeft--;
        this.#tellUpstreamClosed();
      },
    };
    for (const layer of layers) layer.close(closed);
    this.#tellUpstreamClosed();
  }

  #tellUpstreamClosed(): void {
    if (this.#upstreamLeft === 0) for (const then of this.#whenUpstreamClosed.splice(0)) then();
  }

  #passRing(then: () => void): void {
    const { ring } = this.#plant;
    const word = ring.prepare(OPCODE.NOP, -1, { done: then });
    setFlags(ring.words, word, IOSQE_ASYNC);
  }

  /** At its end, and when its thread dies, so that its users get errors and do not hang. */
  closeDescriptors(): void {
    this.#leaves.closeDescriptors();
    closeOthers(this.spec);
  }

  #failure(what: string, result: number): UbdError | null {
    if (result >= 0) return null;
    const { name } = this.spec;
    const file = this.#leaves.name ?? name;
    return new UbdError(
      result === -ENOSPC ? 'no-space' : 'io',
      `${name}: ${what} of ${file} failed: ${errnoName(result)}`,
      {
        place: { device: name, file },
        next:
          'what was flushed before is safe; ' +
          (result === -ENOSPC
            ? 'make room where the leaf is, and try again'
            : 'check the disk that the leaf is on (`dmesg | tail`)'),
      },
    );
  }
}
