/**
 * One device in the data plane: the engine between its transport's session and its stores.
 *
 *     serving ── session ends (asked, or lost) ──▶ cut off
 *             ── leaf closed, descriptors closed ──▶ closed
 *
 * Owns all descriptors of its DeviceSpec. Runs on the data-plane thread: no promise, no timer; what
 * takes time ends in a callback from the ring's turn.
 */
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { bytesToSectors, sectorsToBytes } from '../base/units.ts';
import { type Completer, OP, Request } from '../engine/request.ts';
import { type Fault, type PartPool, UnionDevice } from '../engine/union.ts';
import { FrozenLayer } from '../leaf/frozen-layer.ts';
import { Leaf } from '../leaf/leaf.ts';
import { LeafShadow } from '../leaf/shadow.ts';
import { native } from '../native/binding.ts';
import type { Layer } from '../store/store.ts';
import { FuseSession } from '../transport/fuse/session.ts';
import type { FuseSlots } from '../transport/fuse/slots.ts';
import { UblkSession } from '../transport/ublk/session.ts';
import type { UblkSlots } from '../transport/ublk/slots.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import type { Ring } from '../uring/ring.ts';
import { IOSQE_ASYNC, OPCODE, setFlags } from '../uring/sqe.ts';
import { FaultLimiter } from './fault-limiter.ts';
import type { PlaneCache } from './plane-cache.ts';
import type { DeviceSpec, DeviceStats, FaultEvent, LayerSpec } from './plane-protocol.ts';

/** flock(2) */
const LOCK_UN = 8;

/** What the devices of a data-plane thread share. */
export interface Plant {
  ring: Ring;
  io: Io;
  fuseSlots: FuseSlots;
  ublkSlots: UblkSlots;
  parts: PartPool;
  cache: PlaneCache;
  /** For requests without data. */
  memory: Memory;
}

export interface PlaneDeviceEvents {
  onFault: (event: FaultEvent) => void;
  onLost: (id: number, reason: string) => void;
}

/** The end of an operation: null, or what went wrong. */
export type Done = (error: UbdError | null) => void;

/** What every transport has: it answers what it holds, and ends. */
interface Session {
  stop(): void;
}

/** Every descriptor that a device owns: those of a frozen chain are lent. */
function descriptors(spec: DeviceSpec): number[] {
  const fds = [spec.transport.fd];
  for (const layer of spec.layers) {
    if (layer.kind !== 'root') continue;
    fds.push(layer.fd);
    if (layer.cache?.directFd != null) fds.push(layer.cache.directFd);
  }
  if (spec.leaf !== null) fds.push(spec.leaf.fd);
  if (spec.shadow !== undefined) fds.push(spec.shadow.fd);
  return fds;
}

function makeLayer({ io, cache }: Plant, spec: LayerSpec): Layer {
  if (spec.kind === 'frozen') return new FrozenLayer(io, spec.name, spec.files, spec.owners);
  return cache.layer(spec);
}

/**
 * Closes all that a device has: at its end, when it could not be opened, and when its thread dies,
 * so that its users get errors and do not hang.
 */
export function closeDescriptors(spec: DeviceSpec): void {
  // The kernel may hold the file a little longer, for an operation that it has just ended; not the
  // lock.
  if (spec.leaf !== null) native.flock(spec.leaf.fd, LOCK_UN);
  for (const fd of descriptors(spec)) native.close(fd);
}

export class PlaneDevice {
  readonly spec: DeviceSpec;
  readonly #plant: Plant;
  readonly #events: PlaneDeviceEvents;
  readonly #leaf: Leaf | null;
  readonly #shadow: LeafShadow | null;
  readonly #union: UnionDevice;
  readonly #session: Session;
  readonly #faults: FaultLimiter;
  #serving = true;
  #whenCutOff: (() => void) | null = null;

  constructor(plant: Plant, spec: DeviceSpec, events: PlaneDeviceEvents) {
    const { io, parts } = plant;
    this.spec = spec;
    this.#plant = plant;
    this.#events = events;
    this.#faults = new FaultLimiter(spec.name, events.onFault);
    this.#shadow = spec.shadow === undefined ? null : new LeafShadow(spec.shadow);
    this.#leaf = spec.leaf === null ? null : new Leaf(io, spec.leaf, undefined, this.#shadow);
    const below = spec.layers.map(layer => makeLayer(plant, layer));
    plant.cache.attach(spec.id, below);
    const frozen = this.#leaf?.readOnly === true ? [this.#leaf] : [];
    this.#union = new UnionDevice({
      sizeSectors: bytesToSectors(spec.sizeBytes),
      layers: [...frozen, ...below],
      leaf: frozen.length > 0 ? null : this.#leaf,
      parts,
      onFault: (fault: Fault) => this.#faults.report(fault),
    });
    this.#session = this.#openSession();
  }

  #openSession(): Session {
    const { transport } = this.spec;
    const { fuseSlots, ublkSlots } = this.#plant;
    const common = { device: this.#union, onEnd: (reason: string | null) => this.#cutOff(reason) };
    return transport.kind === 'ublk'
      ? new UblkSession({ slots: ublkSlots, channel: transport, ...common })
      : new FuseSession({ slots: fuseSlots, fd: transport.fd, ...common });
  }

  /** Makes everything written so far durable. */
  flush(done: Done): void {
    const completer: Completer = {
      complete: ({ result }) => done(this.#failure('flush', result)),
    };
    const request = new Request(completer, this.#plant.memory);
    request.op = OP.FLUSH;
    this.#union.submit(request);
  }

  /** Stops serving; then the leaf is made durable and clean, and everything is closed. */
  close(done: Done): void {
    const { cache } = this.#plant;
    this.#whenCutOff = () => cache.detach(this.spec.id, () => this.#closeLeaf(done));
    if (this.#serving) this.#session.stop();
    else this.#whenCutOff();
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
      changedBytes: sectorsToBytes(this.#leaf?.changedSectors ?? 0),
      cache: this.#plant.cache.countersOf(this.spec.id),
    };
  }

  /** No request is in flight any more, and none will come. */
  #cutOff(reason: string | null): void {
    this.#serving = false;
    if (this.#whenCutOff !== null) this.#whenCutOff();
    else this.#events.onLost(this.spec.id, reason ?? 'the connection ended');
  }

  #closeLeaf(done: Done): void {
    const { ring } = this.#plant;
    const end: IoOp = {
      done: result => {
        this.#shadow?.close();
        closeDescriptors(this.spec);
        // Once round through the kernel's own thread: what it still held of the files, as the claim
        // on a block device, goes before the answer that they are free.
        const word = ring.prepare(OPCODE.NOP, -1, {
          done: () => done(this.#failure('close', result)),
        });
        setFlags(ring.words, word, IOSQE_ASYNC);
      },
    };
    if (this.#leaf === null) end.done(0, 0);
    else this.#leaf.close(end);
  }

  #failure(what: string, result: number): UbdError | null {
    if (result >= 0) return null;
    const { name, leaf } = this.spec;
    const file = leaf?.name ?? name;
    return new UbdError('io', `${name}: ${what} of ${file} failed: ${errnoName(result)}`, {
      place: { device: name, file },
      next: 'what was flushed before is safe; check the disk that the leaf is on (`dmesg | tail`)',
    });
  }
}
